"""Measure the present machine: its rates, and how far every kernel is from the formula over a range of sizes.

Sizes are drawn evenly in the logarithm (Sobol points), so that a minute covers all kernels; what would take long or
much memory is left out. See `cost.curve` for what becomes of the measurements.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
LONGEST = 0.012  # predicted seconds of one call
LARGEST = 1.5e8  # bytes of operands
CALLS = 3


@dataclass(frozen=True)
class Calibration:
    """A measured machine. spread: median over all measurements of the half distance of their quartiles."""

    hardware: Hardware
    spread: float
    seconds: float
    measurements: int


def calibrate(row: Hardware, device: torch.device, seconds: float = 50.0, progress: Callable[[str], None] = lambda name: None,
              seed: int = 0) -> Calibration:  # fmt: skip
    """Curves for all kernels on this device, on top of a row with measured rates."""
    started = time.perf_counter()
    progress("rates")
    row = measured_rates(row, device)
    pace = Pace(row.flops("float32"), device)
    curves: dict[str, Curve] = {}
    noise: list[float] = []
    for number, subject in enumerate(SUBJECTS):
        progress(subject.work.form)
        left = seconds - (time.perf_counter() - started)
        share = left * subject.share / sum(other.share for other in SUBJECTS[number:])
        curves[subject.work.form] = curve_of(subject, row, device, share, seed, noise, pace)
    usual = {form: slowed(curve, pace.usual) for form, curve in curves.items()}
    done = replace(row, name="this machine", curves=usual, source="measured by python -m dpcompile calibrate")
    count = sum(len(curve.points) for curve in curves.values())
    return Calibration(done, statistics.median(noise), time.perf_counter() - started, count)


def measured_rates(row: Hardware, device: torch.device) -> Hardware:
    """The peak in float32, the bandwidth and the time of a small operation, in place of the table's."""
    x, small = torch.full((1536, 1536), 0.5, device=device), torch.ones(4, device=device)
    large = torch.full((2**26,), 0.5, device=device)
    target = torch.empty_like(large)
    peak = 2 * 1536**3 / min(repeated(torch.mm, [(x, x)], device, 7))
    bandwidth = 2 * large.nbytes / min(repeated(target.copy_, [(large,)], device, 5))
    launch = statistics.median(repeated(torch.add, [(small, small)], device, 200))
    factor = peak / row.peak_flops["float32"]
    rates = {dtype: rate * factor for dtype, rate in row.peak_flops.items()}
    return replace(row, peak_flops=rates, bandwidth=bandwidth, launch=launch)


def curve_of(subject: Subject, row: Hardware, device: torch.device, seconds: float, seed: int, noise: list[float],
             pace: Pace) -> Curve:  # fmt: skip
    """Measurements of one kernel within a time."""
    points: list[tuple[float, ...]] = []
    logarithms: list[float] = []
    started = time.perf_counter()
    for sizes, work in drawn(subject, row, seed):
        samples = pace.corrected(lambda sizes=sizes: measured(subject, sizes, device))  # type: ignore[misc]
        uncorrected = formula(work, row)
        points.append(tuple(math.log2(max(size, 1.0)) for size in place(work, uncorrected)))
        logarithms.append(math.log(statistics.median(samples) / uncorrected))
        noise.append(spread(samples))
        if time.perf_counter() - started > seconds and len(points) > 2 * len(work.features):
            break
    return Curve(tuple(points), tuple(logarithms))


def slowed(curve: Curve, factor: float) -> Curve:
    """A curve of a machine that is slower throughout."""
    return replace(curve, logarithms=tuple(logarithm + math.log(factor) for logarithm in curve.logarithms))


def measured(subject: Subject, sizes: dict[str, int], device: torch.device) -> list[float]:
    """Seconds of some calls at these sizes."""
    first = subject.operands(sizes, device)
    used = sum(x.nbytes for x in first if isinstance(x, torch.Tensor))
    sets = [first] + [with_workspace_of(first, subject.operands(sizes, device)) for _ in range(copies(used) - 1)]
    return repeated(subject.run, sets, device, CALLS)


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
