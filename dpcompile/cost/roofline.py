"""Seconds of work on a machine: the slower of arithmetic and traffic, plus new memory, plus starting the operations.

Williams, Waterman, Patterson 2009 (roofline). The rate of a matrix product is the peak times the share that its form
reaches, times s / (s + h) for each of its sizes s: a product with a size of h runs at half the rate; a product with fewer
tiles than there are processors leaves some idle. A measured machine corrects the result, form by form, with a curve over
the sizes (`cost.curve`).
"""

from __future__ import annotations

import math

from dpcompile.cost.hardware import Hardware
from dpcompile.ir.cost import Cost, Work

TILE, DEPTH = 128, 1024
"""Rows and columns of a product that one processor computes, and the length at which libraries split its sums (weight
gradients of convolutions have always been split)."""


def seconds(cost: Cost, hardware: Hardware, dtype: str = "float32") -> float:
    """Predicted seconds of a cost that is in numbers (`Cost.at`)."""
    return sum(work_seconds(work, hardware, dtype) for work in cost.work)


def work_seconds(work: Work, hardware: Hardware, dtype: str = "float32") -> float:
    """Predicted seconds of one kernel."""
    uncorrected, curve = formula(work, hardware, dtype), hardware.curves.get(work.form)
    return uncorrected if curve is None else uncorrected * curve.correction(place(work, uncorrected))


def place(work: Work, uncorrected: float) -> tuple[float, ...]:
    """Where a piece of work stands on its form's curve: its sizes, and its length in nanoseconds by the formula."""
    return (*work.features, uncorrected * 1e9)


def formula(work: Work, hardware: Hardware, dtype: str = "float32") -> float:
    """The roofline without correction."""
    arithmetic = work.matrix_flops / rate(work, hardware, dtype) + work.other_flops / (hardware.flops(dtype) / 8)
    traffic = work.bytes_moved / (hardware.cache_bandwidth if work.bytes_moved <= hardware.cache else hardware.bandwidth)
    fresh = work.fresh_bytes / hardware.fresh_bandwidth if hardware.fresh_bandwidth < math.inf else 0.0
    return float(max(arithmetic, traffic) + fresh + work.launches * hardware.launch)


def rate(work: Work, hardware: Hardware, dtype: str = "float32") -> float:
    """FLOP/s that the work's matrix products reach."""
    share = hardware.efficiency.get(work.form, hardware.efficiency["other"])
    if work.product:
        batch, m, n, k = work.product
        for size in (m, n, k):
            share *= size / (size + hardware.half_rate)
        splits = math.ceil(k / DEPTH) if hardware.splits_sums or work.form == "convolution weight gradient" else 1
        tiles = batch * math.ceil(m / TILE) * math.ceil(n / TILE) * splits
        share *= tiles / max(tiles, hardware.units, 1.0)
    return hardware.flops(dtype) * share
