"""What a module's Python attributes say, as hashable values that differ whenever a trace could.

Numbers, strings, types and nested containers count by value; objects with attributes of their own
(configurations) by identity, these attributes and the plain values of their class; functions by identity, what they close
over and the plain globals that they name; tensors and everything else by identity.
Identity keeps the object alive, so that no later one can take over its address.
"""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (bool, int, str, bytes, type(None), torch.dtype, torch.device, type)
LONG = 1000  # entries from which on a container counts by identity and length only
DEEP = 5
OWN = frozenset(vars(nn.Module())) - {"training"}


class Same:
    """Equal to the wrapper of the same object only."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)

    def __str__(self) -> str:
        return f"{type(self.value).__name__} at {id(self.value):#x}"


def of_module(module: nn.Module, known: dict[int, Any]) -> tuple[Any, ...]:
    """Class, identity, hooks, mode and attributes of one module; `known` holds what was told already."""
    kinds = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    hooks = tuple(Same(hook) for kind in kinds for hook in kind.values())
    attributes = tuple((k, of_value(v, known, 0)) for k, v in vars(module).items() if k not in OWN)
    return type(module), id(module), hooks, attributes, of_class(type(module), known)


def of_class(kind: type, known: dict[int, Any]) -> tuple[Any, ...]:
    """Plain values that a class and its bases hold, those of Python and torch aside."""
    if id(kind) in known:
        return ()
    known[id(kind)] = kind  # told once
    own = (base for base in kind.__mro__ if base.__module__.split(".")[0] not in ("builtins", "torch", "typing", "abc"))
    return tuple((name, value) for base in own for name, value in vars(base).items() if is_plain(name, value))


def is_plain(name: str, value: Any) -> bool:
    """A number or text of a class or module that is not Python's own."""
    return not name.startswith("__") and isinstance(value, (bool, int, float, str))


def of_value(value: Any, known: dict[int, Any], depth: int) -> Any:
    """A hashable stand-in for one attribute."""
    if isinstance(value, PLAIN):
        return type(value), value
    if isinstance(value, float):
        return float, repr(value)  # NaN would differ from itself, and -0.0 not from 0.0
    if isinstance(value, (Tensor, nn.Module)) or depth == DEEP:
        return Same(value)
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, np.ndarray):
        return Same(value), value.shape, hash(value.tobytes())
    if callable(value):
        known[id(value)] = Same(value)
        return of_callable(value, known, depth + 1)
    if not isinstance(value, (tuple, list)):
        known[id(value)] = Same(value)  # its contents are told once: modules share configurations
    return of_contents(value, known, depth + 1)


def of_callable(value: Any, known: dict[int, Any], depth: int) -> Any:
    """A function by itself, what it closes over, its defaults and the globals that it names; others by their attributes."""
    if isinstance(value, functools.partial):
        return Same(value), tuple(of_value(part, known, depth) for part in (value.func, value.args, value.keywords))
    if isinstance(value, types.MethodType):
        return Same(value.__func__), of_value(value.__self__, known, depth)
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if is_filled(cell)]
        named = [value.__globals__[name] for name in value.__code__.co_names if name in value.__globals__]
        held = [item for item in named if isinstance(item, (bool, int, float, str, Tensor, list, dict))]
        return Same(value), tuple(of_value(i, known, depth) for i in (*cells, *(value.__defaults__ or ()), *held))
    return of_contents(value, known, depth)


def is_filled(cell: types.CellType) -> bool:
    """Whether a closed-over name has a value yet."""
    try:
        cell.cell_contents  # noqa: B018  (reading it is the test)
    except ValueError:
        return False
    return True


def of_contents(value: Any, known: dict[int, Any], depth: int) -> Any:
    """A container by its entries, any other object by identity and attributes."""
    if isinstance(value, (Mapping, tuple, list, set, frozenset, deque)):
        if len(value) > LONG:
            return Same(value), len(value), hash(repr(value))
        if isinstance(value, Mapping):
            return type(value), tuple((str(k), of_value(v, known, depth)) for k, v in value.items())
        if isinstance(value, (set, frozenset)):
            return type(value), frozenset(of_value(item, known, depth) for item in value)
        return type(value), tuple(of_value(item, known, depth) for item in value)
    attributes = own_attributes(value)
    if len(attributes) > LONG:
        return Same(value)
    return Same(value), tuple((k, of_value(v, known, depth)) for k, v in attributes.items()), of_class(type(value), known)


def own_attributes(value: Any) -> dict[str, Any]:
    """Attributes of an object, those in slots too."""
    slots = [name for base in type(value).__mro__ for name in listed(vars(base).get("__slots__", ()))]
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    attributes = getattr(value, "__dict__", None)
    return held | dict(attributes) if isinstance(attributes, dict) else held


def listed(slots: Any) -> tuple[str, ...]:
    """The names of slots, of which one may be a text."""
    return (slots,) if isinstance(slots, str) else tuple(slots)
