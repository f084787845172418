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
"""Rows and columns of a product that one processor computes, and the length at which libraries split its sums."""


def seconds(cost: Cost, hardware: Hardware, dtype: str = "float32") -> float:
    """Predicted seconds of a cost that is in numbers (`Cost.at`)."""
    return sum(work_seconds(work, hardware, dtype) for work in cost.work)


def work_seconds(work: Work, hardware: Hardware, dtype: str = "float32") -> float:
    """Predicted seconds of one kernel."""
    curve = hardware.curves.get(work.form)
    correction = curve.correction(work.features) if curve is not None else 1.0
    return formula(work, hardware, dtype) * correction


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
        tiles = batch * math.ceil(m / TILE) * math.ceil(n / TILE) * math.ceil(k / DEPTH)
        share *= tiles / max(tiles, hardware.units, 1.0)
    return hardware.flops(dtype) * share
