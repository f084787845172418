"""Predicted time and memory of a whole step, and the questions "what if" and "how large can a batch be".

Time is the sum over the nodes of the rewritten graph (`predict.nodes`), memory a walk over them (`predict.memory`). Both are
those of the eager backend; what inductor fuses and reorders is measured, not predicted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from numbers import Real
from typing import Any

import torch

from dpcompile.cost.hardware import Hardware, named
from dpcompile.forecast.fitting import Ways, halved, preferred, within
from dpcompile.forecast.rewriting import Keep, Source, for_eager, nothing
from dpcompile.ir.errors import InvalidInput
from dpcompile.ir.graph import JointGraph
from dpcompile.ir.randomness import has_draws
from dpcompile.ir.site import Cut
from dpcompile.measure.tune import Tuned
from dpcompile.plan.cutting import asked_cut, worth_trying
from dpcompile.plan.plan import Plan
from dpcompile.plan.select import EMPTY, Wanted, choose
from dpcompile.predict.memory import bytes_of as bytes_of_node
from dpcompile.predict.memory import memory
from dpcompile.predict.nodes import predict
from dpcompile.strategies.ordinary import ORDINARY

UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
LARGEST = 2**50
CLEARLY = 0.92
"""Chunks must be predicted to take at most this share of the whole batch's time: predictions are that uncertain."""
ALIKE = 1.03
"""Of chunks whose predicted times are within this factor of the best the one that needs the least memory is taken."""
LARGER = 16
"""So many times as many examples as the first batch has may come later."""
PER_THREAD = 8
"""The fewest examples for each of several threads."""


@dataclass(frozen=True)
class Forecast:
    """A plan with the predicted step: seconds of it and of the ordinary step, peak bytes beyond model and batch."""

    plan: Plan
    hardware: str
    batch_size: int
    seconds: float
    ordinary_seconds: float
    peak_bytes: float

    def __str__(self) -> str:
        ratio = self.seconds / max(self.ordinary_seconds, 1e-12)
        chunk = f", chunks of {self.plan.microbatch}" if self.plan.is_chunked else ""
        return (
            f"B={self.batch_size} on {self.hardware}{chunk}: {self.seconds * 1e3:.2f} ms "
            f"({ratio:.2f} of the ordinary step's {self.ordinary_seconds * 1e3:.2f} ms), peak {self.peak_bytes / 1e6:.1f} MB"
        )


