"""Which norms are right for a clipped sum that is computed apart from them, and not of the very gradients that were measured.

`reuse` adds up the gradients whose norms were taken: however these were rounded, no example contributes more than C, if nothing
but a rearrangement follows the contraction.
Book-keeping and a second backward pass form the gradients once more, so that behind a norm which rounding made too small an
example would contribute more than C. Rounding is systematic in two cases, and such a norm declines any other sum than `reuse`:

- Convolutions of the library, and tables of rows, add up an example's positions in float32, one after another. Sums of n equal
  terms came out low by up to 1.4e-8 n (oneDNN on an AMD EPYC: 1.3e-5 for 1,024, 7e-4 for 65,536, 1.4e-2 for 1,046,529), those of
  a large one and n small ones by up to 6e-8 n. Matrix products are added up in blocks, or in float64 (`kernels.dense.products`).
- torch may round the operands of float32 products and convolutions to TensorFloat-32 or bfloat16, where its settings allow it;
  cuDNN's do unless they are changed. Operands of half types are exact in these.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import fx

from dpcompile.ir.graph import value
from dpcompile.ir.site import Contraction, Convolution, Dense, Rows
from dpcompile.kernels.gram import convolution_rounding, operand_rounding
from dpcompile.strategies.emitter import dtype_of

MOST_POSITIONS: Final = 128
"""That may be added up in float32 one after another: every addition loses 2^-24 of the sum at most, all of them 7.6e-6
(`kernels.clipping.SLACK` is 1e-5)."""
BY_CONVOLUTION: Final = ("grouped", "grouped-extra", "grouped-gradient", "single", "fused-single")
BY_PRODUCT: Final = ("materialize", "fused")


def too_coarse(contraction: Contraction, norm: str) -> str | None:
    """Why the sum that belongs to this norm has to be of the same gradients; None where it may be any."""
    if norm not in (*BY_CONVOLUTION, *BY_PRODUCT) or not isinstance(contraction, (Convolution, Dense, Rows)):
        return None
    if torch.finfo(dtype_of(contraction.g.node)).eps < torch.finfo(torch.float32).eps:
        return None
    is_one_by_one = norm in BY_CONVOLUTION or isinstance(contraction, Rows)
    if is_one_by_one and contraction.positions > MOST_POSITIONS:
        count = f"{contraction.positions:,} positions"
        return f"the norm by {norm} adds up {count} in float32, so that the sum must be of the same gradients"
    if isinstance(contraction, Rows) or not is_rounded(contraction, norm):
        return None
    return f"the norm by {norm} is of operands that torch's settings may round, so that the sum must be of the same gradients"


def is_rounded(contraction: Convolution | Dense, norm: str) -> bool:
    """Whether torch may round an operand that is not exact in the narrower type."""
    operands = (contraction.x, contraction.g) if isinstance(contraction, Convolution) else (contraction.a, contraction.g)
    unit = convolution_rounding(device_of(contraction.g.node)) if norm in BY_CONVOLUTION else operand_rounding()
    return any(torch.finfo(dtype_of(operand.node)).eps / 2 < unit for operand in operands)


def device_of(node: fx.Node) -> torch.device:
    """Where a value is."""
    return value(node).device
