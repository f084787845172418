"""Materialise a few examples at a time into one workspace, square, reduce: O(chunk) memory, nothing kept.

The norm costs one more contraction than reuse does, but neither B * P elements of memory nor T x T matrices; the sum is
then taken by book-keeping. Worth it where p * d is large and there are many positions.
"""

from __future__ import annotations

import sympy

from dpcompile.ir.cost import BYTES, D_IN, D_OUT, GROUPS, PARAMETERS, TAPS, B, Cost, T, Work
from dpcompile.ir.site import Convolution, Dense, Site
from dpcompile.kernels import convolution, dense
from dpcompile.strategies.apart import too_coarse
from dpcompile.strategies.emitter import Emitter
from dpcompile.strategies.scaling import scaled
from dpcompile.strategies.strategy import NormStrategy, SquaredNorm, only

DENSE = Work(
    "fused",
    matrix_flops=2 * B * GROUPS * T * D_IN * D_OUT,
    other_flops=2 * B * PARAMETERS,
    bytes_moved=BYTES * B * GROUPS * (T * (D_IN + D_OUT) + D_IN * D_OUT),
    launches=6 + 14 * sympy.Min(B, sympy.ceiling(B * PARAMETERS / dense.WORKSPACE)),
    product=(B * GROUPS, D_OUT, D_IN, T),
    features=(B * GROUPS, T, D_IN, D_OUT),
)
CONVOLUTION = Work(  # the unfolded operand and the workspace stay in the cache
    "unfolded fused",
    matrix_flops=2 * B * GROUPS * T * D_IN * D_OUT,
    other_flops=6 * B * GROUPS * T * D_IN + 2 * B * PARAMETERS,
    bytes_moved=BYTES * B * GROUPS * T * D_OUT,
    launches=6 + 20 * sympy.Min(B, sympy.ceiling(B * sympy.Max(PARAMETERS, GROUPS * T * D_IN) / dense.WORKSPACE)),
    product=(B * GROUPS, D_OUT, D_IN, T),
    features=(B * GROUPS, T, D_IN / TAPS, D_OUT, TAPS),
)
WORKSPACE = BYTES * sympy.Max(dense.WORKSPACE, PARAMETERS)


def declines(site: Site) -> str | None:
    """Plain matrix products and convolutions with one image per example."""
    found = only(site, Dense, Convolution)
    if isinstance(found, str):
        return found
    if isinstance(found, Dense):
        return "groups of matrix products are materialised" if found.groups != 1 else too_coarse(found, "fused")
    assert isinstance(found, Convolution)
    folded = "several images per example are folded into the convolution's batch" if found.x.folded != 1 else None
    return folded or too_coarse(found, "fused")


def cost(site: Site) -> Cost:
    """One more contraction, no memory."""
    return Cost((DENSE if isinstance(site.terms[0].contraction, Dense) else CONVOLUTION,), workspace_bytes=WORKSPACE)


def emit(site: Site, emitter: Emitter) -> SquaredNorm:
    """The kernel that loops over chunks of examples."""
    contraction = site.terms[0].contraction
    if isinstance(contraction, Dense):
        squared = emitter.call(dense.sqnorm_materialized, emitter.rows(contraction.a), emitter.rows(contraction.g))
    else:
        assert isinstance(contraction, Convolution)
        squared = emitter.call(convolution.sqnorm_materialized, contraction.x.node, contraction.g.node, contraction.geometry)
    return SquaredNorm(scaled(emitter, squared, site.terms[0].scale))


FUSED = NormStrategy("fused", "Lee & Kifer 2021, one layer at a time", declines, cost, emit)