@dataclass(frozen=True)
class Outlook:
    """Everything that predictions for one captured model need."""

    source: Source
    hardware: Hardware
    strategy: Wanted
    microbatch: int | None
    eager: bool = True
    schedule: str = "auto"
    tuned: Tuned | None = None
    copies: bool = False
    steps: dict[Any, JointGraph] = field(default_factory=dict, compare=False, repr=False)

    def plan(self, batch_size: int, row: Hardware, budget: float | None, keep: Keep = nothing) -> Plan:
        """The fastest plan within a budget in bytes, or within the default preference."""

        def pick(chunk: int | None, limit: float, cut: Cut | None) -> Plan:
            return self.chosen(batch_size, row, chunk, limit, cut)

        def peak(plan: Plan) -> float:
            return self.peak_bytes(plan, batch_size, keep)

        def spent(plan: Plan) -> float:
            return self.seconds(plan, row, batch_size)

        if budget is not None:
            return within(pick, peak, spent, self.ways(batch_size), budget)
        ordinary = memory(self.source.joint, min(self.microbatch or batch_size, batch_size)).peak

        def lean(chunk: int | None) -> Plan:
            return preferred(pick, peak, spent, chunk, ordinary, self.asked, row.memory)

        whole = lean(self.microbatch)
        return self.in_cache(whole, lean, batch_size, row) if self.may_chunk(row) and whole.cut is None else whole

    def may_chunk(self, row: Hardware) -> bool:
        """Whether chunks may be chosen for their speed: eager steps on a CPU without random draws, where the user leaves it open.

        On other devices nothing has been measured, inductor fuses most of what the cache saves, and chunks draw anew.
        """
        is_open = self.schedule == "auto" and self.strategy == "auto" and self.microbatch is None and self.tuned is None
        is_cpu = row.cache > 0 and math.isfinite(row.fresh_bandwidth)
        return is_open and is_cpu and self.eager and not has_draws(self.source.joint.graph.nodes)

    def in_cache(self, whole: Plan, of_size: Callable[[int], Plan], batch_size: int, row: Hardware) -> Plan:
        """The plan in chunks whose values stay in the cache, where that is predicted to be clearly faster; of_size: a plan in
        chunks of a size, with the preference for the whole step's memory.

        Chunks are halved until two sizes in a row are no better than the best before them; of those whose predictions are alike
        the leanest that is clearly faster is taken. The plan serves other batch sizes too: it must be faster for a much larger
        batch as well, so that a small first one settles nothing.
        """
        tried, worse = [(self.seconds(whole, row, batch_size), whole)], 0
        for size in islice(halved(batch_size), 1, None):
            if size < least_chunk() or worse == 2:
                break
            plan = of_size(size)
            spent, fastest = self.seconds(plan, row, batch_size), min(seconds for seconds, _ in tried)
            worse = 0 if spent < fastest else worse + 1
            tried.append((spent, plan))
        limit, sizes = ALIKE * min(seconds for seconds, _ in tried), (batch_size, LARGER * batch_size)
        alike = sorted((plan for seconds, plan in tried if seconds <= limit), key=lambda plan: self.peak_bytes(plan, batch_size))
        is_clear = (all(self.seconds(plan, row, n) <= CLEARLY * self.seconds(whole, row, n) for n in sizes) for plan in alike)
        return next((plan for plan, clear in zip(alike, is_clear, strict=True) if clear or plan is whole), whole)

    def chosen(self, batch_size: int, row: Hardware, chunk: int | None, limit: float, cut: Cut | None) -> Plan:
        """The best plan with what was measured, which holds for one batch size on one machine."""
        size = min(chunk or batch_size, batch_size)
        is_measured = self.tuned is not None and row is self.hardware and size == self.tuned.batch_size
        measured = self.tuned.seconds if self.tuned is not None and is_measured else EMPTY
        plan = choose(self.source.sites, row, batch_size, self.strategy, chunk, limit, cut, measured)
        return replace(plan, copies=self.copies)

    @property
    def asked(self) -> Cut | None:
        """The cut that the user wants."""
        return asked_cut(self.schedule, self.strategy, self.source.sites, self.source.cuts)

    def ways(self, batch_size: int) -> Ways:
        """What may change to stay within a budget, as far as the schedule leaves it open."""
        largest = min(self.microbatch or batch_size, batch_size)
        sizes = tuple(halved(largest)) if self.schedule != "one-pass" else (largest,)
        others = worth_trying(self.source.cuts) if self.schedule == "auto" and self.strategy == "auto" else ()
        return Ways(sizes, self.asked, others)

    def forecast(self, batch_size: int, hardware: Hardware | None = None, budget: float | None = None) -> Forecast:
        """Plan, rewrite and predict."""
        row = hardware or self.hardware
        return self.of_plan(self.plan(batch_size, row, budget), row, batch_size)

    def of_plan(self, plan: Plan, row: Hardware, batch_size: int) -> Forecast:
        """Predict the step of a plan."""
        spent = self.seconds(plan, row, batch_size)
        ordinary = sum(predict(self.source.joint.graph, row, batch_size).values())
        return Forecast(plan, row.name, batch_size, spent, ordinary, self.peak_bytes(plan, batch_size))

    def seconds(self, plan: Plan, row: Hardware, batch_size: int) -> float:
        """Predicted seconds of all chunks of a step."""
        size = plan.at_a_time(batch_size)
        chunks = math.ceil(batch_size / size) if size else 0
        return chunks * sum(predict(self.rewritten(plan).graph, row, size).values())

    def peak_bytes(self, plan: Plan, batch_size: int, keep: Keep = nothing) -> float:
        """Predicted peak of one chunk, and of the sums that chunks are added up in."""
        joint = self.rewritten(plan, keep)
        return memory(joint, plan.at_a_time(batch_size)).peak + self.added_bytes(plan)

    def added_bytes(self, plan: Plan) -> float:
        """What the sums of chunks are added up in: a gradient's size does not depend on the batch."""
        sums = [node for node in self.rewritten(plan).gradients().values() if node is not None]
        return sum(bytes_of_node(node, 1) for node in sums) if plan.is_chunked else 0.0

    def rewritten(self, plan: Plan, keep: Keep = nothing) -> JointGraph:
        """The step of a plan, which depends on its strategies only; made once."""
        key = tuple(plan.strategies().items())
        if key not in self.steps:
            self.steps[key] = self.source.rewritten(plan, keep)
            if self.eager:
                for_eager(self.steps[key], keep)
        return self.steps[key]

    def final(self, plan: Plan, keep: Keep) -> JointGraph:
        """The step of a plan, rewritten last of all, so that what was recorded on the way is its own."""
        key = tuple(plan.strategies().items())
        if next(reversed(self.steps), None) != key:
            self.steps.pop(key, None)
        return self.rewritten(plan, keep)

    def what_if(self, batch_size: int, hardware: str | Hardware | None, memory_budget: str | float | None) -> Forecast:
        """The best plan under other circumstances."""
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise InvalidInput(f"batch_size must be a positive integer, got {batch_size!r}")
        return self.forecast(batch_size, named(hardware), None if memory_budget is None else bytes_of(memory_budget))

    def max_batch_size(self, memory_budget: str | float) -> int:
        """The largest batch for which some plan's predicted peak stays within the budget; 0 if one example does not fit."""
        budget = bytes_of(memory_budget)
        if any(name == ORDINARY.name for name in norms_of(self.strategy)):
            raise InvalidInput("the plan takes one example at a time: a batch of any size fits where one example does")
        return largest(lambda size: self.leanest_peak(size) <= budget)

    def leanest_peak(self, batch_size: int) -> float:
        """Predicted peak memory of the leanest plan for a batch that is taken at once.

        The plan that keeps least of its own may hold operands for longer, so the fastest one is looked at as well.
        """
        plans = [self.chosen(batch_size, self.hardware, None, limit, self.asked) for limit in (0.0, math.inf)]
        return min(self.peak_bytes(plan, batch_size) for plan in plans)


