"""Convolutions by the library's own weight gradient, example by example: what training has made fast in any library.

grouped-gradient  G[b] from one weight gradient with a group for every example; the sum reuses G
single            G[b] from one weight gradient after another; the sum reuses G
fused-single      the same, of which only ||G[b]||^2 is kept; the sum is taken by book-keeping, see `strategies.apart`
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import sympy

from dpcompile.ir.cost import BYTES, D_IN, D_OUT, GROUPS, PARAMETERS, T_IN, TAPS, B, Cost, T, Work
from dpcompile.ir.site import Convolution, Site
from dpcompile.kernels import own_gradient
from dpcompile.strategies import materialize
from dpcompile.strategies.apart import too_coarse
from dpcompile.strategies.emitter import Emitter
from dpcompile.strategies.scaling import scaled
from dpcompile.strategies.strategy import NormStrategy, SquaredNorm, only

FOLDED: Final = "several images per example are folded into the convolution's batch"
GROUPED = materialize.grouped_work("grouped weight gradient")
IN_BLOCKS = 8 - 7 * sympy.Min(1, sympy.Mod(D_IN / TAPS, 16) + sympy.Mod(D_OUT, 16))
"""8 where libraries have kernels for these numbers of channels, multiples of 16, that are twice as fast; else 1."""
GROUPED_GRADIENT_WORK = replace(  # the gradients once more in the library's own layout, and once more in ours
    GROUPED, fresh_bytes=3 * materialize.KEPT, features=(*GROUPED.features, IN_BLOCKS)
)
SINGLE_WORK = Work(  # into memory that is kept between steps, as products are (`kernels.workspace`)
    "single weight gradients",
    matrix_flops=2 * B * GROUPS * T * D_IN * D_OUT,
    bytes_moved=BYTES * B * GROUPS * (T * (D_IN / TAPS + D_OUT) + 2 * D_IN * D_OUT),
    launches=2 + 8 * B,
    product=(B * GROUPS, D_OUT, D_IN, T),
    features=(B, T, D_IN / TAPS, D_OUT, TAPS, T_IN / T, GROUPS, IN_BLOCKS),
)
FUSED_SINGLE_WORK = replace(SINGLE_WORK, other_flops=2 * B * PARAMETERS, launches=2 + 14 * B)  # and their norms, in the cache


def declines_single(site: Site) -> str | None:
    """Convolutions with one image per example, however often the parameter is used."""
    several = any(isinstance(c, Convolution) and c.x.folded != 1 for c in (term.contraction for term in site.terms))
    return materialize.declines_grouped(site) or (FOLDED if several else None)


def declines_fused(site: Site) -> str | None:
    """One convolution with one image per example, and a tail that keeps norms."""
    found = only(site, Convolution)
    if isinstance(found, str):
        return found
    assert isinstance(found, Convolution)
    return FOLDED if found.x.folded != 1 else too_coarse(found, "fused-single")


def emit_grouped(site: Site, emitter: Emitter) -> SquaredNorm:
    """Squared norm of what one call materialises."""
    return materialize.emit_with(site, emitter, "grouped-gradient")


def emit_single(site: Site, emitter: Emitter) -> SquaredNorm:
    """Squared norm of what a call per example materialises."""
    return materialize.emit_with(site, emitter, "single")


def emit_fused(site: Site, emitter: Emitter) -> SquaredNorm:
    """The kernel that forgets a gradient once it has its norm."""
    contraction = site.terms[0].contraction
    assert isinstance(contraction, Convolution)
    operands = contraction.x.node, contraction.g.node, contraction.geometry
    return SquaredNorm(scaled(emitter, emitter.call(own_gradient.sqnorm_single, *operands), site.terms[0].scale))


GROUPED_GRADIENT = NormStrategy(
    "grouped-gradient",
    "Rochette et al. 2019 (the backward half of multi)",
    materialize.declines_grouped,
    lambda site: materialize.cost(site, lambda contraction: GROUPED_GRADIENT_WORK),
    emit_grouped,
    materializes=True,
)
SINGLE = NormStrategy(
    "single",
    "Rochette et al. 2019 (the weight gradients of naive)",
    declines_single,
    lambda site: materialize.cost(site, lambda contraction: SINGLE_WORK),
    emit_single,
    materializes=True,
)
FUSED_SINGLE = NormStrategy(
    "fused-single",
    "Lee & Kifer 2021, one layer at a time",
    declines_fused,
    lambda site: Cost((FUSED_SINGLE_WORK,), workspace_bytes=3 * BYTES * PARAMETERS),
    emit_fused,
)
