"""The fastest options of all sites together whose kept memory stays within a limit: a knapsack with one choice per site.

    minimise sum over sites s and options o of x[s, o] * seconds[s, o]
    subject to sum over o of x[s, o] = 1 for every site s, sum of x[s, o] * resident[s, o] <= limit, x binary

Solved exactly by scipy's branch and cut (HiGHS). Pure: no graph is looked at, equal prices give equal choices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from dpcompile.plan.plan import Option


def fastest_within(options: Sequence[Sequence[Option]], limit: float) -> list[Option] | None:
    """One option for every site, or None if no choice keeps its memory within the limit."""
    fastest = [min(choices, key=lambda option: option.seconds) for choices in options]
    if kept(fastest) <= limit:
        return fastest
    if kept(leanest(options)) > limit:
        return None
    flat = [(site, option) for site, choices in enumerate(options) for option in choices]
    ones = csr_array((np.ones(len(flat)), ([site for site, _ in flat], range(len(flat)))), shape=(len(options), len(flat)))
    resident = np.array([[option.cost.resident_bytes for _, option in flat]], dtype=float)
    unit = max(
        limit, 1.0
    )  # bytes in units of the limit, seconds in units of the fastest plan: the solver's tolerances are absolute
    result = milp(
        np.array([option.seconds for _, option in flat]) / sum(option.seconds for option in fastest),
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(ones, 1, 1), LinearConstraint(resident / unit, -math.inf, limit / unit)],
    )
    assert result.success, result.message  # the leanest choice is feasible
    taken = {site: option for (site, option), x in zip(flat, result.x, strict=True) if x > 0.5}
    return [taken[site] for site in range(len(options))]


def leanest(options: Sequence[Sequence[Option]]) -> list[Option]:
    """The options that keep least, of these the fastest."""
    return [min(choices, key=lambda option: (option.cost.resident_bytes, option.seconds)) for choices in options]


def kept(options: Sequence[Option]) -> float:
    """Bytes that the options keep until the clipped sums."""
    return float(sum(option.cost.resident_bytes for option in options))
