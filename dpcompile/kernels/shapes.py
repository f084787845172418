"""What the commonest kernels return, told without running them: empty tensors of the right sizes, dtype and device.

Tracing needs fake values for every node. Running a kernel of ten operations on fake tensors takes milliseconds, ten times
as long as the one allocation here; half of the time of a small model's rewriting was spent on norms and sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from dpcompile.kernels import clipping, dense, masked, reduction


def squares(x: Tensor, *operands: Any) -> Tensor:
    """f64[B] for operands with the examples first."""
    return x.new_empty(x.shape[:1], dtype=torch.float64)


def squares_and_bound(x: Tensor, *operands: Any) -> tuple[Tensor, Tensor]:
    """Two f64[B]."""
    return squares(x), squares(x)


def one_example(x: Tensor, factor: Tensor) -> Tensor:
    """f[...] for f[B, ...], float32 or wider."""
    return x.new_empty(x.shape[1:], dtype=torch.promote_types(x.dtype, torch.float32))


def side_by_side(parts: list[Tensor]) -> Tensor:
    """f[B, elements of all parts]."""
    return parts[0].new_empty(parts[0].shape[0], sum(math.prod(part.shape[1:]) for part in parts))


def of_dtype(x: Tensor, *operands: Any) -> Tensor:
    """Like x in the dtype that the last operand names."""
    return x.new_empty(x.shape, dtype=operands[-1])


SHAPES: Final[dict[Callable[..., Any], Callable[..., Any]]] = {
    **dict.fromkeys(clipping.FACTORS, of_dtype),
    clipping.masked_losses: of_dtype,
    clipping.nonfinite_examples: lambda squared: squared.new_empty(squared.shape, dtype=torch.bool),
    clipping.norms_of: of_dtype,
    clipping.total_squares: lambda parts: squares(parts[0]),
    dense.sqnorm_gram: squares_and_bound,
    masked.sqnorm_masked: squares_and_bound,
    dense.sqnorm_materialized: squares,
    dense.sqnorm_outer: squares,
    reduction.gather: side_by_side,
    reduction.sqnorm: squares,
    reduction.weighted_sum: one_example,
}
"""Only kernels whose result is contiguous whatever the operands' strides."""
