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

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dpcompile.clip.kind import Kernel, Kind, check_norm, check_positive
from dpcompile.kernels import clipping


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
