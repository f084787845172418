"""Materialise the per-example gradients and take their norms; the clipped sum may reuse them.

The oldest way (Opacus calls it grad sample), and on a CPU often the fastest: batched matrix products instead of one,
then a weighted sum in place of the second contraction. It also serves every site that no closed form covers, with
the site's tail applied to every example.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace

import sympy
from torch import fx

from dpcompile import torch_private
from dpcompile.ir.cost import BYTES, D_IN, D_OUT, ELEMENTS, GROUPS, PARAMETERS, T_IN, TAPS, WIDTH, B, Cost, T, Work
from dpcompile.ir.site import ChannelScale, Contraction, Convolution, Dense, LayerScale, Opaque, Rows, Site, Total
from dpcompile.kernels import reduction, workspace
from dpcompile.strategies.emitter import Emitter
from dpcompile.strategies.per_example import per_example_gradient
from dpcompile.strategies.scaling import scaled
from dpcompile.strategies.strategy import NormStrategy, SquaredNorm
from dpcompile.strategies.tail import through_tail

KEPT = BYTES * B * PARAMETERS

# No fresh memory for products: they go into memory that is kept between steps (`kernels.workspace`).
NORM = Work("norm", other_flops=2 * B * PARAMETERS, bytes_moved=KEPT, launches=8, features=(B, PARAMETERS))
DENSE = Work(
    "materialize",
    matrix_flops=2 * B * GROUPS * T * D_IN * D_OUT,
    bytes_moved=BYTES * B * GROUPS * (T * (D_IN + D_OUT) + D_IN * D_OUT),
    launches=5,
    product=(B * GROUPS, D_OUT, D_IN, T),
    features=(B * GROUPS, T, D_IN, D_OUT),
)
UNFOLDED = B * GROUPS * T * D_IN
UNFOLD = Work(  # a few examples at a time: the unfolded operand stays in the cache, six operations' time per element
    "unfolded materialize",
    matrix_flops=2 * UNFOLDED * D_OUT,
    other_flops=6 * UNFOLDED,
    bytes_moved=BYTES * B * GROUPS * (T * D_OUT + D_IN * D_OUT),
    launches=6 + 12 * sympy.Min(B, sympy.ceiling(UNFOLDED / workspace.UNFOLDED)),
    product=(B * GROUPS, D_OUT, D_IN, T),
    features=(B * GROUPS, T, D_IN / TAPS, D_OUT, TAPS),
)


def grouped_work(form: str) -> Work:
    """One convolution whose groups are the examples."""
    return Work(
        form,
        matrix_flops=2 * UNFOLDED * D_OUT,
        bytes_moved=BYTES * B * GROUPS * (T * (D_IN / TAPS + D_OUT) + D_IN * D_OUT),
        fresh_bytes=2 * KEPT,
        launches=11,
        product=(B * GROUPS, D_OUT, D_IN, T),
        features=(B * GROUPS, T, D_IN / TAPS, D_OUT, TAPS, T_IN / T),  # the last: the stride
    )


GROUPED = grouped_work("grouped convolution")
DEPTHWISE = grouped_work("depthwise convolution")
REDUCED = Work(
    "total", other_flops=2 * B * ELEMENTS, bytes_moved=BYTES * B * ELEMENTS, fresh_bytes=KEPT, launches=4,
    features=(B, ELEMENTS, PARAMETERS),
)  # fmt: skip
LAYER_SCALED = Work(
    "layer scale", other_flops=5 * B * ELEMENTS, bytes_moved=4 * BYTES * B * ELEMENTS,
    fresh_bytes=BYTES * B * ELEMENTS, launches=6, features=(B, ELEMENTS, PARAMETERS),
)  # fmt: skip
CHANNEL_SCALED = Work(
    "channel scale", other_flops=5 * B * ELEMENTS, bytes_moved=5 * BYTES * B * ELEMENTS,
    fresh_bytes=BYTES * B * ELEMENTS, launches=10, features=(B, ELEMENTS, PARAMETERS),
)  # fmt: skip
TABLE = Work(
    "table", other_flops=B * T * WIDTH, bytes_moved=3 * KEPT, fresh_bytes=KEPT, launches=6, features=(B, T, PARAMETERS)
)  # fmt: skip
LOOP = Work("example loop", other_flops=2 * B * PARAMETERS, bytes_moved=3 * KEPT, fresh_bytes=2 * KEPT, launches=2 * B)
MOVED = Work("tail", bytes_moved=2 * KEPT, fresh_bytes=KEPT)
KEPT_PRODUCTS = BYTES * B * GROUPS * D_IN * D_OUT  # a gain is smaller than the gradient that it comes from
MOVED_PRODUCTS = Work("tail", bytes_moved=2 * KEPT_PRODUCTS, fresh_bytes=KEPT_PRODUCTS)


def grouped_form(weight_shape: tuple[int, ...], groups: int) -> Work:
    """Libraries have kernels of their own for one channel per group."""
    return DEPTHWISE if weight_shape[0] == groups and weight_shape[1] == 1 else GROUPED


def unfolded_work(contraction: Convolution) -> Work:
    """Unfolding, whatever the sizes."""
    return UNFOLD


def grouped_convolution_work(contraction: Convolution) -> Work:
    """One convolution whose groups are the examples."""
    return grouped_form(contraction.weight_shape, contraction.geometry.groups)


def contraction_work(contraction: Contraction, of_convolution: Callable[[Convolution], Work]) -> Work:
    """The work of forming one contraction's per-example gradients."""
    match contraction:
        case Dense():
            return DENSE
        case Convolution():
            return of_convolution(contraction)
        case Total():
            return REDUCED
        case LayerScale():
            return LAYER_SCALED
        case ChannelScale():
            return CHANNEL_SCALED
        case Rows():
            return TABLE
        case Opaque():
            return LOOP


