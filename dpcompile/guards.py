"""What a compiled step relies on: everything about model and batch but the batch size and the values."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch

from dpcompile import fingerprint, torch_private
from dpcompile.batch import Batch
from dpcompile.kernels.gram import convolution_rounding, product_precisions
from dpcompile.losses import Program

TRACE_LIMIT = 8
T = TypeVar("T")


class Traces(Generic[T]):
    """What was compiled, by fingerprint: the last TRACE_LIMIT of them, the latest at hand."""

    def __init__(self) -> None:
        self.by_key: dict[tuple[Any, ...], T] = {}
        self.latest: T | None = None

    def get(self, key_now: Callable[[], tuple[Any, ...]], compile_anew: Callable[[], T]) -> T:
        """The compiled thing for the present fingerprint; warns about a model that keeps changing."""
        key = key_now()
        found = self.by_key.get(key)  # once: a key is long, and its hash and comparison are not free
        if found is None:
            found = compile_anew()
            key = key_now()  # compiling runs the program, which may keep values that the fingerprint sees, but no step reads
            if len(self.by_key) >= TRACE_LIMIT:
                warnings.warn(f"dpcompile traced this model {len(self.by_key) + 1} times; the latest change: "
                              f"{changed(list(self.by_key)[-1], key)}", stacklevel=4)  # fmt: skip
                self.by_key.pop(next(iter(self.by_key)))
            self.by_key[key] = found
        self.latest = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave compiled graphs behind; they are made anew at the first call."""
        return {"by_key": {}, "latest": None}


def guard_key(program: Program, batch: Batch) -> tuple[Any, ...]:
    """A hashable fingerprint of batch layout, parameters, buffers, modules' attributes, torch's modes."""
    places = list(program.named_modules(remove_duplicate=False))
    modules = list({id(module): module for _, module in places}.values())
    tensors = [(place, name, tensor) for place, module in places for held in (module._parameters, module._buffers)
               for name, tensor in held.items() if tensor is not None]  # fmt: skip
    told = tuple(
        (place, n, id(t), t.shape, t.dtype, t.device, t.requires_grad, t.stride(), hooks_of(t)) for place, n, t in tensors
    )
    known: dict[int, Any] = {id(own): fingerprint.Same(own) for own in (*(t for *_, t in tensors), *modules)}
    return (
        ("batch", batch.key),
        ("parameters", told),
        ("modules", tuple(fingerprint.of_module(module, known) for module in modules)),
        ("loss", fingerprint.of_value(program.function, known, 0)),
        ("hooks of all modules", tuple(fingerprint.of_value(hook, known, 0) for hook in torch_private.global_hooks())),
        ("torch", torch_key(batch.tensors[0].device)),
    )


def hooks_of(tensor: torch.Tensor) -> tuple[int, int]:
    """How many hooks see the tensor's gradient before and after it is added up."""
    return len(tensor._backward_hooks or ()), len(getattr(tensor, "_post_accumulate_grad_hooks", None) or ())


def torch_key(device: torch.device) -> tuple[Any, ...]:
    """The modes of torch that a trace follows: autocast, default type, rounding of float32 products and convolutions, modes of
    functions."""
    kinds = [kind for kind in sorted({"cpu", device.type}) if torch.amp.is_autocast_available(kind)]
    autocast = tuple((kind, torch.get_autocast_dtype(kind)) for kind in kinds if torch.is_autocast_enabled(kind))
    modes = tuple(fingerprint.of_mode(mode) for mode in torch_private.function_modes())
    return autocast, torch.get_default_dtype(), product_precisions(), convolution_rounding(device), modes


def changed(old: tuple[Any, ...], new: tuple[Any, ...]) -> str:
    """Which part of a fingerprint differs, in words."""
    for (name, before), (_, after) in zip(old, new, strict=True):
        if before != after:
            flat = zip(flattened(before), flattened(after), strict=False)
            first = next(((a, b) for a, b in flat if a != b), (before, after))
            return f"{name}: {first[0]} became {first[1]}"
    return "nothing"


def flattened(value: Any) -> list[Any]:
    """Leaves of nested tuples."""
    return [leaf for item in value for leaf in flattened(item)] if isinstance(value, tuple) else [value]
