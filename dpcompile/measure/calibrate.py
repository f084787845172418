"""Measure the present machine: its rates, and how far every kernel is from the formula over a range of sizes.

Sizes are drawn evenly in the logarithm (Sobol points), so that three minutes cover all kernels; what would take long or
much memory is left out. See `cost.curve` for what becomes of the measurements.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy.stats import qmc

from dpcompile.cost.curve import Curve
from dpcompile.cost.hardware import Hardware
from dpcompile.cost.roofline import formula, place
from dpcompile.ir.cost import Work
from dpcompile.kernels.workspace import Workspace
from dpcompile.measure.clock import Pace, copies, repeated, spread
from dpcompile.measure.convolution_subjects import CONVOLUTIONS
from dpcompile.measure.linear_subjects import LINEAR
from dpcompile.measure.ordinary_subjects import ORDINARY
from dpcompile.measure.subject import Subject

SUBJECTS = (*LINEAR, *CONVOLUTIONS, *ORDINARY)
Progress = Callable[[str, float], None]
LONGEST = 0.04  # predicted seconds of one call
LARGEST = 1.5e8  # bytes of operands
CALLS = 3
MOST_CALLS = 9  # of what is short
ENOUGH = 0.002  # predicted seconds of all calls, above which there are no more than CALLS
ALONE = 0.6  # share of its rate alone that a thread must keep beside the others
ALIKE = 8  # threads up to which a product of SIDE is that much faster; more of them share clock rate and memory
SIDE = 1536  # of the matrices that rates are measured with


@dataclass(frozen=True)
class Calibration:
    """A measured machine.

    spread: median over all measurements of the half distance of their quartiles. pace: the usual reading of the clock's
    reference product while it was measured, which the row's seconds are for. threads: how many were used; speedup: how many
    times faster they multiply matrices than one does, at the worse end of the measurements.
    """

    hardware: Hardware
    spread: float
    seconds: float
    measurements: int
    pace: float = 1.0
    threads: int = 1
    speedup: float = 1.0

    @property
    def has_its_cores(self) -> bool:
        """Whether threads ran beside each other. Two that share a core are as fast as one, evenly, so the spread is small."""
        return self.speedup >= ALONE * min(self.threads, ALIKE)


def calibrate(row: Hardware, device: torch.device, seconds: float = 180.0, progress: Progress = lambda name, share: None,
              seed: int = 0) -> Calibration:  # fmt: skip
    """Curves for all kernels on this device, on top of a row with measured rates.

    progress(kernel, share of the time that has passed) is called before every measurement.
    """
    started = time.perf_counter()
    progress("rates", 0.0)
    row, speedup = measured_rates(row, device), speedup_of_threads(device)
    pace = Pace(row.flops("float32"), device)
    series = [Series(subject, drawn(subject, row, seed)) for subject in SUBJECTS]
    while (left := next_of(series, time.perf_counter() - started < seconds)) is not None:
        progress(left.subject.work.form, min((time.perf_counter() - started) / seconds, 1.0))
        left.measure(row, device, pace)
    curves = {one.subject.work.form: slowed(one.curve(), pace.usual) for one in series}
    done = replace(row, name="this machine", curves=curves, source="measured by python -m dpcompile calibrate")
    noise = statistics.median(number for one in series for number in one.noise)
    count = sum(len(one.points) for one in series)
    speedup, threads = min(speedup, speedup_of_threads(device)), torch.get_num_threads() if device.type == "cpu" else 1
    return Calibration(done, noise, time.perf_counter() - started, count, pace.usual, threads, speedup)


@dataclass
class Series:
    """The measurements of one kernel so far, and the sizes that are still to come."""

    subject: Subject
    sizes: Iterator[tuple[dict[str, int], Work]]
    points: list[tuple[float, ...]] = field(default_factory=list)
    logarithms: list[float] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)
    spent: float = 0.0
    is_done: bool = False

    @property
    def is_enough(self) -> bool:
        """Whether a curve can be fitted."""
        return self.is_done or (bool(self.points) and len(self.points) > 2 * len(self.points[0]))

    def measure(self, row: Hardware, device: torch.device, pace: Pace) -> None:
        """One more point."""
        started = time.perf_counter()
        found = next(self.sizes, None)
        if found is None:
            self.is_done = True
            return
        sizes, work = found
        uncorrected = formula(work, row)
        samples = pace.corrected(lambda: measured(self.subject, sizes, device, calls_for(uncorrected)))
        self.points.append(tuple(math.log2(max(size, 1.0)) for size in place(work, uncorrected)))
        self.logarithms.append(math.log(statistics.median(samples) / uncorrected))
        self.noise.append(spread(samples))
        self.spent += time.perf_counter() - started

    def curve(self) -> Curve:
        """What was found."""
        return Curve(tuple(self.points), tuple(self.logarithms))


def next_of(series: Sequence[Series], is_time_left: bool) -> Series | None:
    """The kernel that has had the least of its share of the time; when time is over, one that has too few points.

    Kernels take turns, because a machine that is shared is slow for seconds at a time: what hit one kernel alone would make
    it look worse than the others, and the choice is between them.
    """
    waiting = [one for one in series if not one.is_done and (is_time_left or not one.is_enough)]
    return min(waiting, key=lambda one: one.spent / one.subject.share, default=None)


def measured_rates(row: Hardware, device: torch.device) -> Hardware:
    """The peak in float32, the bandwidth and the time of a small operation, in place of the table's."""
    x, small = torch.full((SIDE, SIDE), 0.5, device=device), torch.ones(4, device=device)
    large = torch.full((2**26,), 0.5, device=device)
    target = torch.empty_like(large)
    peak = 2 * SIDE**3 / min(repeated(torch.mm, [(x, x)], device, 7))
    bandwidth = 2 * large.nbytes / min(repeated(target.copy_, [(large,)], device, 5))
    launch = statistics.median(repeated(torch.add, [(small, small)], device, 200))
    factor = peak / row.peak_flops["float32"]
    rates = {dtype: rate * factor for dtype, rate in row.peak_flops.items()}
    return replace(row, peak_flops=rates, bandwidth=bandwidth, launch=launch)


