"""The fastest plan whose rewritten graph stays within a memory budget.

A plan is chosen by prices, its graph is rewritten and walked, and where the walk says too much the next plan may keep so
much less. What counts is therefore always the walk over the graph that will run. Without a budget of the user's the step
may take SHARE times the ordinary step's memory, or ROOM bytes more; that is a preference and never a refusal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final

from dpcompile.ir.errors import BudgetError
from dpcompile.plan.plan import Plan

SHARE: Final = 1.3
ROOM: Final = 2.0**25
ATTEMPTS: Final = 6
WORTH: Final = 0.9  # a slower plan is taken for a preference only if it needs at most this share of the memory

Choose = Callable[[int | None, float], Plan]
Peak = Callable[[Plan], float]


def preferred(choose: Choose, peak: Peak, microbatch: int | None, ordinary: float) -> Plan:
    """The fastest plan within the default budget, if there is one."""
    budget = max(SHARE * ordinary, ordinary + ROOM)
    tried = list(tightened(choose, peak, microbatch, budget))
    (fastest, most), (leanest, least) = tried[0], min(tried, key=lambda pair: pair[1])
    return leanest if least <= budget or least <= WORTH * most else fastest


def within(choose: Choose, peak: Peak, microbatch: int | None, batch_size: int, budget: float) -> Plan:
    """The fastest plan within the user's budget: the whole batch if possible, else in chunks as large as possible."""
    needed = math.inf
    for size in halved(min(microbatch or batch_size, batch_size)):
        plan, found = min(tightened(choose, peak, size, budget), key=lambda pair: (pair[1] > budget, pair[0].seconds))
        needed = min(needed, found)
        if found <= budget:
            return plan
    raise BudgetError(
        f"no plan stays within memory_budget ({budget / 1e6:.1f} MB): the leanest, one example at a time, is predicted to need "
        f"{needed / 1e6:.1f} MB beyond model and batch. Raise memory_budget to that, or make the model or its inputs smaller"
    )


def tightened(choose: Choose, peak: Peak, microbatch: int | None, budget: float) -> Iterator[tuple[Plan, float]]:
    """Plans that keep less and less, with their peaks, until one is within the budget or none keeps less."""
    limit = math.inf
    for _ in range(ATTEMPTS):
        plan = choose(microbatch, limit)
        found = peak(plan)
        yield plan, found
        if found <= budget or plan.resident_bytes > limit:
            return
        limit = plan.resident_bytes - max(found - budget, 0.01 * plan.resident_bytes)


def halved(size: int) -> Iterator[int]:
    """A size, half of it, and so on down to one."""
    while size > 1:
        yield size
        size = -(-size // 2)
    yield 1
