"""The fastest plan whose rewritten graph stays within a memory budget.

A plan is chosen by prices, its graph is rewritten and walked, and where the walk says too much the next plan may keep so
much less. What counts is therefore always the walk over the graph that will run. Without a budget of the user's the step
may take SHARE times the ordinary step's memory, or ROOM bytes more. That is a preference and never a refusal: it gives way where
it would cost more than DEAREST times the fastest plan's predicted time, unless that plan would fill the machine.

Measured with two threads (an AMD EPYC): predictions of 1.10 to 1.20 times the fastest plan, for 0.40 to 0.76 of its memory, came
out as 0.98 to 1.10; of 1.9 to 2.6 times, for 0.43 to 0.50, as 1.05 to 1.42.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from dpcompile.ir.errors import BudgetError, StrategyError
from dpcompile.ir.site import Cut
from dpcompile.plan.plan import Plan

SHARE: Final = 1.3
ROOM: Final = 2.0**25
ATTEMPTS: Final = 6
FURTHER: Final = 2  # sizes that are tried beyond the first that fits
DEAREST: Final = 1.25
FILLED: Final = 0.5  # share of the machine's memory that the step alone may take before time no longer counts
WORTH: Final = 0.9  # a slower plan is taken for a preference only if it needs at most this share of the memory

Choose = Callable[[int | None, float, Cut | None], Plan]
Measure = Callable[[Plan], float]


def preferred(choose: Choose, peak: Measure, seconds: Measure, microbatch: int | None, ordinary: float, cut: Cut | None,
              machine: float = math.inf) -> Plan:  # fmt: skip
    """The fastest plan within the default budget, if there is one that is worth its time; `machine`: bytes of its memory."""
    budget = max(SHARE * ordinary, ordinary + ROOM)
    tried = list(tightened(choose, peak, microbatch, budget, cut))
    (fastest, most), (leanest, least) = tried[0], min(tried, key=lambda pair: pair[1])
    if least > budget and least > WORTH * most:
        return fastest
    dearest = math.inf if most > FILLED * machine else min(DEAREST, most / max(least, 1.0))
    return leanest if seconds(leanest) <= dearest * seconds(fastest) else fastest


@dataclass(frozen=True)
class Ways:
    """What a plan within a budget may change: chunk sizes from large to small, the cut that was asked for, others to try."""

    sizes: tuple[int, ...]
    asked: Cut | None = None
    others: tuple[Cut, ...] = ()


def within(choose: Choose, peak: Measure, seconds: Measure, ways: Ways, budget: float) -> Plan:
    """The fastest of the plans within the user's budget: the whole batch, a second backward from a cut on, or chunks.

    Chunks become smaller until one size fits, and twice more: smaller ones may stay in the cache. Where a size does not fit,
    a second backward is tried.
    """
    fitting: list[Plan] = []
    needed, left = math.inf, FURTHER
    for size in ways.sizes:
        plan, found = best(tightened(choose, peak, size, budget, ways.asked), budget)
        needed = min(needed, found)
        if found <= budget:
            fitting.append(plan)
            left -= 1
        if left < 0:
            break
        if found <= budget:
            continue
        leanest = behind(choose, size, ways.others if not fitting else ())
        fitting += [plan for plan in leanest if peak(plan) <= budget]
        needed = min([needed, *map(peak, leanest)])
    if fitting:
        return min(fitting, key=seconds)
    examples = f"{size} example{'s' if size > 1 else ''} at a time"
    megabytes = math.ceil(needed / 1e3) / 1e3  # rounded up, so that it can be passed back
    raise BudgetError(
        f"no plan stays within memory_budget ({budget / 1e6:.6g} MB): the leanest, {examples}, is predicted to need "
        f"{megabytes:.3f} MB beyond model and batch. Raise memory_budget to that, or make the model or its inputs smaller"
    )


def behind(choose: Choose, size: int, cuts: Iterable[Cut]) -> list[Plan]:
    """The leanest plan of every cut behind which all norms are right for a second backward (`strategies.apart`)."""
    found = []
    for cut in cuts:
        with contextlib.suppress(StrategyError):
            found.append(choose(size, 0.0, cut))
    return found


def best(plans: Iterable[tuple[Plan, float]], budget: float) -> tuple[Plan, float]:
    """The fastest of the plans within the budget, or the leanest."""
    return min(plans, key=lambda pair: (pair[1] > budget, pair[0].seconds if pair[1] <= budget else pair[1]))


def tightened(choose: Choose, peak: Measure, microbatch: int | None, budget: float,
              cut: Cut | None) -> Iterator[tuple[Plan, float]]:  # fmt: skip
    """Plans that keep less and less, with their peaks, until one is within the budget or none keeps less."""
    limit = math.inf
    for _ in range(ATTEMPTS):
        plan = choose(microbatch, limit, cut)
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
