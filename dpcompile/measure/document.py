"""A row of the hardware table as JSON holds it."""

from __future__ import annotations

import math
from typing import Any

from dpcompile.cost.curve import Curve
from dpcompile.cost.hardware import Hardware


def as_dictionary(row: Hardware) -> dict[str, Any]:
    """A row as JSON holds it."""
    plain = {name: getattr(row, name) for name in ("name", "bandwidth", "memory", "launch", "source", "half_rate", "units",
             "splits_sums", "cache", "cache_bandwidth")}  # fmt: skip
    fresh = None if math.isinf(row.fresh_bandwidth) else row.fresh_bandwidth
    tables = {"peak_flops": dict(row.peak_flops), "efficiency": dict(row.efficiency), "fresh_bandwidth": fresh}
    curves = {form: {"points": curve.points, "logarithms": curve.logarithms} for form, curve in row.curves.items()}
    return {**plain, **tables, "curves": curves}


def from_dictionary(data: dict[str, Any]) -> Hardware:
    """The row that `as_dictionary` made."""
    curves = {
        form: Curve(tuple(map(tuple, curve["points"])), tuple(curve["logarithms"])) for form, curve in data["curves"].items()
    }
    fresh = data["fresh_bandwidth"]
    return Hardware(**{**data, "curves": curves, "fresh_bandwidth": math.inf if fresh is None else fresh})
