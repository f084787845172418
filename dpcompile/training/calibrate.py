"""The noise that a privacy budget asks for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dp_accounting import DpEvent, SelfComposedDpEvent
from scipy.optimize import brentq

from dpcompile.ir.errors import InvalidInput
from dpcompile.training.accountant import check_delta, epsilon_of
from dpcompile.training.release import Release, Sampling

PRECISION = 1e-4
LEAST, MOST = 0.125, 1e4
"""Noise multipliers that are looked at: below the first, epsilon is in the hundreds and distributions do not fit in memory."""


def noise_multiplier_for(target_epsilon: float, target_delta: float, sampling: Sampling, steps: int, kind: str = "pld") -> float:
    """The smallest noise multiplier, up to 1e-4, with which this many steps (or passes) spend at most target_epsilon.

    Raises InvalidInput where no amount of noise is enough, or the target is not positive.
    """
    check_target(target_epsilon, steps)
    check_delta(target_delta)

    def spent(noise: float) -> float:
        return epsilon_of(composed(sampling, noise, steps), target_delta, kind)

    if spent(MOST) > target_epsilon:
        raise InvalidInput(
            f"no noise multiplier up to {MOST:g} gives epsilon {target_epsilon:g} at delta {target_delta:g} over {steps} steps; "
            "raise target_epsilon or target_delta, or train for fewer epochs"
        )
    # Renyi accounting is quick and never far above: privacy loss distributions take a second each, and more with less noise.
    start = 1.0 if kind == "rdp" else noise_multiplier_for(target_epsilon, target_delta, sampling, steps, "rdp")
    return smallest(spent, target_epsilon, start, 0.5 if kind == "rdp" else 0.85)


def smallest(spent: Callable[[float], float], target: float, upper: float, shrink: float) -> float:
    """The smallest noise with spent(noise) <= target: from a guess in steps of the factor `shrink`, then by Brent's method."""
    while spent(upper) > target:
        upper /= shrink
    while spent(lower := upper * shrink) <= target:
        upper = lower
        if upper <= LEAST:
            return upper
    found = float(brentq(lambda noise: spent(noise) - target, lower, upper, xtol=PRECISION))
    while spent(found) > target:
        found += PRECISION
    return found


def composed(sampling: Sampling, noise_multiplier: float, steps: int) -> DpEvent:
    """All steps of a training with one noise multiplier."""
    return SelfComposedDpEvent(Release(sampling, noise_multiplier).event, steps)


def check_target(target_epsilon: Any, steps: Any) -> None:
    """A budget and a length of training that noise can be found for."""
    is_number = isinstance(target_epsilon, (int, float)) and not isinstance(target_epsilon, bool)
    if not is_number or not 0 < target_epsilon < math.inf:
        raise InvalidInput(f"target_epsilon must be a positive finite number, got {target_epsilon!r}")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InvalidInput(f"epochs must give at least one step, got {steps!r}")
