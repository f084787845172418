"""Kinds of clipping with one factor for every group of parameters; see `dpcompile.clip.kinds` for all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from dpcompile.clip.groups import Group, matched_groups, module_groups
from dpcompile.clip.kind import Kernel, check_norm
from dpcompile.clip.kinds import Flat
from dpcompile.ir.errors import InvalidInput
from dpcompile.kernels import clipping


@dataclass(frozen=True)
class Grouped(Flat):
    """min(1, C_k / n_k) for the part of the gradient that belongs to group k."""

    def kernel(self, underflow: float) -> Kernel:
        """The kernel and its constants."""
        return clipping.group_factors, ()

    def formula(self) -> str:
        """The formula as text."""
        return "min(1, C_k / n_k)"

    @property
    def is_grouped(self) -> bool:
        """Always."""
        return True


@dataclass(frozen=True)
class PerLayer(Grouped):
    """One group for every module that owns trainable parameters; C_k = C / sqrt(K) for K groups."""

    name: ClassVar[str] = "per-layer"

    def groups(self, names: Sequence[str]) -> tuple[Group, ...]:
        """The groups of these parameters."""
        return module_groups(names)


@dataclass(frozen=True)
class GroupWise(Grouped):
    """Groups by name or glob with their clip norms: GroupWise({"encoder.*": 0.5, "head.*": 1.0}).

    Every trainable parameter is in exactly one group; a name comes before any glob. The values are the C_k, so max_grad_norm is
    left out: it becomes sqrt(sum C_k^2), and what is assigned to it later scales all C_k alike.
    """

    norms: Mapping[str, float] = field(hash=False)
    name: ClassVar[str] = "group-wise"

    def __post_init__(self) -> None:
        """Refuse bad values."""
        if not isinstance(self.norms, Mapping) or not self.norms or not all(isinstance(key, str) for key in self.norms):
            raise InvalidInput(f"GroupWise takes {{parameter or glob: clip norm}}, got {self.norms!r}")
        for pattern, norm in self.norms.items():
            check_norm(f"the clip norm of {pattern!r}", norm)
        object.__setattr__(self, "norms", {pattern: float(norm) for pattern, norm in self.norms.items()})

    def groups(self, names: Sequence[str]) -> tuple[Group, ...]:
        """The groups of these parameters."""
        return matched_groups(names, self.norms)

    @property
    def own_norm(self) -> float:
        """The clip norms together."""
        return math.hypot(*self.norms.values())
