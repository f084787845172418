"""Tensors inside what a model returns: tuples, lists, dicts and dataclasses, nested in any way."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dpcompile.ir.errors import InvalidInput

PLAIN = (bool, int, float, str, bytes, type(None))


def find_tensors(tree: Any) -> list[Tensor]:
    """Every tensor once, in the order in which it stands; refuses objects that cannot be looked into."""
    found: dict[int, Tensor] = {}
    collect(tree, found)
    return list(found.values())


def collect(tree: Any, found: dict[int, Tensor]) -> None:
    """Add the tensors of one tree."""
    if isinstance(tree, Tensor):
        found.setdefault(id(tree), tree)
    elif (entries := entries_of(tree)) is not None:
        for entry in entries.values():
            collect(entry, found)
    elif not isinstance(tree, PLAIN):
        raise InvalidInput(
            f"the model returns a {type(tree).__name__}, which may hide tensors; return tensors in tuples, "
            "lists, dicts or dataclasses (a transformers model: use_cache=False)"
        )


def entries_of(tree: Any) -> dict[Any, Any] | None:
    """The entries of a container by key; None for what is no container."""
    if isinstance(tree, Mapping):
        return dict(tree)
    if isinstance(tree, (tuple, list)):
        return dict(enumerate(tree))
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return {item.name: getattr(tree, item.name) for item in dataclasses.fields(tree)}
    return None


def with_tensors(tree: Any, replaced: Mapping[int, Tensor]) -> Any:
    """The same tree with tensors replaced by id."""
    if isinstance(tree, Tensor):
        return replaced.get(id(tree), tree)
    entries = entries_of(tree)
    if entries is None:
        return tree
    new = {key: with_tensors(entry, replaced) for key, entry in entries.items()}
    if isinstance(tree, tuple):
        return type(tree)(*new.values()) if hasattr(tree, "_fields") else type(tree)(new.values())
    if isinstance(tree, list):
        return list(new.values())
    result = copy.copy(tree)
    for key, entry in new.items():
        if isinstance(tree, Mapping):
            result[key] = entry
        else:
            object.__setattr__(result, key, entry)
    return result
