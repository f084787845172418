"""What a module's Python attributes say, as hashable values that differ whenever a trace could.

Numbers, strings, types and nested containers count by value; objects with attributes of their own
(configurations) by identity and by these attributes; functions, tensors and everything else by identity.
Identity keeps the object alive, so that no later one can take over its address.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    attributes = tuple((k, of_value(v, known, 0)) for k, v in vars(module).items() if k not in OWN)
    return type(module), id(module), tuple(map(Same, hooks)), attributes


def of_value(value: Any, known: dict[int, Any], depth: int) -> Any:
    """A hashable stand-in for one attribute."""
    if isinstance(value, PLAIN):
        return type(value), value
    if isinstance(value, float):
        return float, repr(value)  # NaN would differ from itself, and -0.0 not from 0.0
    if isinstance(value, (Tensor, nn.Module)) or callable(value) or depth == DEEP:
        return Same(value)
    if id(value) in known:
        return known[id(value)]
    if not isinstance(value, (tuple, list)):
        known[id(value)] = Same(value)  # its contents are told once: modules share configurations
    return of_contents(value, known, depth + 1)


def of_contents(value: Any, known: dict[int, Any], depth: int) -> Any:
    """A container by its entries, any other object by identity and attributes."""
    if isinstance(value, (Mapping, tuple, list, set, frozenset)):
        if len(value) > LONG:
            return Same(value), len(value)
        if isinstance(value, Mapping):
            return type(value), tuple((str(k), of_value(v, known, depth)) for k, v in value.items())
        if isinstance(value, (set, frozenset)):
            return type(value), frozenset(of_value(item, known, depth) for item in value)
        return type(value), tuple(of_value(item, known, depth) for item in value)
    attributes = getattr(value, "__dict__", None)
    if not isinstance(attributes, dict) or len(attributes) > LONG:
        return Same(value)
    return Same(value), tuple((k, of_value(v, known, depth)) for k, v in attributes.items())
