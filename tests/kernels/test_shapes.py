"""What is told about a kernel's result without running it is true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dpcompile.kernels import clipping, dense, masked, reduction
from dpcompile.kernels.shapes import SHAPES

HALF, WIDE = torch.bfloat16, torch.float64


def sequence(width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Operands that do not lie contiguously."""
    return torch.randn(5, 3, width).to(dtype).transpose(0, 1)


def factor_calls() -> dict[Callable[..., Any], list[tuple[Any, ...]]]:
    """Every kernel from squared norms to clip factors, with a bound of rounding and without."""
    constants: dict[Callable[..., Any], tuple[float, ...]] = {
        clipping.flat_factors: (), clipping.group_factors: (0.5,), clipping.automatic_factors: (1e-24, 0.01),
        clipping.normalized_factors: (1e-24,), clipping.psac_factors: (1e-24, 0.1), clipping.global_factors: (2.0,),
    }  # fmt: skip
    limit = torch.tensor(1.0, dtype=WIDE)
    return {
        kernel: [(VECTOR, bound, limit, MASK, *given, torch.float32) for bound in (None, VECTOR)]
        for kernel, given in constants.items()
    }


VECTOR, MASK = torch.rand(3, dtype=WIDE), torch.tensor([True, False, True])
CALLS: dict[Callable[..., Any], list[tuple[Any, ...]]] = {
    **factor_calls(),
    clipping.masked_losses: [(VECTOR, MASK, torch.float32)],
    clipping.nonfinite_examples: [(VECTOR,)],
    clipping.norms_of: [(VECTOR, MASK, torch.float64)],
    clipping.total_squares: [([VECTOR],), ([VECTOR, VECTOR],)],
    dense.sqnorm_gram: [(sequence(2, dtype), sequence(7, dtype)) for dtype in (HALF, WIDE)],
    dense.sqnorm_materialized: [(sequence(2, dtype), sequence(7, dtype)) for dtype in (HALF, WIDE)],
    dense.sqnorm_outer: [(torch.randn(3, 2), torch.randn(3, 7, dtype=WIDE))],
    masked.sqnorm_masked: [(torch.randn(3, 2), torch.randn(3, 7, dtype=WIDE), torch.ones(7, 2, dtype=torch.bool))],
    reduction.gather: [([torch.randn(3, 2, 5), torch.randn(3), torch.randn(3, 0)],)],
    reduction.sqnorm: [(torch.randn(3),), (sequence(7, HALF),), (torch.randn(0, 5),)],
    reduction.weighted_sum: [
        (sequence(7, HALF), torch.rand(3)), (torch.randn(3), torch.rand(3)), (torch.randn(0, 5), torch.rand(0)),
    ],
}  # fmt: skip


def description(results: Any) -> list[tuple[Any, ...]]:
    """Sizes, strides and dtype of every result."""
    return [(r.shape, r.stride(), r.dtype) for r in (results if isinstance(results, tuple) else (results,))]


@pytest.mark.parametrize("kernel", SHAPES, ids=lambda kernel: kernel.__name__)
def test_sizes_strides_and_dtypes_are_those_of_the_kernel(kernel: Callable[..., Any]) -> None:
    for arguments in CALLS[kernel]:
        assert description(SHAPES[kernel](*arguments)) == description(kernel(*arguments))
