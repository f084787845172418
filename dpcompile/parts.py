"""Parts of a model as its drop-in hands them out: to be looked at, not to be trained through.

What a submodule or a method computes from the parameters is ordinary autograd: its gradient would be added to `p.grad` beside
the clipped sum, unclipped. So the result of a call that requires grad is refused; reading attributes, weights and
configurations is free, and so is everything under `torch.no_grad()`.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dpcompile.ir.errors import InvalidInput
from dpcompile.trees import entries_of

DEEP = 4
"""So many containers and objects are opened one inside the other."""


class Part:
    """A submodule in everything but its calls: `isinstance`, attributes, copies and pickles are the submodule's own."""

    __slots__ = ("_name", "_part")
    _name: str
    _part: nn.Module

    def __init__(self, part: nn.Module, name: str) -> None:
        object.__setattr__(self, "_part", part)
        object.__setattr__(self, "_name", name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The submodule's class."""
        return self._part.__class__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The submodule's result, if it does not require grad."""
        return checked(self._part, self._name)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return handed_out(getattr(self._part, name), f"{self._name}.{name}")

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._part, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._part, name)

    def __getitem__(self, key: Any) -> Any:
        return handed_out(self._part[key], f"{self._name}[{key!r}]")  # type: ignore[index]

    def __iter__(self) -> Iterator[Any]:
        return (handed_out(item, self._name) for item in self._part)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self._part)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return bool(self._part)

    def __contains__(self, item: Any) -> bool:
        return item in self._part  # type: ignore[operator]

    def __dir__(self) -> list[str]:
        return self._part.__dir__()

    def __repr__(self) -> str:
        return repr(self._part)

    def __eq__(self, other: object) -> bool:
        return self._part is (other._part if type(other) is Part else other)

    def __hash__(self) -> int:
        return hash(self._part)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._part.__reduce_ex__(protocol)


def handed_out(value: Any, name: str) -> Any:
    """A value of the model as its user gets it: modules and their methods with checked calls, everything else as it is."""
    if type(value) is not Part and isinstance(value, nn.Module):
        return Part(value, name)
    is_method = isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module)
    return checked(value, name) if is_method else value


def checked(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The same call, refused if its result would be differentiated without clipping."""

    @functools.wraps(call, updated=())
    def caller(*args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        if torch.is_grad_enabled() and any(tensor.grad_fn is not None for tensor in tensors_in(result, DEEP)):
            raise unclipped(name)
        return handed_out(result, name)

    return caller


class StandIn(nn.Module):
    """A module that stands for `model`: its attributes, and its names of parameters, buffers and state, without a prefix."""

    model: nn.Module

    def __getattr__(self, name: str) -> Any:
        """Attributes of the model are this module's too (`module.config`); its submodules and methods are `Part`s."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "model" not in self.__dict__.get("_modules", {}):
                raise
            return handed_out(getattr(self.model, name), name)

    def __getitem__(self, key: Any) -> Any:
        """A submodule of a model that has places or keys, as a `Part`."""
        return handed_out(self.model[key], f"[{key!r}]")  # type: ignore[index]

    def __iter__(self) -> Iterator[Any]:
        return (handed_out(item, "a submodule") for item in self.model)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.model)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return bool(self.model)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's own, without a prefix."""
        return self.model.named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        """The model's own, without a prefix."""
        return self.model.named_buffers(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own state_dict, without a prefix."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load into the model."""
        return self.model.load_state_dict(*args, **kwargs)


def tensors_in(tree: Any, depth: int) -> Iterator[Tensor]:
    """Tensors in containers and objects, as far as they can be looked into."""
    if isinstance(tree, Tensor):
        yield tree
    elif depth and not isinstance(tree, nn.Module):
        entries = entries_of(tree)
        for entry in (getattr(tree, "__dict__", {}) if entries is None else entries).values():
            yield from tensors_in(entry, depth - 1)


def unclipped(name: str) -> InvalidInput:
    """The refusal of ordinary autograd through a part of the model."""
    return InvalidInput(
        f"{name} of the drop-in was called with gradients enabled, and its result requires grad: that gradient would reach the "
        "parameters without being clipped for each example. Return what the loss needs from the model's forward and call the "
        f"drop-in itself; call {name} under torch.no_grad() to look at its result; or train through {name} of the model that was "
        "given to dpcompile, if no privacy is wanted there"
    )
