"""One position per example: the gradient is an outer product, so its norm is the product of two norms.

||g a^T||^2 = ||g||^2 ||a||^2 (Goodfellow 2015, arXiv:1510.01799). Neither the gradient nor a Gram matrix is formed. The sum is a
product whose operands torch may round, if its settings say so; the norm is then unsure by as much.
"""

from __future__ import annotations

import math

import torch

from dpcompile.ir.cost import BYTES, D_IN, D_OUT, B, Cost, Work
from dpcompile.ir.site import Dense, Site
from dpcompile.kernels import dense
from dpcompile.kernels.gram import operand_rounding
from dpcompile.strategies.emitter import Emitter, dtype_of
from dpcompile.strategies.scaling import scaled
from dpcompile.strategies.strategy import NormStrategy, SquaredNorm, only

WIDTHS = D_IN + D_OUT
WORK = Work("outer", other_flops=2 * B * WIDTHS, bytes_moved=BYTES * B * WIDTHS, launches=6, features=(B, WIDTHS))
COST = Cost((WORK,))


def declines(site: Site) -> str | None:
    """Only rank-one gradients."""
    found = only(site, Dense)
    if isinstance(found, str):
        return found
    assert isinstance(found, Dense)
    return None if found.positions == 1 and found.groups == 1 else f"there are {found.positions} positions per example"


def emit(site: Site, emitter: Emitter) -> SquaredNorm:
    """Two row norms and their product."""
    contraction = site.terms[0].contraction
    assert isinstance(contraction, Dense)
    squared = emitter.call(dense.sqnorm_outer, emitter.flat(contraction.a), emitter.flat(contraction.g))
    squared = scaled(emitter, squared, site.terms[0].scale)
    coarse = math.expm1(4 * operand_rounding()) if dtype_of(contraction.g.node) != torch.float64 else 0.0
    return SquaredNorm(squared, ((squared, coarse),) if coarse else ())


OUTER = NormStrategy("outer", "Goodfellow 2015", declines, lambda site: COST, emit)
