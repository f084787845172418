"""Ghost norm: ||g^T a||^2 = sum over pairs of positions of <a_t, a_s> <g_t, g_s>; no per-example gradient is formed.

Source: Goodfellow 2015 for one position; Li et al. 2021 (arXiv:2110.05679) and Bu et al. 2022 for sequences and
unfolded convolutions. T x T matrices stay in float32 or wider; their rounding is bounded by gamma * S.
"""

from __future__ import annotations

import math

import sympy
from torch import fx

from dpcompile.ir.cost import BLOCKS, BYTES, D_IN, D_OUT, GROUPS, T_IN, TAPS, B, Cost, T, Work
from dpcompile.ir.site import Convolution, Dense, Site
from dpcompile.kernels import convolution, dense
from dpcompile.strategies.emitter import Emitter, dtype_of
from dpcompile.strategies.growth import is_complex
from dpcompile.strategies.scaling import scaled
from dpcompile.strategies.strategy import NormStrategy, SquaredNorm, only

SHORTER = sympy.floor(T / BLOCKS)
LONGER = T - BLOCKS * SHORTER  # so many blocks are longer by one position
PAIRS = (T**2 + BLOCKS * SHORTER**2 + LONGER * (2 * SHORTER + 1)) / 2  # symmetric: on and above the diagonal blocks only


TILES = (T / BLOCKS) ** 2


def gram_cost(form: str, examples: sympy.Expr) -> Cost:
    """Two Gram matrices for each of so many matrices, their product, and two more products for the rounding bound.

    A few examples at a time, with three tiles for each: both Gram matrices and what is made of them.
    """
    work = Work(
        form,
        matrix_flops=2 * examples * PAIRS * (D_IN + D_OUT + 2),
        other_flops=4 * examples * PAIRS,
        bytes_moved=BYTES * examples * (2 * T * (D_IN + D_OUT) + 4 * PAIRS),
        fresh_bytes=2 * BYTES * examples * PAIRS,
        launches=8 + 8 * BLOCKS * (BLOCKS + 1) * sympy.ceiling(examples * TILES / (2 * dense.WORKSPACE)),
        product=(examples, T / BLOCKS, T / BLOCKS, (D_IN + D_OUT) / 2),
        features=(examples, T, D_IN, D_OUT),
    )
    tiles = sympy.Min(examples * TILES, sympy.Max(2 * dense.WORKSPACE, TILES))
    return Cost((work,), workspace_bytes=3 * BYTES * tiles)


DENSE_COST = gram_cost("gram", B)
UNFOLDED_COST = gram_cost("unfolded gram", B * GROUPS)
UNFOLD = Cost(
    (
        Work(
            "unfold",
            bytes_moved=2 * BYTES * B * GROUPS * T * D_IN,
            fresh_bytes=BYTES * B * GROUPS * T * D_IN,
            launches=6,
            features=(B * GROUPS * D_IN / TAPS, T, TAPS, T_IN / T),  # the last: the stride
        ),
    ),
    resident_bytes=BYTES * B * GROUPS * T * D_IN,
)


def declines(site: Site) -> str | None:
    """Matrix products and convolutions with several positions."""
    found = only(site, Dense, Convolution)
    if isinstance(found, str):
        return found
    if isinstance(found, Dense):
        return "groups of matrix products are materialised" if found.groups != 1 else is_complex(site)
    assert isinstance(found, Convolution)
    folded = found.x.folded != 1 or found.g.folded != 1
    return "several images per example are folded into the convolution's batch" if folded else is_complex(site)


def cost(site: Site) -> Cost:
    """Two Gram matrices per example (and group)."""
    contraction = site.terms[0].contraction
    if isinstance(contraction, Dense):
        return DENSE_COST
    assert isinstance(contraction, Convolution)
    return unfolding(contraction) + UNFOLDED_COST


def unfolding(contraction: Convolution) -> Cost:
    """The unfolded input as a tensor of its own, or the view that it is where there is nothing to unfold."""
    return Cost() if contraction.geometry.is_pointwise else UNFOLD


def emit(site: Site, emitter: Emitter) -> SquaredNorm:
    """Squared norm and its rounding bound."""
    contraction = site.terms[0].contraction
    if isinstance(contraction, Dense):
        a, g = emitter.rows(contraction.a), emitter.rows(contraction.g)
        pair = emitter.call(dense.sqnorm_gram, a, g)
        sizes = contraction.positions, contraction.d, contraction.p
    else:
        assert isinstance(contraction, Convolution)
        unfolded = unfolded_input(contraction, emitter)
        other = contraction.x if contraction.geometry.transposed else contraction.g
        pair = emitter.call(convolution.sqnorm_gram_unfolded, unfolded, emitter.images(other), contraction.geometry)
        sizes = contraction.positions, *convolution_sizes(contraction)
    gamma = dense.gram_gamma(dtype_of(contraction.g.node), *sizes)
    scale = site.terms[0].scale
    squared, bound = (scaled(emitter, emitter.item(pair, index), scale) for index in (0, 1))
    return SquaredNorm(squared, ((bound, gamma),))


def unfolded_input(contraction: Convolution, emitter: Emitter) -> fx.Node:
    """The unfolded input, emitted once for norm and sum; a transposed convolution unfolds its output gradient."""
    source = contraction.g if contraction.geometry.transposed else contraction.x
    return emitter.call(convolution.unfold, emitter.images(source), contraction.geometry)


def convolution_sizes(contraction: Convolution) -> tuple[int, int]:
    """Fan-in and fan-out of one group of a convolution seen as a matrix product on unfolded inputs."""
    first, second, *kernel = contraction.weight_shape
    groups = contraction.geometry.groups
    return second * math.prod(kernel), first // groups


GRAM = NormStrategy("gram", "Li et al. 2021; Bu et al. 2022", declines, cost, emit)
