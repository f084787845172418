"""Whether torch's settings may round operands of float32 contractions to TensorFloat-32 or bfloat16, in the norm or in the sum.

Operands of half types are exact in these, and float64 is not touched. Convolutions have settings of their own: cuDNN's are
rounded unless they are changed.
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
    """Unit roundoff with which an operand of a matrix product may be rounded; 0 where none is."""
    return unit_of(contraction, operand_rounding())


def convolution_unit(contraction: Convolution | Dense) -> float:
    """The same for a convolution of the library."""
    return unit_of(contraction, convolution_rounding(value(contraction.g.node).device))


def unit_of(contraction: Convolution | Dense, unit: float) -> float:
    """The unit, if an operand is not exact in the type that it belongs to."""
    nodes = (contraction.x.node if isinstance(contraction, Convolution) else contraction.a.node, contraction.g.node)
    if eps(contraction.g.node) < torch.finfo(torch.float32).eps:
        return 0.0
    return unit if any(eps(node) / 2 < unit for node in nodes) else 0.0


def eps(node: fx.Node) -> float:
    """The distance from 1 to the next number of a value's type."""
    return torch.finfo(dtype_of(node)).eps


def of_sum(contraction: Contraction, norm: NormStrategy, total: SumStrategy) -> float:
    """Unit roundoff of the operands of a clipped sum that the library computes as a convolution, apart from the norm, and that
    the norm's own interval does not tell; `projected` takes the library's outputs itself, and tells."""
    if not total.is_apart or total is UNFOLD or norm.name == "projected" or not isinstance(contraction, Convolution):
        return 0.0
    return convolution_unit(contraction)


def is_coarse(site: Site, norm: NormStrategy, total: SumStrategy) -> bool:
    """Whether that is so for some use of a parameter."""
    return any(of_sum(term.contraction, norm, total) > 0 for term in site.terms)
