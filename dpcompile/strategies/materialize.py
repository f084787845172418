"""Materialise the per-example gradients and take their norms; the clipped sum may reuse them.

The oldest way (Opacus calls it grad sample), and on a CPU often the fastest: batched matrix products instead of one,
then a weighted sum in place of the second contraction. It also serves every site that no closed form covers, with
the site's tail applied to every example.
"""

from __future__ import annotations

import math

from torch import fx

from dpcompile.ir.cost import BYTES, D_IN, D_OUT, ELEMENTS, GROUPS, PARAMETERS, B, Cost, T
from dpcompile.ir.site import ChannelScale, Contraction, Convolution, Dense, LayerScale, Site, Total
from dpcompile.kernels import reduction
from dpcompile.strategies.emitter import Emitter
from dpcompile.strategies.per_example import per_example_gradient
from dpcompile.strategies.scaling import scaled
from dpcompile.strategies.strategy import NormStrategy, SquaredNorm
from dpcompile.strategies.tail import through_tail

# No fresh memory for products: they go into memory that is kept between steps (`kernels.workspace`).
NORM = Cost(other_flops=2 * B * PARAMETERS, bytes_moved=BYTES * B * PARAMETERS, launches=1)
DENSE = Cost(
    matrix_flops=2 * B * GROUPS * T * D_IN * D_OUT,
    bytes_moved=BYTES * B * GROUPS * (T * (D_IN + D_OUT) + D_IN * D_OUT),
    launches=2,
    form="batched",
)
UNFOLD = Cost(  # the unfolded operand stays in the cache: six operations' time per element, no traffic
    matrix_flops=2 * B * GROUPS * T * D_IN * D_OUT,
    other_flops=6 * B * GROUPS * T * D_IN,
    bytes_moved=BYTES * B * GROUPS * (T * D_OUT + D_IN * D_OUT),
    launches=4,
    form="unfolded",
)
GROUPED = Cost(
    matrix_flops=2 * B * GROUPS * T * D_IN * D_OUT,
    bytes_moved=BYTES * B * GROUPS * (T * (D_IN + D_OUT) + D_IN * D_OUT),
    fresh_bytes=BYTES * B * PARAMETERS,
    launches=4,
    form="grouped convolution",
)
REDUCED = Cost(
    other_flops=2 * B * ELEMENTS,
    bytes_moved=BYTES * B * ELEMENTS,
    fresh_bytes=BYTES * B * PARAMETERS,
    launches=2,
)
SCALED = Cost(
    other_flops=5 * B * ELEMENTS,
    bytes_moved=6 * BYTES * B * ELEMENTS,
    fresh_bytes=2 * BYTES * B * ELEMENTS,
    launches=5,
)
OTHER = Cost(
    other_flops=2 * B * PARAMETERS,
    bytes_moved=3 * BYTES * B * PARAMETERS,
    fresh_bytes=BYTES * B * PARAMETERS,
    launches=4,
)


def contraction_cost(contraction: Contraction, grouped: bool) -> Cost:
    """The cost of forming one contraction's per-example gradients."""
    match contraction:
        case Dense():
            return DENSE
        case Convolution():
            return GROUPED if grouped else UNFOLD
        case Total():
            return REDUCED
        case LayerScale() | ChannelScale():
            return SCALED
        case _:
            return OTHER


def cost(site: Site, grouped: bool = False) -> Cost:
    """Form the gradients, read them once for the norm."""
    result = contraction_cost(site.terms[0].contraction, grouped) + NORM
    for term in site.terms[1:]:
        result = result + contraction_cost(term.contraction, grouped)
    return result


def emit_with(site: Site, emitter: Emitter, form: str) -> SquaredNorm:
    """Squared norm of the materialised gradients."""
    gradients = {term.contraction.node: per_example_gradient(term.contraction, emitter, form) for term in site.terms}
    if len(site.terms) == 1 and site.isometric:
        squared = emitter.call(reduction.sqnorm, gradients[site.terms[0].contraction.node])
        return SquaredNorm(scaled(emitter, squared, site.terms[0].scale))
    emitter.at(last_of(site))
    return SquaredNorm(emitter.call(reduction.sqnorm, through_tail(site, gradients, emitter)))


def last_of(site: Site) -> fx.Node:
    """The node after which all contractions of a site are known."""
    return site.gradient


def emit(site: Site, emitter: Emitter) -> SquaredNorm:
    """With unfolded convolutions."""
    return emit_with(site, emitter, "unfold")


def emit_grouped(site: Site, emitter: Emitter) -> SquaredNorm:
    """With grouped convolutions."""
    return emit_with(site, emitter, "grouped")


def declines_grouped(site: Site) -> str | None:
    """Only convolutions have a grouped form."""
    kinds = {type(term.contraction) for term in site.terms}
    return None if kinds == {Convolution} else "it needs a convolution"


def elements(site: Site) -> int:
    """Parameter elements of a site."""
    return math.prod(site.shape)


MATERIALIZE = NormStrategy("materialize", "Opacus; Lee & Kifer 2021", lambda site: None, cost, emit, materializes=True)
GROUPED_CONVOLUTION = NormStrategy(
    "grouped",
    "Rochette et al. 2019",
    declines_grouped,
    lambda site: cost(site, grouped=True),
    emit_grouped,
    materializes=True,
)
