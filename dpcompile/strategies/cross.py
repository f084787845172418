"""Tied and reused weights: the squared norm of a sum is all squared norms plus twice all inner products.

For two matrix products the inner product is a Gram matrix across them; for two lookups it matches their rows; for a
lookup tied to a matrix product, <E_in, E_out> = sum over t, s of g[t, id_s] <a_t, b_s>: a gather from the output
gradient and one batched product, no table per example.
"""

from __future__ import annotations

from itertools import combinations

import sympy
import torch

from dpcompile.ir.cost import BYTES, D_IN, D_OUT, WIDTH, B, Cost, S, T, Work
from dpcompile.ir.graph import value
from dpcompile.ir.site import Dense, Rows, Site, Term
from dpcompile.kernels import dense, embedding
from dpcompile.strategies import gram, rows
from dpcompile.strategies.emitter import Emitter, dtype_of
from dpcompile.strategies.growth import is_complex, is_double
from dpcompile.strategies.per_example import row_operands
from dpcompile.strategies.strategy import NormStrategy, SquaredNorm

GRAMS = 4 * BYTES * B * T * S


def pair(form: str, width: sympy.Expr, vectors: int) -> Work:
    """Inner products of all T rows of one term with all S rows of another, and products with vectors for the bound."""
    return Work(
        form, matrix_flops=2 * B * T * S * (width + vectors), other_flops=6 * B * T * S,
        bytes_moved=GRAMS + BYTES * B * (T + S) * width, fresh_bytes=GRAMS / 2, launches=16,
        product=(B, T, S, width), features=(B, T, S, width),
    )  # fmt: skip


DENSE_PAIR = pair("cross products", D_IN + D_OUT, 2)
MIXED_PAIR = pair("cross rows and products", WIDTH, 1)
ROWS_PAIR = pair("cross rows", WIDTH, 0)


def declines(site: Site) -> str | None:
    """Several plain matrix products and lookups whose places in the parameter are known."""
    if len(site.terms) < 2:
        return "the parameter is used once, so there are no cross terms"
    if not site.isometric:
        return "the gradient is transformed after the sum over the batch in a way that changes norms"
    for term in site.terms:
        plain = isinstance(term.contraction, Rows) or (isinstance(term.contraction, Dense) and term.contraction.groups == 1)
        if not plain or term.placement == "moved" or (isinstance(term.contraction, Rows) and term.placement != "same"):
            return f"no closed form for the cross terms of {type(term.contraction).__name__}"
    precisions = {torch.promote_types(dtype_of(output_gradient(term)), torch.float32) for term in site.terms}
    if len(precisions) > 1:
        return "the parameter is used in several precisions"
    rounded = precisions == {torch.float64} and not is_double(site)
    return "its uses are in float64, and are added up in float32" if rounded else is_complex(site)


def cost(site: Site) -> Cost:
    """Squares of all terms and products of all pairs."""
    total = Cost()
    for index, term in enumerate(site.terms):
        square = gram.DENSE_COST if isinstance(term.contraction, Dense) else rows.COST
        total += Cost(tuple(work.of(index) for work in square.work), workspace_bytes=square.workspace_bytes)
    for (i, left), (j, right) in combinations(enumerate(site.terms), 2):
        total += Cost((pair_work(left, right).of(*((i, j) if isinstance(left.contraction, Dense) else (j, i))),))
    return total


def pair_work(left: Term, right: Term) -> Work:
    """The inner product of two terms' gradients."""
    lookups = sum(isinstance(term.contraction, Rows) for term in (left, right))
    return (DENSE_PAIR, MIXED_PAIR, ROWS_PAIR)[lookups]


def factors(term: Term, emitter: Emitter) -> tuple[torch.fx.Node, torch.fx.Node]:
    """(a, g) as f[B, T, .] such that the parameter's gradient is g^T a: swapped where the tail transposes."""
    contraction = term.contraction
    assert isinstance(contraction, Dense)
    a, g = emitter.rows(contraction.a), emitter.rows(contraction.g)
    return (g, a) if term.placement == "transposed" else (a, g)