def speedup_of_threads(device: torch.device, side: int = SIDE) -> float:
    """How many times faster a product of matrices of this side is on all threads than on one; 1 on a GPU."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        return 1.0
    x = torch.full((side, side), 0.5)
    together = statistics.median(repeated(torch.mm, [(x, x)], device, 5))
    torch.set_num_threads(1)
    try:
        return min(repeated(torch.mm, [(x, x)], device, 3)) / together
    finally:
        torch.set_num_threads(threads)


def slowed(curve: Curve, factor: float) -> Curve:
    """A curve of a machine that is slower throughout."""
    return replace(curve, logarithms=tuple(logarithm + math.log(factor) for logarithm in curve.logarithms))


def calls_for(seconds: float) -> int:
    """How many calls of so many predicted seconds are measured."""
    return max(CALLS, min(MOST_CALLS, int(ENOUGH / seconds)))


def measured(subject: Subject, sizes: dict[str, int], device: torch.device, calls: int = CALLS) -> list[float]:
    """Seconds of some calls at these sizes."""
    first = subject.operands(sizes, device)
    used = sum(x.nbytes for x in first if isinstance(x, torch.Tensor))
    sets = [first] + [with_workspace_of(first, subject.operands(sizes, device)) for _ in range(copies(used) - 1)]
    return repeated(subject.run, sets, device, calls)


def with_workspace_of(first: tuple[Any, ...], operands: tuple[Any, ...]) -> tuple[Any, ...]:
    """Operands whose result goes into the same memory as the first ones': a step keeps it."""
    return tuple(own if isinstance(own, Workspace) else other for own, other in zip(first, operands, strict=True))


def drawn(subject: Subject, row: Hardware, seed: int) -> Iterator[tuple[dict[str, int], Work]]:
    """Sizes and their price, without what takes too long."""
    low, high = np.log2(np.array(list(subject.ranges.values()), dtype=float)).T
    for point in qmc.Sobol(len(low), seed=seed).random(2**11):
        numbers = np.rint(2 ** (low + point * (high - low))).astype(int)
        sizes = subject.sizes(dict(zip(subject.ranges, map(int, numbers), strict=True)))
        if sizes is None:
            continue
        work = subject.priced(sizes)
        if formula(work, row) <= LONGEST and operand_bytes(work) <= LARGEST:
            yield sizes, work


def operand_bytes(work: Work) -> float:
    """An estimate from the traffic."""
    return float(work.bytes_moved + work.fresh_bytes)
