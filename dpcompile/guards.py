"""What a compiled step relies on: everything about model and batch but the batch size and the values."""

from __future__ import annotations

from typing import Any

from torch import nn

from dpcompile.batch import Batch
from dpcompile.losses import Program

PLAIN = (bool, int, float, str, bytes, type(None))


def guard_key(program: Program, batch: Batch) -> tuple[Any, ...]:
    """A hashable fingerprint of batch layout, parameters, buffers and the modules' plain attributes."""
    tensors = [*program.named_parameters(remove_duplicate=False), *program.named_buffers(remove_duplicate=False)]
    held = tuple((n, id(t), tuple(t.shape), t.dtype, str(t.device), t.requires_grad, t.stride()) for n, t in tensors)
    return ("batch", batch.key), ("parameters", held), ("modules", tuple(map(module_key, program.modules())))


def module_key(module: nn.Module) -> tuple[Any, ...]:
    """Identity, mode and plain attributes of one module."""
    plain = tuple((k, plain_value(v)) for k, v in module.__dict__.items() if k == "training" or k[0] != "_")
    return (id(module), len(module._forward_hooks), len(module._forward_pre_hooks), plain)


def plain_value(value: Any) -> Any:
    """A hashable stand-in for an attribute: its value if it is plain, else its identity."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, tuple) and all(isinstance(item, PLAIN) for item in value):
        return value
    if isinstance(value, list) and all(isinstance(item, PLAIN) for item in value):
        return tuple(value)
    return id(value)


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
