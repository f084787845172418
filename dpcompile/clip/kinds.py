"""Kinds of clipping: the factor by which an example's gradient is multiplied before the sum.

C is max_grad_norm, n the norm of an example's gradient. Every kind has factor * n <= C, so that adding or removing one example
changes the sum by at most C; with groups C_k bounds the group's part, and the parts together are at most sqrt(sum C_k^2) = C.

    kind                     factor                          source
    Flat()                   min(1, C / n)                   Abadi et al. 2016
    Automatic(stability)     C / (n + stability)             Bu et al. 2023, AUTO-S
    Normalized()             C / n, and 0 where n = 0        Bu et al. 2023, AUTO-V
    PSAC(r)                  C / (n + r / (n + r))           Xia et al. 2023
    Global(threshold)        C / Z where n <= Z, else 0      Bu et al. 2021
    PerLayer()               min(1, C_k / n_k) per module    McMahan et al. 2018
    GroupWise({...})         min(1, C_k / n_k) per group     He et al. 2023

`factor` is the formula for one number, which `verify()` compares with; the emitted kernels are in `dpcompile.kernels.clipping`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar, Final

from torch import Tensor

from dpcompile.clip.groups import Group, matched_groups, module_groups
from dpcompile.ir.errors import InvalidInput
from dpcompile.kernels import clipping

Kernel = tuple[Callable[..., Tensor], tuple[Any, ...]]


@dataclass(frozen=True)
class Kind:
    """What all kinds have; see the module for the formulas."""

    name: ClassVar[str]

    def factor(self, norm: float, limit: float) -> float:
        """The factor for a finite norm and a clip norm."""
        raise NotImplementedError

    def kernel(self, underflow: float) -> Kernel:
        """The emitted kernel, and its constants between the mask and the dtype."""
        raise NotImplementedError

    def formula(self) -> str:
        """The factor as text."""
        raise NotImplementedError

    def unclipped(self, norms: Tensor, factors: Tensor, limit: float) -> Tensor:
        """Which gradients count as not clipped: for kinds that scale all of them, those with n <= C."""
        return norms <= limit

    def is_close_call(self, norm: float, limit: float, tolerance: float) -> bool:
        """Whether rounding decides about the factor."""
        return False

    def groups(self, names: Sequence[str]) -> tuple[Group, ...]:
        """The groups of these trainable parameters; none where one factor clips the whole gradient."""
        return ()

    @property
    def own_norm(self) -> float | None:
        """The clip norm, where the kind itself says it."""
        return None

    @property
    def is_grouped(self) -> bool:
        """Whether factors differ between parameters."""
        return False


@dataclass(frozen=True)
class Flat(Kind):
    """min(1, C / n): gradients longer than C are scaled down to it."""

    name: ClassVar[str] = "flat"

    def factor(self, norm: float, limit: float) -> float:
        """The formula for one number."""
        return min(1.0, limit / norm) if norm > 0 else 1.0

    def kernel(self, underflow: float) -> Kernel:
        """The kernel and its constants."""
        return clipping.flat_factors, ()

    def formula(self) -> str:
        """The formula as text."""
        return "min(1, C / n)"

    def unclipped(self, norms: Tensor, factors: Tensor, limit: float) -> Tensor:
        """Those that are not scaled down or left out."""
        return factors == 1


@dataclass(frozen=True)
class Automatic(Kind):
    """C / (n + stability): every gradient is brought to a length below C; no C to tune, since it scales all of them."""

    stability: float = 0.01
    name: ClassVar[str] = "automatic"

    def __post_init__(self) -> None:
        """Refuse bad values."""
        check_positive("stability", self.stability)

    def factor(self, norm: float, limit: float) -> float:
        """The formula for one number."""
        return limit / (norm + self.stability)

    def kernel(self, underflow: float) -> Kernel:
        """The kernel and its constants."""
        return clipping.automatic_factors, (underflow, float(self.stability))

    def formula(self) -> str:
        """The formula as text."""
        return f"C / (n + {self.stability:g})"


@dataclass(frozen=True)
class Normalized(Kind):
    """C / n: every gradient is brought to length C, one that is nothing but rounding too; a zero gradient stays zero."""

    name: ClassVar[str] = "normalized"

    def factor(self, norm: float, limit: float) -> float:
        """The formula for one number."""
        return limit / norm if norm > 0 else 0.0

    def kernel(self, underflow: float) -> Kernel:
        """The kernel and its constants."""
        return clipping.normalized_factors, (underflow,)

    def formula(self) -> str:
        """The formula as text."""
        return "C / n, 0 where n = 0"


@dataclass(frozen=True)
class PSAC(Kind):
    """C / (n + r / (n + r)): as automatic, but small gradients are not made as long as large ones."""

    r: float = 0.1
    name: ClassVar[str] = "psac"

    def __post_init__(self) -> None:
        """Refuse bad values."""
        check_positive("r", self.r)

    def factor(self, norm: float, limit: float) -> float:
        """The formula for one number."""
        return limit / (norm + self.r / (norm + self.r))

    def kernel(self, underflow: float) -> Kernel:
        """The kernel and its constants."""
        return clipping.psac_factors, (underflow, float(self.r))

    def formula(self) -> str:
        """The formula as text."""
        return f"C / (n + r / (n + r)), r = {self.r:g}"


@dataclass(frozen=True)
class Global(Kind):
    """C / Z for gradients with n <= Z, longer ones are left out; Z = threshold, by default C, which may change between steps.

    With Z = C the factor is 1 or 0. With another Z it is C / Z or 0, so that the sensitivity stays C.
    """

    threshold: float | None = None
    name: ClassVar[str] = "global"

    def __post_init__(self) -> None:
        """Refuse bad values."""
        if self.threshold is not None:
            check_norm("threshold", self.threshold)

    def factor(self, norm: float, limit: float) -> float:
        """The formula for one number."""
        threshold = limit if self.threshold is None else self.threshold
        return limit / threshold if norm <= threshold else 0.0

    def kernel(self, underflow: float) -> Kernel:
        """The kernel and its constants."""
        return clipping.global_factors, (None if self.threshold is None else float(self.threshold),)

    def formula(self) -> str:
        """The formula as text."""
        return "1 where n <= C, else 0" if self.threshold is None else f"C / Z where n <= Z = {self.threshold:g}, else 0"

    def unclipped(self, norms: Tensor, factors: Tensor, limit: float) -> Tensor:
        """Those that are not scaled down or left out."""
        return factors > 0

    def is_close_call(self, norm: float, limit: float, tolerance: float) -> bool:
        """A norm at the threshold."""
        threshold = limit if self.threshold is None else self.threshold
        return abs(norm - threshold) <= tolerance * threshold


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


SMALLEST_NORM: Final = 1e-9
"""Squares of float32 numbers vanish below 1e-38, so that squared norms may be low by 1e-24: nothing beside this one's."""


def check_positive(name: str, number: Any) -> float:
    """Refuse what is no positive finite number."""
    is_number = not isinstance(number, bool) and isinstance(number, Real)
    if not is_number or not 0 < number < math.inf:
        raise InvalidInput(f"{name} must be a positive finite number, got {number!r}")
    return float(number)


def check_norm(name: str, number: Any) -> None:
    """Refuse what is no clip norm."""
    if check_positive(name, number) < SMALLEST_NORM:
        raise InvalidInput(f"{name} is {number:g}, below {SMALLEST_NORM:g}, where squares of gradients vanish in float32")
