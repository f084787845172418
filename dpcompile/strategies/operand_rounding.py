"""Whether torch's settings may round operands of float32 contractions to TensorFloat-32 or bfloat16, in the norm or in the sum.

Operands of half types are exact in these until one of them is multiplied by the clip factor, which is done in float32; float64 is
not touched. Convolutions have settings of their own: cuDNN's are rounded unless they are changed.
"""

from __future__ import annotations

import torch
from torch import fx

from dpcompile.ir.graph import value
from dpcompile.ir.site import Contraction, Convolution, Dense, Site
from dpcompile.kernels.gram import convolution_rounding, operand_rounding
from dpcompile.strategies.emitter import dtype_of
from dpcompile.strategies.strategy import NormStrategy, SumStrategy
from dpcompile.strategies.sums import UNFOLD


def product_unit(contraction: Convolution | Dense) -> float:
    """Unit roundoff with which an operand of a matrix product may be rounded, in the norm or in the sum; 0 where none is."""
    return 0.0 if is_wide(contraction) else operand_rounding()


def convolution_unit(contraction: Convolution | Dense) -> float:
    """The same for a convolution of the library."""
    return 0.0 if is_wide(contraction) else convolution_rounding(value(contraction.g.node).device)


def is_wide(contraction: Convolution | Dense) -> bool:
    """Whether it is computed in float64."""
    return eps(contraction.g.node) < torch.finfo(torch.float32).eps


def is_exact(contraction: Convolution, unit: float) -> bool:
    """Whether both operands are of half types that a rounding of this unit leaves as they are."""
    return all(eps(operand.node) >= unit for operand in (contraction.x, contraction.g))


def eps(node: fx.Node) -> float:
    """The distance from 1 to the next number of a value's type."""
    return torch.finfo(dtype_of(node)).eps


def of_sum(contraction: Contraction, norm: NormStrategy, total: SumStrategy) -> float:
    """Unit roundoff of the operands of a clipped sum that the library computes as a convolution, apart from the norm, and that
    the norm's own interval does not tell; `projected` tells. Half of it where the clip factor alone makes an operand longer."""
    if not total.is_apart or total is UNFOLD or norm.name == "projected" or not isinstance(contraction, Convolution):
        return 0.0
    unit = convolution_unit(contraction)
    return unit / 2 if is_exact(contraction, unit) else unit


def is_coarse(site: Site, norm: NormStrategy, total: SumStrategy) -> bool:
    """Whether that is so for some use of a parameter."""
    return any(of_sum(term.contraction, norm, total) > 0 for term in site.terms)
