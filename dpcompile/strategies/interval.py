"""How far a clipped sum may be from the materialised gradients that a norm was taken of, where it is computed apart from them.

`reuse` adds up what was measured. Any other sum forms the gradients once more, in another order of summation: where their terms
all but cancel, both are off by as much as gamma times the lengths of the terms, and an example whose measured norm came out at
half of C could contribute as much as C and more. So that the clip factor is taken from the upper end, such a norm declares

    |true gradient| and |what the sum contains| <= n + reach,    reach = 2 gamma * sum over positions of |a_t| |g_t|

with gamma of Higham & Mary 2019 (`kernels.gram.rounding_gamma`) for as many terms as an entry has, once for the norm and once
for the sum. Where nothing is added up, nothing can cancel. Where the library may round the operands of the sum
(`strategies.operand_rounding`), reach is larger by that, for every norm.

Gram matrices, inner products and projections have intervals of their own, which tell the rounding of the norm. Where rows all
but cancel these are the wider ones by far, and the sum's rounding is in them. Where rows point in different directions they are
not (the bound for the sum is 4e-5 at 100 positions); no data were found that come near it.
"""

from __future__ import annotations

import math
from typing import Final

import sympy
import torch
from torch import fx

from dpcompile.ir.cost import BYTES, D_IN, D_OUT, ELEMENTS, GROUPS, T_IN, TAPS, WIDTH, B, Cost, T, Work
from dpcompile.ir.graph import value
from dpcompile.ir.site import ChannelScale, Contraction, Convolution, Dense, LayerScale, Operand, Rows, Site, Total
from dpcompile.kernels import embedding, layout, reach
from dpcompile.kernels.geometry import Geometry
from dpcompile.kernels.gram import rounding_gamma
from dpcompile.strategies.emitter import Emitter
from dpcompile.strategies.growth import added, enlargements, is_double
from dpcompile.strategies.operand_rounding import is_coarse, of_sum
from dpcompile.strategies.per_example import row_operands
from dpcompile.strategies.strategy import NormStrategy, SumStrategy

OWN: Final = ("outer", "masked", "gram", "cross", "projected", "ordinary")
"""Norms with an interval of their own, or with nothing that could cancel."""
FURTHER: Final = 4
"""Roundings besides those of the sum: a product, the factor, what normalisations and several uses add."""


def read(elements: sympy.Expr, launches: sympy.Expr) -> Work:
    """Elements that are read, two operations for each."""
    return Work("interval", other_flops=2 * elements, bytes_moved=BYTES * elements, launches=launches)


PRODUCTS = read(B * GROUPS * T * (D_IN + D_OUT), sympy.Integer(10))
IMAGES = read(B * GROUPS * (T_IN * D_IN / TAPS + T * D_OUT), sympy.Integer(16))
TABLE = read(B * T * WIDTH, sympy.Integer(24))
TOTAL = read(B * ELEMENTS, sympy.Integer(8))
SCALE = read(2 * B * ELEMENTS, sympy.Integer(20))


def is_needed(site: Site, norm: NormStrategy, total: SumStrategy) -> bool:
    """Whether rounding of norm and sum has to be told apart."""
    if is_coarse(site, norm, total):
        return True
    if not total.is_apart or norm.name in OWN:
        return False
    has_scale = any(isinstance(term.contraction, (LayerScale, ChannelScale)) for term in site.terms)
    return has_scale or added(site, [count(term.contraction) for term in site.terms]) > 1


