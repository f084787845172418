"""What the classical rules read of a site."""

from __future__ import annotations

import math

from dpcompile.ir.site import Convolution, Dense, Rows, Site


def positions_of(site: Site) -> tuple[float, float]:
    """T, and p * d of one group."""
    contraction = site.terms[0].contraction
    groups = contraction.geometry.groups if isinstance(contraction, Convolution) else 1
    positions = contraction.positions if isinstance(contraction, (Convolution, Dense, Rows)) else 1
    return float(positions), float(math.prod(site.shape)) / groups
