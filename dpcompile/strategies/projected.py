"""Weights that are standardised or normalised: the norm behind the tail from a Gram norm and a few inner products per row.

|L g|^2 = sum_o D^2 |g_o|^2 + q^T M q with q_j = <f_j, g_o>; f is a row of ones and the weight that the forward pass used, so q
is a sum of windows and a sum of output gradient times output (`kernels.projection` has the derivation). Neither the
gradient nor its image under the tail is formed. A gain, which meets only inner products, needs no Gram matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeVar

import sympy
import torch
from torch import fx

from dpcompile.ir.cost import BYTES, D_IN, D_OUT, GROUPS, T_IN, TAPS, B, Cost, T, Work
from dpcompile.ir.graph import value
from dpcompile.ir.projection import Factor, Functional, Polynomial, Projection
from dpcompile.ir.site import Convolution, Dense, Operand, Site
from dpcompile.kernels import convolution, dense, projection, row_products
from dpcompile.strategies import gram
from dpcompile.strategies.emitter import Emitter, dtype_of
from dpcompile.strategies.growth import is_complex, is_double
from dpcompile.strategies.operand_rounding import convolution_unit, product_unit
from dpcompile.strategies.strategy import NormStrategy, SquaredNorm

aten = torch.ops.aten
EXAMPLES = B * GROUPS
ROW_GRADIENTS = EXAMPLES * T * D_OUT
WEIGHT = GROUPS * D_IN * D_OUT  # a gain has fewer elements
WINDOWS = EXAMPLES * T * TAPS
COEFFICIENTS = Work(
    "row coefficients", other_flops=8 * WEIGHT, bytes_moved=4 * BYTES * WEIGHT, fresh_bytes=2 * BYTES * WEIGHT,
    launches=120,
)  # fmt: skip
SCALED = Work(
    "scaled rows", other_flops=ROW_GRADIENTS, bytes_moved=2 * BYTES * ROW_GRADIENTS, fresh_bytes=BYTES * ROW_GRADIENTS, launches=3
)


def window_work(form: str, inputs: sympy.Expr, passes: int) -> Work:
    """A number per window: channels are added up before they are unfolded."""
    read = EXAMPLES * inputs * D_IN / TAPS
    return Work(
        form, other_flops=passes * read + WINDOWS, bytes_moved=BYTES * (passes * read + 2 * WINDOWS),
        fresh_bytes=BYTES * (passes - 1) * read, launches=4 + 4 * passes,
    )  # fmt: skip


LENGTHS, TOTALS = window_work("window lengths", T_IN, 2), window_work("window totals", T_IN, 1)
ROW_LENGTHS, ROW_TOTALS = window_work("row lengths", T, 1), window_work("row totals", T, 1)
APPLIED = Work(
    "functional", matrix_flops=2 * ROW_GRADIENTS * D_IN,
    bytes_moved=BYTES * (EXAMPLES * T_IN * D_IN / TAPS + ROW_GRADIENTS + WEIGHT), fresh_bytes=BYTES * ROW_GRADIENTS,
    launches=6, product=(GROUPS, D_OUT, B * T, D_IN),
)  # fmt: skip
INNER = Work(
    "inner products", matrix_flops=2 * ROW_GRADIENTS, other_flops=4 * ROW_GRADIENTS, bytes_moved=5 * BYTES * ROW_GRADIENTS,
    fresh_bytes=2 * BYTES * ROW_GRADIENTS, launches=40,
)  # fmt: skip
ONES = Work("inner products with ones", matrix_flops=2 * ROW_GRADIENTS, bytes_moved=BYTES * ROW_GRADIENTS, launches=3)
WORKSPACE = 2 * BYTES * ROW_GRADIENTS


def declines(site: Site) -> str | None:
    """Single matrix products and convolutions behind a tail that works row by row."""
    if site.isometric:
        return "nothing that changes norms comes after the sum over the batch"
    if len(site.terms) != 1:
        return f"the parameter is used {len(site.terms)} times, so cross terms count"
    if isinstance(site.projection, str):
        return f"no closed form for what comes after the sum over the batch: {site.projection or 'it is unknown'}"
    contraction = site.terms[0].contraction
    if value(contraction.node).dtype == torch.float64 and not is_double(site):
        return "the gradient is in float64, and is changed and added up in float32"
    folded = isinstance(contraction, Convolution) and (contraction.x.folded != 1 or contraction.g.folded != 1)
    return "several images per example are folded into the convolution's batch" if folded else is_complex(site)


def projection_of(site: Site) -> Projection:
    """The site's projection, which `declines` has seen."""
    assert isinstance(site.projection, Projection)
    return site.projection


