"""Kernels of embedding sites agree with a float64 table per example, repeated ids and padding included."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dpcompile.kernels import embedding
from dpcompile.kernels.gram import gram_gamma

CheckTraceable = Callable[[Callable[..., Any], Callable[[int], tuple[Any, ...]]], None]
V, D = 11, 5
NORMS = [embedding.sqnorm_rows, embedding.sqnorm_rows_match]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def lookup(B: int, T: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """T up to 13 and V = 11: ids repeat."""
    return torch.randint(0, V, (B, T)), torch.randn(B, T, D).to(dtype)


def tables(ids: Tensor, g: Tensor, padding_idx: int = -1) -> Tensor:
    """f64[B, V, D] by autograd, one example at a time."""
    rows = []
    for one, gradient in zip(ids, g.double(), strict=True):
        weight = torch.zeros(V, D, dtype=torch.float64, requires_grad=True)
        skipped = padding_idx if padding_idx >= 0 else None
        used = torch.nn.functional.embedding(one, weight, padding_idx=skipped)
        rows.append(torch.autograd.grad(used, weight, gradient)[0])
    return torch.stack(rows)


def squares(tensor: Tensor) -> Tensor:
    return tensor.flatten(1).square().sum(1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("B", "T"), [(1, 1), (5, 1), (3, 13), (2, 401)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding_idx", [-1, 0, 7])
def test_norm_adds_repeated_rows_before_squaring(
    norm: Callable[..., Any], B: int, T: int, dtype: torch.dtype, padding_idx: int
) -> None:
    ids, g = lookup(B, T, dtype)
    expected = squares(tables(ids, g, padding_idx))
    assert_close(norm(ids, g, padding_idx), expected, rtol=1e-5 if dtype != torch.float64 else 1e-13, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_norm_is_zero_when_all_positions_are_padding(norm: Callable[..., Any]) -> None:
    g = torch.full((2, 3, D), torch.inf)
    assert norm(torch.full((2, 3), 4), g, 4).tolist() == [0, 0]


@pytest.mark.parametrize("norm", NORMS)
def test_norm_of_rows_that_cancel_has_no_large_error(norm: Callable[..., Any]) -> None:
    ids, g = torch.zeros(1, 2, dtype=torch.int64), torch.randn(1, 1, D).repeat(1, 2, 1)
    g[:, 1] *= -(1 - 2**-12)
    assert_close(norm(ids, g), squares(tables(ids, g)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding_idx", [-1, 7])
def test_tables_and_their_clipped_sum_are_those_of_autograd(dtype: torch.dtype, padding_idx: int) -> None:
    ids, g = lookup(3, 13, dtype)
    factor, wide = torch.rand(3), torch.promote_types(dtype, torch.float32)
    expected = tables(ids, g, padding_idx)
    assert_close(embedding.materialize_rows(ids, g, V, padding_idx), expected.to(wide), rtol=1e-5, atol=1e-5)
    total = torch.einsum("b,bvd->vd", factor.double(), expected)
    clipped = embedding.contract_rows(ids, g, factor, V, padding_idx)
    assert_close(clipped, total.to(wide), rtol=1e-5, atol=1e-5)


def test_strided_gradients_and_short_indices_are_read_right() -> None:
    ids, g = lookup(3, 13)
    strided = g.transpose(0, 1).contiguous().transpose(0, 1)
    for norm in NORMS:
        assert_close(norm(ids.int(), strided), squares(tables(ids, g)), rtol=1e-5, atol=0)
    total = embedding.contract_rows(ids.int(), strided, torch.ones(3), V)
    assert_close(total.double(), tables(ids, g).sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "other"), [(1, 1), (13, 7), (401, 3)])
@pytest.mark.parametrize("paddings", [(-1, -1), (7, -1), (0, 7)])
def test_cross_term_of_two_lookups_is_the_inner_product_of_their_tables(
    dtype: torch.dtype, T: int, other: int, paddings: tuple[int, int]
) -> None:
    first, second = lookup(3, T, dtype), lookup(3, other, dtype)
    expected = (tables(*first, paddings[0]) * tables(*second, paddings[1])).flatten(1).sum(1)
    found, reach = embedding.cross_rows(*first, *second, *paddings)
    error = (found - expected).abs()
    assert (error <= gram_gamma(dtype, max(T, other), 0, D) * reach).all()
    lengths = [g.double().norm(dim=2).sum(1) for _, g in (first, second)]
    assert (error <= 1e-6 * lengths[0] * lengths[1]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "S"), [(1, 1), (13, 7), (401, 3)])
@pytest.mark.parametrize("padding_idx", [-1, 7])
def test_cross_term_of_lookup_and_tied_head_is_the_inner_product_of_tables(
    dtype: torch.dtype, T: int, S: int, padding_idx: int
) -> None:
    ids, b = lookup(3, S, dtype)
    a, g = torch.randn(3, T, D).to(dtype), torch.randn(3, T, V).to(dtype)
    head = torch.einsum("btv,btd->bvd", g.double(), a.double())
    expected = (tables(ids, b, padding_idx) * head).flatten(1).sum(1)
    found, reach = embedding.cross_rows_dense(ids, b, a, g, padding_idx)
    error = (found - expected).abs()
    assert (error <= gram_gamma(dtype, max(T, S), 0, D) * reach).all()
    lengths = (a.double().norm(dim=2) * g.double().norm(dim=2)).sum(1) * b.double().norm(dim=2).sum(1)
    assert (error <= 1e-6 * lengths).all()


@pytest.mark.parametrize("padding_idx", [-1, 7])
def test_rounding_of_rows_that_cancel_is_within_its_bound(padding_idx: int) -> None:
    ids, g = torch.tensor([[3, 3, 7, 3, 3]]).expand(5, 5), torch.randn(5, 5, D)
    g[:, 3:] = -g[:, :2] * (1 + 2**-20)
    error = (embedding.sqnorm_rows(ids, g, padding_idx) - squares(tables(ids, g, padding_idx))).abs()
    assert (error <= gram_gamma(torch.float32, 5, 5, D) * embedding.reach_rows(ids, g, padding_idx)).all()


@pytest.mark.parametrize("padding_idx", [-1, 7])
def test_embedding_kernels_trace_with_a_free_batch_size(check_traceable: CheckTraceable, padding_idx: int) -> None:
    for norm in NORMS:
        check_traceable(norm, lambda B: (*lookup(B, 13), padding_idx))
    check_traceable(embedding.materialize_rows, lambda B: (*lookup(B, 13), V, padding_idx))
    check_traceable(embedding.reach_rows, lambda B: (*lookup(B, 13), padding_idx))
    check_traceable(embedding.contract_rows, lambda B: (*lookup(B, 13), torch.rand(B), V, padding_idx))
    check_traceable(embedding.cross_rows, lambda B: (*lookup(B, 13), *lookup(B, 3), padding_idx, padding_idx))
    check_traceable(
        embedding.cross_rows_dense,
        lambda B: (*lookup(B, 3), torch.randn(B, 13, D), torch.randn(B, 13, V), padding_idx),
    )
