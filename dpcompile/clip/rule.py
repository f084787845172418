"""A kind of clipping for one model: the kind with its groups, and what the user may write for a kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dpcompile.clip.grouped import GroupWise, PerLayer
from dpcompile.clip.groups import Group
from dpcompile.clip.kind import Kind
from dpcompile.clip.kinds import PSAC, Automatic, Flat, Global, Normalized
from dpcompile.ir.errors import StrategyError

KINDS: Final[Mapping[str, type[Kind]]] = {kind.name: kind for kind in (Flat, Automatic, Normalized, PSAC, Global, PerLayer)}
"""Kinds that have a name with defaults; GroupWise needs its groups."""
WHOLE: Final = "*"
"""What the group of all parameters is called."""


@dataclass(frozen=True)
class Rule:
    """A kind and its groups; no groups where one factor clips the whole gradient."""

    kind: Kind
    groups: tuple[Group, ...] = ()

    def parts(self, names: Sequence[str]) -> tuple[Group, ...]:
        """The groups, or the one that all these parameters are in."""
        return self.groups or (Group(WHOLE, tuple(names), 1.0),)

    def factors(self, norms: Mapping[str, float], limit: float) -> dict[str, float]:
        """Every parameter's factor, for the norms of its own gradient; all 0 where one is not finite."""
        if not all(math.isfinite(norm) for norm in norms.values()):
            return dict.fromkeys(norms, 0.0)
        found: dict[str, float] = {}
        for group in self.parts(list(norms)):
            own = [name for name in group.parameters if name in norms]
            found |= dict.fromkeys(own, self.kind.factor(math.hypot(*(norms[name] for name in own)), group.share * limit))
        return found

    def document(self, names: Sequence[str], limit: float) -> dict[str, Any]:
        """The rule as certificate and report hold it."""
        rows = [{"name": g.name, "parameters": list(g.parameters), "clip_norm": g.share * limit} for g in self.parts(names)]
        return {"kind": self.kind.name, "formula": self.kind.formula(), "groups": rows}

    def __str__(self) -> str:
        count = f" in {len(self.groups)} groups" if self.groups else ""
        return f"{self.kind.name}{count}, {self.kind.formula()}"


FLAT: Final = Rule(Flat())


def rule_of(kind: Kind, names: Sequence[str]) -> Rule:
    """A kind for these trainable parameters, in the model's order."""
    return Rule(kind, kind.groups(names))


def kind_of(clipping: object) -> Kind:
    """What the user gave as `clipping=`: a kind, or the name of one that has defaults."""
    if isinstance(clipping, Kind):
        return clipping
    if isinstance(clipping, str) and clipping in KINDS:
        return KINDS[clipping]()
    if isinstance(clipping, str) and clipping == GroupWise.name:
        raise StrategyError('clipping="group-wise" needs its groups: clipping=GroupWise({"encoder.*": 0.5, "head.*": 1.0})')
    objects = ", ".join(f"{kind.__name__}(...)" for kind in (*KINDS.values(), GroupWise))
    raise StrategyError(f"clipping={clipping!r} does not exist; use one of {', '.join(KINDS)}, or an object: {objects}")


def check_one_backward(kind: Kind, schedule: str, strategy: Any) -> None:
    """Refuse a second backward for groups: it multiplies a gradient that flows to several groups by one factor."""
    entries = list(strategy.values()) if isinstance(strategy, Mapping) else []
    asked = 'schedule="two-pass"' if schedule == "two-pass" else None
    asked = asked or (
        'the sum "reweight"' if any(isinstance(entry, tuple) and "reweight" in entry for entry in entries) else None
    )
    if kind.is_grouped and asked is not None:
        raise StrategyError(
            f'{asked} cannot be used with clipping="{kind.name}": a second backward multiplies what flows to all parameters '
            'behind one value by one factor, and here every group has its own. Use schedule="auto": with groups one backward '
            "needs no more memory, since every group is summed as soon as its norm is known"
        )
