"""Seconds of a cost on a machine: the slower of arithmetic and traffic, plus new memory, plus starting the operations.

Williams, Waterman, Patterson 2009 (roofline), with an efficiency per form of matrix work and a launch term.
"""

from __future__ import annotations

from dpcompile.cost.hardware import Hardware
from dpcompile.ir.cost import Cost


def seconds(cost: Cost, hardware: Hardware, dtype: str = "float32") -> float:
    """Predicted seconds of a cost that is in numbers (`Cost.at`)."""
    rate = hardware.flops(dtype) * hardware.efficiency.get(cost.form, 0.7)
    arithmetic = cost.matrix_flops / rate + cost.other_flops / (hardware.flops(dtype) / 8)
    traffic = cost.bytes_moved / (hardware.cache_bandwidth if cost.bytes_moved <= hardware.cache else hardware.bandwidth)
    fresh = cost.fresh_bytes / hardware.fresh_bandwidth
    fresh += cost.resident_bytes / (4 * hardware.fresh_bandwidth)  # memory that later work of the step cannot take over
    return float(max(arithmetic, traffic) + fresh + cost.launches * hardware.launch)
