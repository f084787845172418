"""Ghost norm: ||g^T a||^2 = sum over pairs of positions of <a_t, a_s> <g_t, g_s>; no per-example gradient is formed.

Source: Goodfellow 2015 for one position; Li et al. 2021 (arXiv:2110.05679) and Bu et al. 2022 for sequences and
unfolded convolutions. T x T matrices stay in float32 or wider; their rounding is bounded by gamma * S.
"""

from __future__ import annotations

import math

import sympy
from torch import fx

from dpcompile.ir.cost import BYTES, D_IN, D_OUT, GROUPS, B, Cost, T
from dpcompile.ir.site import Convolution, Dense, Site
from dpcompile.kernels import convolution, dense
from dpcompile.strategies.emitter import Emitter, dtype_of
from dpcompile.strategies.scaling import scaled
from dpcompile.strategies.strategy import NormStrategy, SquaredNorm, only

BLOCKS = sympy.Min(8, sympy.ceiling(T / 128))  # symmetric: only blocks on and above the diagonal are formed
DENSE_COST = Cost(
    matrix_flops=2 * B * T**2 * (D_IN + D_OUT) * (BLOCKS + 1) / (2 * BLOCKS),
    other_flops=3 * B * T**2 + 2 * B * T * (D_IN + D_OUT),
    bytes_moved=BYTES * B * (2 * T * (D_IN + D_OUT) + 4 * T**2),
    fresh_bytes=2 * BYTES * B * T**2,
    launches=20,
    form="gram",
)
CONVOLUTION_COST = Cost(
    matrix_flops=2 * B * GROUPS * T**2 * (D_IN + D_OUT),
    other_flops=3 * B * GROUPS * T**2,
    bytes_moved=BYTES * B * GROUPS * (3 * T * D_IN + T * D_OUT + 4 * T**2),
    fresh_bytes=BYTES * B * GROUPS * (T * D_IN + 2 * T**2),
    launches=24,
    form="gram",
)


def declines(site: Site) -> str | None:
    """Matrix products and convolutions with several positions."""
    found = only(site, Dense, Convolution)
    if isinstance(found, str):
        return found
    if isinstance(found, Dense):
        return "groups of matrix products are materialised" if found.groups != 1 else None
    assert isinstance(found, Convolution)
    folded = found.x.folded != 1 or found.g.folded != 1
    return "several images per example are folded into the convolution's batch" if folded else None


def cost(site: Site) -> Cost:
    """Two Gram matrices per example (and group)."""
    return DENSE_COST if isinstance(site.terms[0].contraction, Dense) else CONVOLUTION_COST


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