def least_chunk() -> int:
    """The fewest examples of a chunk for speed: several threads share the examples, and wait for each other over a few.

    Measured on networks of the first paper with two threads, on a machine that was not quiet: one example at a time 1.3 to 1.8
    times the whole batch, two at a time 1.0 to 1.2, where one thread takes 0.8 to 1.0 in the chunks that are planned for it.
    """
    threads = torch.get_num_threads()
    return 1 if threads == 1 else PER_THREAD * threads


def norms_of(strategy: Wanted) -> list[str]:
    """The norms that a strategy names."""
    entries = strategy.values() if isinstance(strategy, Mapping) else [strategy]
    return [entry if isinstance(entry, str) else entry[0] for entry in entries]


def bytes_of(budget: str | float) -> float:
    """Bytes from a number or a text such as "512 MiB", "2GB", ".5 gb" or "1.5e9"; "Gb" would be gigabits."""
    given: object = bytes_of_text(budget) if isinstance(budget, str) else budget
    number = math.nan if isinstance(given, bool) or not isinstance(given, Real) else as_float(given)
    if not 0 < number < math.inf:
        raise InvalidInput(
            'memory_budget must be a positive number of bytes or a text such as "512 MiB" or "2 GB" (Gb would be gigabits), '
            f"got {shortened(budget)}"
        )
    if isinstance(budget, str) and number < 1000 and budget.strip()[-1] in "0123456789.":
        raise InvalidInput(f'memory_budget={budget!r} would be {number:g} bytes; say the unit, "{number:g} GB"')
    return number


def as_float(number: Real) -> float:
    """A number in double precision; infinite where it is too large."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


def bytes_of_text(text: str) -> float | None:
    """Bytes from a number with or without a unit."""
    found = re.fullmatch(r"\s*((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*([KMGT]?i?B?|[kmgt]?i?b?)\s*", text)
    prefix = found[2].upper().removesuffix("B") if found is not None else ""
    return float(found[1]) * UNITS[prefix] if found is not None and prefix in UNITS else None


def shortened(value: object) -> str:
    """A value as text that fits a line; Python refuses to write numbers of thousands of digits."""
    text = f"an integer of {value.bit_length()} bits" if isinstance(value, int) and value.bit_length() > 128 else repr(value)
    return text if len(text) < 80 else text[:77] + "..."


def largest(fits: Callable[[int], bool]) -> int:
    """The largest size that fits, if fitting never comes back: doubling, then halving the distance."""
    if not fits(1):
        return 0
    low = 1
    while low < LARGEST and fits(2 * low):
        low *= 2
    high = 2 * low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