def emit(site: Site, norm: NormStrategy, total: SumStrategy, emitter: Emitter) -> list[fx.Node]:
    """Squares f64[B] of how far it goes, one for each use; their sum bounds the square of the whole."""
    if not is_needed(site, norm, total):
        return []
    factors = enlargements(site)
    assert factors is not None, "such a norm goes with the sum of the same gradients"
    parts = 1 + value(site.gradient).is_complex()  # a product of complex numbers is two of real ones, for each part
    terms = parts * int(added(site, [count(term.contraction) for term in site.terms])) + len(site.terms) + FURTHER
    fine = 0.0 if norm.name in OWN else 2 * rounding_gamma(torch.float64 if is_double(site) else torch.float32, terms, 0.0)
    gammas = [fine + math.expm1(2 * of_sum(term.contraction, norm, total)) for term in site.terms]
    weights = [len(site.terms) * (gamma * factor) ** 2 for gamma, factor in zip(gammas, factors, strict=True)]
    reaches = [reach_of(term.contraction, emitter) for term in site.terms]
    return [emitter.call(torch.ops.aten.mul.Scalar, *pair) for pair in zip(reaches, weights, strict=True)]


def count(contraction: Contraction) -> int:
    """How many products are added up in an entry of an example's gradient."""
    match contraction:
        case Dense() | Rows():
            return contraction.positions
        case Convolution():
            return contraction.positions * contraction.x.folded
        case Total():
            return contraction.elements // max(math.prod(contraction.shape), 1)
        case LayerScale() | ChannelScale():
            return contraction.elements // max(math.prod(value(contraction.node).shape), 1)
    raise AssertionError("operations without a formula go with the sum of the same gradients")


def reach_of(contraction: Contraction, emitter: Emitter) -> fx.Node:
    """The squared sum of the lengths of a contraction's terms, f64[B]; emitted behind the norm, which reads the same operands."""
    match contraction:
        case Dense(groups=1):
            return emitter.call(reach.reach_products, emitter.rows(contraction.a), emitter.rows(contraction.g))
        case Dense():
            pair = [emitter.call(layout.group_positions, o.node, o.dim, o.outer, o.inner) for o in (contraction.a, contraction.g)]
            return emitter.call(reach.reach_products, *pair)
        case Convolution():
            pair = [images(operand, emitter) for operand in (contraction.x, contraction.g)]
            return emitter.call(reach.reach_images, *pair, windows_of_an_element(contraction.geometry))
        case Rows():
            return emitter.call(embedding.reach_rows, *row_operands(contraction, emitter), contraction.padding_idx)
        case Total():
            return emitter.call(reach.reach_total, images(contraction.x, emitter), count(contraction))
        case LayerScale():
            trailing = len(contraction.normalised)
            operands = [contraction.g, contraction.x, contraction.rstd]
            nodes = [emitter.call(layout.sequence, o.node, o.dim, o.outer, o.inner, trailing) for o in operands]
            return emitter.call(reach.reach_layer_scale, *nodes)
        case ChannelScale():
            return emitter.call(reach.reach_channel_scale, *(o.node for o in (contraction.g, contraction.x, contraction.rstd)))
    raise AssertionError("operations without a formula go with the sum of the same gradients")


def images(operand: Operand, emitter: Emitter) -> fx.Node:
    """An operand with the examples first, as it is where they are."""
    return operand.node if (operand.dim, operand.folded) == (0, 1) else emitter.examples(operand)


def windows_of_an_element(geometry: Geometry) -> int:
    """In how many windows an element can be: every tap in stride 1, one tap where windows do not overlap."""
    sizes = zip(geometry.kernel, geometry.stride, geometry.dilation, strict=True)
    return math.prod(-(-kernel * math.gcd(stride, dilation) // stride) for kernel, stride, dilation in sizes)


def cost(site: Site, norm: NormStrategy, total: SumStrategy) -> Cost:
    """The operands are read once more."""
    if not is_needed(site, norm, total):
        return Cost()
    return Cost(tuple(work_of(term.contraction).of(index) for index, term in enumerate(site.terms)))


def work_of(contraction: Contraction) -> Work:
    """What `reach_of` reads."""
    match contraction:
        case Dense():
            return PRODUCTS
        case Convolution():
            return IMAGES
        case Rows():
            return TABLE
        case Total():
            return TOTAL
    return SCALE