def cost(site: Site, of_convolution: Callable[[Convolution], Work] = unfolded_work) -> Cost:
    """Form the gradients, carry them through the tail, read them once for the norm; they stay for the sum."""
    formed = [contraction_work(term.contraction, of_convolution).of(index) for index, term in enumerate(site.terms)]
    alone = is_same_norm(site)
    is_product = isinstance(site.terms[0].contraction, (Dense, Convolution)) and len(site.terms) == 1 and not site.isometric
    kept, step = (KEPT_PRODUCTS, MOVED_PRODUCTS) if is_product else (KEPT, MOVED)
    # The first result is new memory; the next ones find what the ones before them have given back.
    count = 0 if alone else sum(map(computes, site.tail)) + len(site.terms) - 1
    moved = [step if place == 0 else replace(step, fresh_bytes=sympy.Integer(0)) for place in range(count)]
    return Cost((*formed, *moved, NORM), resident_bytes=kept * len(site.terms))


def computes(node: fx.Node) -> bool:
    """Whether an operation of a tail writes new memory, by its schema."""
    if not isinstance(node.target, torch_private.OpOverload):
        return node.target is not operator.getitem
    return not any(result.alias_info is not None for result in node.target._schema.returns)


def emit_with(site: Site, emitter: Emitter, form: str) -> SquaredNorm:
    """Squared norm of the materialised gradients."""
    squared = emitter.call(reduction.sqnorm, measured_gradient(site, emitter, form))
    return SquaredNorm(scaled(emitter, squared, site.terms[0].scale) if is_same_norm(site) else squared)


def is_same_norm(site: Site) -> bool:
    """Whether the norm before the tail is the norm behind it, up to a factor."""
    return len(site.terms) == 1 and site.isometric


def measured_gradient(site: Site, emitter: Emitter, form: str) -> fx.Node:
    """What the norm is taken of: f[B, ...], before the tail where that keeps norms, behind it elsewhere."""
    gradients = {term.contraction.node: per_example_gradient(term.contraction, emitter, form) for term in site.terms}
    if is_same_norm(site):
        return gradients[site.terms[0].contraction.node]
    emitter.at(site.gradient)
    return through_tail(site, gradients, emitter)


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


MATERIALIZE = NormStrategy("materialize", "Opacus; Lee & Kifer 2021", lambda site: None, cost, emit, materializes=True)
GROUPED_CONVOLUTION = NormStrategy(
    "grouped",
    "Rochette et al. 2019",
    declines_grouped,
    lambda site: cost(site, grouped_convolution_work),
    emit_grouped,
    materializes=True,
)