def square(term: Term, emitter: Emitter) -> SquaredNorm:
    """The squared norm of one term and its rounding."""
    contraction = term.contraction
    if isinstance(contraction, Rows):
        ids, g = row_operands(contraction, emitter)
        reach = emitter.call(embedding.reach_rows, ids, g, contraction.padding_idx)
        gamma = dense.gram_gamma(dtype_of(g), contraction.positions, contraction.positions, contraction.width)
        return SquaredNorm(emitter.call(embedding.sqnorm_rows, ids, g, contraction.padding_idx), ((reach, gamma),))
    assert isinstance(contraction, Dense)
    pair = emitter.call(dense.sqnorm_gram, *factors(term, emitter))
    gamma = dense.gram_gamma(dtype_of(contraction.g.node), contraction.positions, contraction.d, contraction.p)
    return SquaredNorm(emitter.item(pair, 0), ((emitter.item(pair, 1), gamma),))


def inner(left: Term, right: Term, emitter: Emitter) -> SquaredNorm:
    """The inner product f64[B] of two terms' per-example gradients and its rounding."""
    lookups = [term for term in (left, right) if isinstance(term.contraction, Rows)]
    products = [term for term in (left, right) if isinstance(term.contraction, Dense)]
    longest = max(positions(left), positions(right))
    if not lookups:
        first, second = factors(left, emitter), factors(right, emitter)
        pair = emitter.call(dense.cross_dense, *first, *second)
        widths = value(first[0]).shape[2], value(first[1]).shape[2]
    elif not products:
        rows_of = [row_operands(term.contraction, emitter) for term in lookups if isinstance(term.contraction, Rows)]
        padding = [term.contraction.padding_idx for term in lookups if isinstance(term.contraction, Rows)]
        pair = emitter.call(embedding.cross_rows, *rows_of[0], *rows_of[1], *padding)
        widths = 0, value(rows_of[0][1]).shape[2]
    else:
        lookup = lookups[0].contraction
        assert isinstance(lookup, Rows)
        ids, b = row_operands(lookup, emitter)
        pair = emitter.call(embedding.cross_rows_dense, ids, b, *factors(products[0], emitter), lookup.padding_idx)
        widths = 0, value(b).shape[2]
    gamma = dense.gram_gamma(dtype_of(output_gradient(left)), longest, *widths)
    return SquaredNorm(emitter.item(pair, 0), ((emitter.item(pair, 1), gamma),))


def positions(term: Term) -> int:
    """Positions per example of a product or lookup."""
    assert isinstance(term.contraction, (Dense, Rows))
    return term.contraction.positions


def output_gradient(term: Term) -> torch.fx.Node:
    """The output gradient, whose dtype says how operands round."""
    assert isinstance(term.contraction, (Dense, Rows))
    return term.contraction.g.node


def emit(site: Site, emitter: Emitter) -> SquaredNorm:
    """All squares and twice all inner products, weighted by the tails' factors; clamped at zero.

    Rounding: every square and every inner product brings its own bound; what they may cancel to does not matter.
    """
    emitter.at(site.gradient)
    parts = [(square(term, emitter), term.scale**2) for term in site.terms]
    for left, right in combinations(site.terms, 2):
        parts.append((inner(left, right, emitter), 2 * left.scale * right.scale))
    add, multiply = torch.ops.aten.add.Tensor, torch.ops.aten.mul.Scalar
    weighted = [emitter.call(multiply, part.squared, weight) for part, weight in parts]
    total = weighted[0]
    for more in weighted[1:]:
        total = emitter.call(add, total, more)
    bounds = tuple((bound, gamma * abs(weight)) for part, weight in parts for bound, gamma in part.bounds)
    return SquaredNorm(emitter.call(torch.ops.aten.clamp_min.default, total, 0.0), bounds)


CROSS = NormStrategy("cross", "tied embeddings: gather form of the cross term", declines, cost, emit)