def cost(site: Site) -> Cost:
    """The Gram norm if the gradient itself is seen, and the inner products."""
    found, contraction = projection_of(site), site.terms[0].contraction
    is_dense = isinstance(contraction, Dense)
    works = [COEFFICIENTS, ROW_LENGTHS if is_dense else LENGTHS, INNER, *[APPLIED] * found.computed] if found.functionals else []
    if any(functional.is_plain_sum for functional in found.functionals):
        works += [ROW_TOTALS if is_dense else TOTALS, ONES]
    total = Cost(tuple(works), workspace_bytes=WORKSPACE, resident_bytes=BYTES * ROW_GRADIENTS * found.computed)
    if not found.scale:
        return total
    total += Cost((SCALED,), resident_bytes=BYTES * ROW_GRADIENTS)
    if isinstance(contraction, Dense):
        return total + gram.DENSE_COST
    assert isinstance(contraction, Convolution)
    return total + gram.unfolding(contraction) + gram.UNFOLDED_COST


@dataclass
class Places:
    """Nodes of a projection by their places in the lists of a recipe."""

    vectors: list[fx.Node] = field(default_factory=list)
    masks: list[fx.Node] = field(default_factory=list)
    planes: list[fx.Node] = field(default_factory=list)
    sums: list[tuple[int, ...]] = field(default_factory=list)

    def planes_of(self, nodes: tuple[fx.Node, ...]) -> tuple[int, ...]:
        """The places of a direction's nodes."""
        return tuple(place(self.planes, node) for node in nodes)

    def collect(self, terms: Polynomial) -> None:
        """Give every vector its place, before sums get theirs behind them."""
        for monomial, _ in terms:
            for factor, _ in monomial.powers:
                if not factor.is_sum:
                    place(self.vectors, factor.nodes[0])

    def factor(self, factor: Factor) -> int:
        """A vector, or a sum behind all vectors."""
        if not factor.is_sum:
            return place(self.vectors, factor.nodes[0])
        return len(self.vectors) + place(self.sums, self.planes_of(factor.nodes))

    def terms(self, terms: Polynomial) -> projection.Terms:
        """A polynomial in places."""
        return tuple(
            (
                number,
                tuple((self.factor(factor), exponent) for factor, exponent in monomial.powers),
                tuple((place(self.masks, mask), where) for mask, where in monomial.masks),
                self.planes_of(monomial.direction),
            )
            for monomial, number in terms
        )


Item = TypeVar("Item")


def place(known: list[Item], item: Item) -> int:
    """Where an item stands, at the end if it is new."""
    if item not in known:
        known.append(item)
    return known.index(item)


def recipe_of(found: Projection) -> tuple[Places, projection.Recipe]:
    """A projection as arguments of kernels."""
    places = Places()
    tables = (*found.gains, *found.seen, tuple(f.vector for f in found.functionals), (found.scale,))
    for terms in (terms for row in tables for terms in row):
        places.collect(terms)
    scale = places.terms(found.scale)
    vectors = tuple(places.terms(functional.vector) for functional in found.functionals)
    directions = tuple(places.planes_of(nodes) for nodes in found.directions)
    gains, seen = (tuple(tuple(places.terms(t) for t in row) for row in table) for table in (found.gains, found.seen))
    sizes = found.rows, found.columns, tuple(places.sums)
    return places, projection.Recipe(*sizes, scale, vectors, directions, gains, seen, found.has_rows_only)


def emit(site: Site, emitter: Emitter) -> SquaredNorm:
    """The Gram norm of scaled rows, if the gradient itself is seen, and inner products, if there are any."""
    emitter.at(site.gradient)
    found, contraction = projection_of(site), site.terms[0].contraction
    assert isinstance(contraction, (Dense, Convolution))
    places, recipe = recipe_of(found)
    shared = (contraction.g.node, places.vectors, places.masks, places.planes, recipe)
    if not found.functionals:
        scale = emitter.call(projection.row_scale, *shared)
        return SquaredNorm(*scaled_gram(contraction, scale, emitter))
    gamma = gamma_of(contraction, found)
    several = emitter.call(projection.coefficients, *shared, gamma)
    scale, *matrices = (emitter.item(several, index) for index in range(4))
    outputs = [output_of(contraction, f, shared, i, emitter) for i, f in enumerate(found.functionals) if not f.is_plain_sum]
    biases = [functional.bias for functional in found.functionals if not functional.is_plain_sum]
    lengths, totals = windows_of(contraction, found, emitter)
    rows = rows_of(contraction, emitter)
    pair = emitter.call(row_products.projected, rows, lengths, totals, outputs, biases, tuple(matrices), gamma)
    squared, bounds = emitter.item(pair, 0), [(emitter.item(pair, 1), gamma)]
    if found.scale:
        square, of_gram = scaled_gram(contraction, scale, emitter)
        squared, bounds = emitter.call(aten.add.Tensor, square, squared), [*bounds, *of_gram]
    return SquaredNorm(emitter.call(aten.clamp_min.default, squared, 0.0), tuple(bounds))


