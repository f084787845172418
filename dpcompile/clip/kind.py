"""What every kind of clipping answers, and the checks of its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Final

from torch import Tensor

from dpcompile.clip.groups import Group
from dpcompile.ir.errors import InvalidInput

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
