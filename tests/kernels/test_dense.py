"""Kernels of linear sites agree with per-example gradients g^T a in float64, within the bound that they
declare."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dpcompile.kernels import dense
from dpcompile.kernels.gram import CONFIDENCE

CheckTraceable = Callable[[Callable[..., Any], Callable[[int], tuple[Any, ...]]], None]
SIZES = [(1, 1, 1, 1), (5, 7, 3, 11), (3, 1, 13, 2), (1, 131, 5, 3), (2, 523, 3, 5), (3, 7, 257, 2)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def operands(B: int, T: int, d: int, p: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(B, T, d).to(dtype), torch.randn(B, T, p).to(dtype)


def positions_first(x: Tensor) -> Tensor:
    """The same values, in memory as [T, B, w]."""
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def gradients(a: Tensor, g: Tensor) -> Tensor:
    return torch.einsum("btp,btd->bpd", g.double(), a.double())


def squares(a: Tensor, g: Tensor) -> Tensor:
    return gradients(a, g).flatten(1).square().sum(1)


def S(a: Tensor, g: Tensor) -> Tensor:
    lengths: Tensor = (a.double().norm(dim=2) * g.double().norm(dim=2)).sum(1)
    return lengths.square()


def tolerance(dtype: torch.dtype) -> float:
    return 1e-12 if dtype == torch.float64 else 1e-5


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, positions_first])
def test_materialised_gradients_norms_and_clipped_sums_are_those_of_float64(
    sizes: tuple[int, int, int, int], dtype: torch.dtype, layout: Callable[[Tensor], Tensor]
) -> None:
    a, g = (layout(x) for x in operands(*sizes, dtype))
    factor, wide = torch.rand(sizes[0]), torch.promote_types(dtype, torch.float32)
    close: dict[str, Any] = {"rtol": tolerance(dtype), "atol": tolerance(dtype) * S(a, g).max().sqrt().item()}
    assert_close(dense.materialize(a, g), gradients(a, g).to(wide), **close)
    expected = torch.einsum("b,bpd->pd", factor.to(wide).double(), gradients(a, g))
    assert_close(dense.contract(a, g, factor), expected.to(wide), **close)
    assert_close(dense.sqnorm_materialized(a, g), squares(a, g), rtol=tolerance(dtype), atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_of_outer_products_is_the_product_of_norms(dtype: torch.dtype) -> None:
    a, g = operands(5, 1, 7, 5003, dtype)
    assert_close(dense.sqnorm_outer(a[:, 0], g[:, 0]), squares(a, g), rtol=1e-6, atol=0)


def random(B: int, T: int, d: int, p: int) -> tuple[Tensor, Tensor]:
    return operands(B, T, d, p)


def shifted(B: int, T: int, d: int, p: int) -> tuple[Tensor, Tensor]:
    """Large equal rows in a, and g without mean: almost everything in the Gram sum cancels."""
    a, g = operands(B, T, d, p)
    return a + 100, g - g.mean(1, keepdim=True)


def cancelling(B: int, T: int, d: int, p: int) -> tuple[Tensor, Tensor]:
    """Every second position undoes the one before up to 1e-3."""
    a, g = operands(B, -(-T // 2), d, p)
    a, g = a.repeat_interleave(2, 1)[:, :T], g.repeat_interleave(2, 1)[:, :T].clone()
    g[:, 1::2] *= -0.999
    return a, g


def constant(B: int, T: int, d: int, p: int) -> tuple[Tensor, Tensor]:
    """Rounding errors that are all equal."""
    return torch.full((B, T, d), 1.1), torch.full((B, T, p), 0.7)


def widely_scaled(B: int, T: int, d: int, p: int) -> tuple[Tensor, Tensor]:
    a, g = operands(B, T, d, p)
    return a * 10 ** (4 * torch.randn(B, T, 1)), g


def first_order(a: Tensor, g: Tensor) -> Tensor:
    """X + Y of gram_gamma in float64."""
    gram_a, gram_g = (a @ a.mT).abs(), (g @ g.mT).abs()
    lengths_a, lengths_g = a.norm(dim=2), g.norm(dim=2)
    outer_a, outer_g = (x[:, :, None] * x[:, None, :] for x in (lengths_a, lengths_g))
    return (outer_a * gram_g + gram_a * outer_g).sum((1, 2))


@pytest.mark.parametrize("data", [random, shifted, cancelling, constant, widely_scaled])
@pytest.mark.parametrize("sizes", [*SIZES, (3, 64, 1021, 509), (2, 257, 67, 71)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [dense.sqnorm_gram, dense.sqnorm_gram_traceable])
def test_gram_norm_keeps_its_declared_rounding_bound(
    data: Callable[..., tuple[Tensor, Tensor]], sizes: tuple[int, int, int, int], dtype: torch.dtype,
    norm: Callable[..., Any],
) -> None:  # fmt: skip
    a, g = (x.to(dtype) for x in data(*sizes))
    squared, bound = norm(a, g)
    gamma = dense.gram_gamma(dtype, *sizes[1:])
    assert (squared >= 0).all()
    assert ((squared - squares(a, g)).abs() <= gamma * bound + 1e-15 * S(a, g)).all()
    reach = first_order(a.double(), g.double())
    assert (bound >= 0.999 * reach).all()
    assert (bound <= 1.001 * (reach + 2 * gamma * S(a, g))).all()


def test_gram_norm_of_zero_gradients_is_zero() -> None:
    squared, bound = dense.sqnorm_gram(torch.randn(3, 5, 7), torch.zeros(3, 5, 2))
    assert squared.tolist() == bound.tolist() == [0, 0, 0]


def test_declared_bound_is_the_theorem_for_short_sums_and_grows_like_a_root_for_long_ones() -> None:
    unit = 2.0**-24
    assert dense.gram_gamma(torch.float32, 3, 5, 7) == pytest.approx(16 * unit, rel=1e-4)
    assert dense.gram_gamma(torch.bfloat16, 99, 900, 24) == pytest.approx(CONFIDENCE * 32 * unit, rel=1e-3)
    assert dense.gram_gamma(torch.float64, 99, 900, 24) == pytest.approx(CONFIDENCE * 32 * 2.0**-53, rel=1e-3)


def test_declared_bound_knows_that_torch_may_round_operands() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        assert dense.gram_gamma(torch.float32, 3, 5, 7) > 4 * 2.0**-8
        assert dense.gram_gamma(torch.float64, 3, 5, 7) < 1e-13
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_term_is_the_inner_product_of_two_gradients(sizes: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    (B, T, d, p) = sizes
    first, second = operands(B, T, d, p, dtype), operands(B, 3, d, p, dtype)
    expected = (gradients(*first) * gradients(*second)).flatten(1).sum(1)
    found, reach = dense.cross_dense(*first, *second)
    assert ((found - expected).abs() <= tolerance(dtype) * (S(*first) * S(*second)).sqrt()).all()
    assert ((found - expected).abs() <= dense.gram_gamma(dtype, max(T, 3), d, p) * reach).all()


@pytest.mark.parametrize("examples", [1, 2, 7])
def test_norms_in_several_chunks_equal_those_in_one(monkeypatch: pytest.MonkeyPatch, examples: int) -> None:
    monkeypatch.setattr(dense, "WORKSPACE", 64)
    monkeypatch.setattr(dense, "FRESH", 0)
    a, g = operands(examples, 5, 3, 7)
    assert_close(dense.sqnorm_gram(a, g)[0], squares(a, g), rtol=1e-5, atol=0)
    assert_close(dense.sqnorm_materialized(a, g), squares(a, g), rtol=1e-5, atol=0)


def test_contraction_leaves_its_operands_alone() -> None:
    a, g = operands(3, 5, 7, 2)
    before = a.clone(), g.clone()
    dense.contract(a, g, torch.rand(3))
    assert_close((a, g), before, rtol=0, atol=0)


@pytest.mark.parametrize("T", [1, 7, 521])
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, positions_first])
def test_linear_kernels_trace_with_a_free_batch_size(
    check_traceable: CheckTraceable, T: int, layout: Callable[[Tensor], Tensor]
) -> None:
    def inputs(B: int) -> tuple[Tensor, ...]:
        return tuple(layout(x) for x in operands(B, T, 3, 5))

    for function in (dense.sqnorm_gram, dense.materialize, dense.sqnorm_materialized):
        check_traceable(dense.TRACEABLE.get(function, function), inputs)
    check_traceable(dense.contract, lambda B: (*inputs(B), torch.rand(B)))
    check_traceable(dense.cross_dense, lambda B: (*inputs(B), *inputs(B)))
    check_traceable(dense.sqnorm_outer, lambda B: tuple(x[:, 0] for x in inputs(B)))