def gamma_of(contraction: Dense | Convolution, found: Projection) -> float:
    """gamma of the inner products."""
    unit = (convolution_unit if isinstance(contraction, Convolution) else product_unit)(contraction)
    return projection.projection_gamma(dtype_of(contraction.g.node), contraction.positions, found.columns, unit)


SCALINGS = 4
"""Roundings of two scaled output gradients."""


def rows_of(contraction: Dense | Convolution, emitter: Emitter) -> fx.Node:
    """The operand whose channels are the rows: f[B, O, ...positions]."""
    if isinstance(contraction, Dense):
        return emitter.call(aten.transpose.int, emitter.rows(contraction.g), 1, 2)
    return emitter.images(contraction.x if contraction.geometry.transposed else contraction.g)


def windowed(contraction: Convolution, emitter: Emitter) -> fx.Node:
    """The operand under the windows."""
    return emitter.images(contraction.g if contraction.geometry.transposed else contraction.x)


def output_of(contraction: Dense | Convolution, functional: Functional, shared: tuple[object, ...], index: int,
              emitter: Emitter) -> fx.Node:  # fmt: skip
    """A functional applied to the input at every position, f[B, O, ...positions]: from the forward pass, or computed."""
    if isinstance(contraction, Dense):
        if functional.output is not None:
            own = Operand(functional.output, 0, contraction.g.outer, contraction.g.inner)
            return emitter.call(aten.transpose.int, emitter.rows(own), 1, 2)
        vector = emitter.call(projection.vector, *shared, index)
        return emitter.call(row_products.applied_dense, emitter.rows(contraction.a), vector)
    if functional.output is not None:
        return functional.output
    source, vector = windowed(contraction, emitter), emitter.call(projection.vector, *shared, index)
    sizes = tuple(int(size) for size in value(rows_of(contraction, emitter)).shape[2:])
    return emitter.call(row_products.applied, source, vector, contraction.geometry, sizes)


def windows_of(contraction: Dense | Convolution, found: Projection, emitter: Emitter) -> tuple[fx.Node, fx.Node | None]:
    """Lengths of the windows of the input f[B, G, T], and their sums where a row of ones is among the functionals."""
    has_ones = any(functional.is_plain_sum for functional in found.functionals)
    if isinstance(contraction, Convolution):
        source, how = windowed(contraction, emitter), contraction.geometry
        totals = emitter.call(row_products.window_totals, source, how) if has_ones else None
        return emitter.call(row_products.window_lengths, source, how), totals
    a = emitter.rows(contraction.a)
    totals = emitter.call(row_products.row_totals, a) if has_ones else None
    return emitter.call(row_products.row_lengths, a), totals


def scaled_gram(contraction: Dense | Convolution, scale: fx.Node,
                emitter: Emitter) -> tuple[fx.Node, tuple[tuple[fx.Node, float], ...]]:  # fmt: skip
    """sum_o D^2 |g_o|^2 and its rounding bound: the ordinary Gram norm of scaled rows."""
    if isinstance(contraction, Dense):
        scaled = emitter.call(row_products.scaled_rows, emitter.rows(contraction.g), scale, 2)
        pair = emitter.call(dense.sqnorm_gram, emitter.rows(contraction.a), scaled)
        d, p = contraction.d, contraction.p
    else:
        scaled = emitter.call(row_products.scaled_rows, rows_of(contraction, emitter), scale, 1)
        unfolded = gram.unfolded_input(contraction, emitter)
        pair = emitter.call(convolution.sqnorm_gram_unfolded, unfolded, scaled, contraction.geometry)
        d, p = gram.convolution_sizes(contraction)
    gamma = dense.gram_gamma(dtype_of(contraction.g.node), contraction.positions, d, p + SCALINGS)
    return emitter.item(pair, 0), ((emitter.item(pair, 1), gamma + rounding_of_sum(contraction)),)


def rounding_of_sum(contraction: Dense | Convolution) -> float:
    """What is added where a convolution rounds the operands of the sum: every row of the gradient is then off by at most 2u sum_t
    |a_t| |g_t|, which the rows' factors scale as they do the Gram matrix (of products `gram_gamma` knows)."""
    return math.expm1(4 * convolution_unit(contraction)) if isinstance(contraction, Convolution) else 0.0


PROJECTED = NormStrategy("projected", "Salimans & Kingma 2016, eq. 3; Qiao et al. 2019: expanded squares", declines, cost, emit)
