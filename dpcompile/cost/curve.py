"""How far a measured machine is from the formula, as a smooth function of a kernel's sizes.

A curve holds scattered measurements: logarithms of sizes, and of measured over predicted seconds. Between them it
interpolates with radial basis functions and smooths away part of the noise; outside of what was measured it stays at
the border, for a formula is a better guide than the continuation of a fit. A kernel that is longer than any measured one
counts as the longest of its shape: cutting its length alone would look it up in a corner of the sizes without data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy.interpolate import RBFInterpolator

ALIKE = 1e-2
"""Share of its range by which a size may differ from a combination of others and still count as one."""

SMOOTHING = 0.05
"""Of the interpolation; chosen so that a measurement is believed to about 5 %."""


@dataclass(frozen=True)
class Curve:
    """Measurements of one form of work.

    points: log2 of the features, one tuple per measurement; the last is the length by the formula.
    logarithms: natural logarithms of measured / predicted.
    """

    points: tuple[tuple[float, ...], ...]
    logarithms: tuple[float, ...]

    def correction(self, features: Sequence[float]) -> float:
        """By what the formula has to be multiplied at these sizes."""
        return corrected(self, tuple(features))

    @cached_property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """The smallest and the largest logarithm of every size."""
        points = np.asarray(self.points)
        return points.min(0), points.max(0)

    @cached_property
    def interpolator(self) -> RBFInterpolator:
        """The fit, in sizes that are scaled to the same range."""
        return RBFInterpolator(self.scaled(np.asarray(self.points)), np.asarray(self.logarithms), smoothing=SMOOTHING,
                               kernel="linear", degree=0)  # fmt: skip

    @cached_property
    def independent(self) -> list[int]:
        """The sizes that say something new: one that never varied, or that others determine, would make the fit singular."""
        unit = self.within_box(np.asarray(self.points))
        kept, known = list[int](), np.ones((len(unit), 1))
        for index in range(unit.shape[1]):
            column = unit[:, index : index + 1]
            rest = column - known @ np.linalg.lstsq(known, column, rcond=None)[0]
            if np.linalg.norm(rest) > ALIKE * np.sqrt(len(unit)):
                kept.append(index)
                known = np.hstack([known, column])
        return kept

    @cached_property
    def shrinking(self) -> np.ndarray:
        """By how much every size falls, and the length with them, per unit of length: the steepest way to a shorter kernel."""
        points = np.asarray(self.points)
        sizes = np.hstack([np.ones((len(points), 1)), points[:, :-1]])
        slopes = np.round(np.linalg.lstsq(sizes, points[:, -1], rcond=None)[0][1:], 6)
        return np.append(slopes / max(float(slopes @ slopes), 1.0), 1.0)

    def shortened(self, points: np.ndarray) -> np.ndarray:
        """Points that are no longer than the longest measured one: large kernels of one shape run at the same rate, and a point
        of large sizes but a length in range would lie where nothing was measured."""
        excess = np.maximum(points[:, -1:] - self.box[1][-1], 0.0)
        return points - excess * self.shrinking

    def within_box(self, points: np.ndarray) -> np.ndarray:
        """Points with every size inside the box and between 0 and 1."""
        low, high = self.box
        return (np.clip(points, low, high) - low) / np.where(high > low, high - low, 1.0)

    def scaled(self, points: np.ndarray) -> np.ndarray:
        """Points as the fit takes them."""
        return self.within_box(points)[:, self.independent]


@lru_cache(maxsize=65536)
def corrected(curve: Curve, features: tuple[float, ...]) -> float:
    """`Curve.correction`, remembered: the layers of a model repeat."""
    point = np.log2(np.maximum(np.asarray(features, dtype=float), 1.0))[None]
    return float(np.exp(curve.interpolator(curve.scaled(curve.shortened(point)))[0]))
