"""Reductions of materialised per-example gradients agree with float64 arithmetic."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from dpcompile.kernels.reduction import CHUNK, inner, sqnorm, weighted_sum

CheckTraceable = Callable[[Callable[..., Any], Callable[[int], tuple[Any, ...]]], None]
SHAPES = [(1, 1), (3,), (3, 5, 7), (5, 2, 3, 3), (1, CHUNK), (2, CHUNK + 1), (3, 13, 1009), (0, 5, 7)]
CONSTANT = CHUNK / 8 * 2**-24
"""Equal numbers have equal rounding errors: the worst case of at least 8 accumulators."""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_squared_norm_is_the_float64_sum_of_squares(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    expected = x.double().reshape(shape[0], math.prod(shape[1:])).square().sum(1)
    assert_close(sqnorm(x), expected, rtol=1e-13 if dtype == torch.float64 else 1e-6, atol=0)


def test_squared_norm_of_a_large_gradient_does_not_drift() -> None:
    x = torch.full((1, 2**22), 1.1)
    assert_close(sqnorm(x), x.double().square().sum(1), rtol=CONSTANT, atol=0)


def test_squared_norm_does_not_overflow_in_the_sum() -> None:
    x = torch.full((2, 3 * CHUNK), 1e17)
    assert_close(sqnorm(x), x.double().square().sum(1), rtol=CONSTANT, atol=0)


def test_squared_norm_of_a_non_finite_gradient_is_not_finite() -> None:
    x = torch.zeros(3, 5)
    x[0, 1], x[2, 3] = torch.nan, torch.inf
    assert sqnorm(x).isfinite().tolist() == [False, True, False]


def test_squared_norm_reads_any_strides() -> None:
    x = torch.randn(3, 5, 7, 11)
    assert_close(sqnorm(x.permute(0, 3, 1, 2)), sqnorm(x), rtol=1e-6, atol=0)
    moved = x.transpose(0, 1)
    assert_close(sqnorm(moved), moved.double().flatten(1).square().sum(1), rtol=1e-6, atol=0)
    assert_close(sqnorm(x[:, :1].expand(3, 13, 7, 11)), 13 * sqnorm(x[:, :1]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weighted_sum_is_the_sum_of_scaled_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, factor = torch.randn(shape).to(dtype), torch.rand(shape[0])
    expected = torch.einsum("b,b...->...", factor.double(), x.double())
    wide = torch.promote_types(dtype, torch.float32)
    assert_close(weighted_sum(x, factor), expected.to(wide), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_inner_product_error_is_small_against_the_norms(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, y = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    error = (inner(x, y) - (x.double() * y.double()).reshape(shape[0], math.prod(shape[1:])).sum(1)).abs()
    assert (error <= 1e-6 * (sqnorm(x) * sqnorm(y)).sqrt()).all()


@pytest.mark.parametrize("row", [(5, 7), (3, 5000)])
def test_reductions_trace_with_a_free_batch_size(check_traceable: CheckTraceable, row: tuple[int, ...]) -> None:
    check_traceable(sqnorm, lambda B: (torch.randn(B, *row),))
    check_traceable(weighted_sum, lambda B: (torch.randn(B, *row), torch.rand(B)))
    check_traceable(inner, lambda B: (torch.randn(B, *row), torch.randn(B, *row)))
