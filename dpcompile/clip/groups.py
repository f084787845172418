"""Which parameters are clipped together: by the module that owns them, or by names and globs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from dpcompile.ir.errors import StrategyError


@dataclass(frozen=True)
class Group:
    """Parameters with one clip factor; their clip norm is C_k = share * C. The squares of all shares add up to 1."""

    name: str
    parameters: tuple[str, ...]
    share: float


def module_groups(names: Sequence[str]) -> tuple[Group, ...]:
    """One group for every module, called as in `named_modules()` ("" is the model itself), with equal shares."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(owner(name), []).append(name)
    share = 1 / math.sqrt(len(found)) if found else 1.0
    return tuple(Group(module, tuple(own), share) for module, own in found.items())


def owner(parameter: str) -> str:
    """The module of a parameter; what a parametrization has made of a parameter belongs to the module that it was in."""
    before, is_parametrized, _ = parameter.partition("parametrizations.")
    return (before if is_parametrized else parameter.rpartition(".")[0]).removesuffix(".")


def matched_groups(names: Sequence[str], norms: Mapping[str, float]) -> tuple[Group, ...]:
    """One group for every name or glob; refuses a parameter in none or in several, and a group of nothing."""
    found: dict[str, list[str]] = {pattern: [] for pattern in norms}
    for name in names:
        found[pattern_of(name, norms)].append(name)
    empty = next((pattern for pattern, own in found.items() if not own), None)
    if empty is not None:
        raise StrategyError(f"GroupWise names {empty!r}, which is left without trainable parameters; leave it out")
    whole = math.hypot(*norms.values())
    return tuple(Group(pattern, tuple(own), norms[pattern] / whole) for pattern, own in found.items())


def pattern_of(name: str, norms: Mapping[str, float]) -> str:
    """The one group of a parameter; its own name comes before any glob."""
    if name in norms:
        return name
    matching = [pattern for pattern in norms if fnmatchcase(name, pattern)]
    if len(matching) == 1:
        return matching[0]
    how = (
        f"is in {len(matching)} groups of GroupWise: {', '.join(map(repr, matching))}"
        if matching
        else "is in no group of GroupWise"
    )
    raise StrategyError(
        f"the trainable parameter {name} {how}; every one must be in exactly one. "
        "Name it by itself, narrow the globs, or add a group"
    )
