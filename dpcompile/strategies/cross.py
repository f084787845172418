"""Tied and reused weights: the squared norm of a sum is all squared norms plus twice all inner products.

For two matrix products the inner product is a Gram matrix across them; for two lookups it matches their rows; for a
lookup tied to a matrix product, <E_in, E_out> = sum over t, s of g[t, id_s] <a_t, b_s>: a gather from the output
gradient and one batched product, no table per example.
"""

from __future__ import annotations

from itertools import combinations

import torch

from dpcompile.ir.cost import BYTES, D_IN, WIDTH, B, Cost, T
from dpcompile.ir.site import Dense, Rows, Site, Term
from dpcompile.kernels import dense, embedding
from dpcompile.strategies import gram, rows
from dpcompile.strategies.emitter import Emitter, dtype_of
from dpcompile.strategies.per_example import row_operands
from dpcompile.strategies.strategy import NormStrategy, SquaredNorm

PAIR_COST = Cost(
    matrix_flops=2 * B * T**2 * (D_IN + WIDTH), other_flops=3 * B * T**2, bytes_moved=4 * BYTES * B * T**2,
    fresh_bytes=2 * BYTES * B * T**2, launches=6, form="batched",
)  # fmt: skip


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
    return None


def cost(site: Site) -> Cost:
    """Squares of all terms and products of all pairs."""
    squares = [gram.DENSE_COST if isinstance(term.contraction, Dense) else rows.COST for term in site.terms]
    total = squares[0] if isinstance(site.terms[0].contraction, Dense) else next(
        (s for s in squares if s is gram.DENSE_COST), squares[0])  # fmt: skip
    rest = list(squares)
    rest.remove(total)
    for part in [*rest, *(PAIR_COST for _ in combinations(site.terms, 2))]:
        total = total + part
    return total


def factors(term: Term, emitter: Emitter) -> tuple[torch.fx.Node, torch.fx.Node]:
    """(a, g) as f[B, T, .] such that the parameter's gradient is g^T a: swapped where the tail transposes."""
    contraction = term.contraction
    assert isinstance(contraction, Dense)
    a, g = emitter.rows(contraction.a), emitter.rows(contraction.g)
    return (g, a) if term.placement == "transposed" else (a, g)


def square(term: Term, emitter: Emitter) -> SquaredNorm:
    """The squared norm of one term."""
    contraction = term.contraction
    if isinstance(contraction, Rows):
        ids, g = row_operands(contraction, emitter)
        return SquaredNorm(emitter.call(embedding.sqnorm_rows, ids, g, contraction.padding_idx))
    assert isinstance(contraction, Dense)
    pair = emitter.call(dense.sqnorm_gram, *factors(term, emitter))
    gamma = dense.gram_gamma(dtype_of(contraction.g.node), contraction.positions, contraction.d, contraction.p)
    return SquaredNorm(emitter.item(pair, 0), ((emitter.item(pair, 1), gamma),))


def inner(left: Term, right: Term, emitter: Emitter) -> torch.fx.Node:
    """The inner product f64[B] of two terms' per-example gradients."""
    if isinstance(left.contraction, Dense) and isinstance(right.contraction, Dense):
        return emitter.call(dense.cross_dense, *factors(left, emitter), *factors(right, emitter))
    if isinstance(left.contraction, Rows) and isinstance(right.contraction, Rows):
        first, second = row_operands(left.contraction, emitter), row_operands(right.contraction, emitter)
        padding = left.contraction.padding_idx, right.contraction.padding_idx
        return emitter.call(embedding.cross_rows, *first, *second, *padding)
    lookup, product = (left, right) if isinstance(left.contraction, Rows) else (right, left)
    assert isinstance(lookup.contraction, Rows)
    ids, b = row_operands(lookup.contraction, emitter)
    a, g = factors(product, emitter)
    return emitter.call(embedding.cross_rows_dense, ids, b, a, g, lookup.contraction.padding_idx)


def emit(site: Site, emitter: Emitter) -> SquaredNorm:
    """All squares and twice all inner products, weighted by the tails' factors; clamped at zero.

    Rounding: |n^2 - true| <= (sum over terms of |scale_i| sqrt(gamma_i S_i))^2 <= k * sum of scale_i^2 gamma_i S_i for
    k terms, because every inner product is bounded by the geometric mean of the two squares' bounds.
    """
    emitter.at(site.gradient)
    add, multiply = torch.ops.aten.add.Tensor, torch.ops.aten.mul.Scalar
    total, bounds = None, []
    for term in site.terms:
        part = square(term, emitter)
        weighted = emitter.call(multiply, part.squared, term.scale**2)
        total = weighted if total is None else emitter.call(add, total, weighted)
        bounds += [(bound, gamma * term.scale**2 * len(site.terms)) for bound, gamma in part.bounds]
    for left, right in combinations(site.terms, 2):
        product = emitter.call(multiply, inner(left, right, emitter), 2 * left.scale * right.scale)
        total = emitter.call(add, total, product)
    return SquaredNorm(emitter.call(torch.ops.aten.clamp_min.default, total, 0.0), tuple(bounds))


CROSS = NormStrategy("cross", "tied embeddings: gather form of the cross term", declines, cost, emit)
