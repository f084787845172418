"""The ordinary gradient belongs to an example only where there is one."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from dpcompile.ir.errors import InvalidInput
from dpcompile.kernels.alone import SMALL, TRACEABLE, only_example, total_square
from dpcompile.kernels.reduction import CHUNK


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_only_examples_gradient_is_the_ordinary_one(dtype: torch.dtype) -> None:
    gradient = torch.randn(3, 5, dtype=dtype)
    for form in (only_example, TRACEABLE[only_example]):
        found = form(gradient, torch.ones(1))
        assert isinstance(found, torch.Tensor) and found.dtype == torch.promote_types(dtype, torch.float32)
        assert_close(found, gradient.to(found.dtype)[None])


@pytest.mark.parametrize("size", [0, 2, 7])
def test_the_gradient_of_several_examples_is_nobodys_own(size: int) -> None:
    with pytest.raises(InvalidInput, match=f"got {size} examples"):
        only_example(torch.randn(3, 5), torch.ones(size))


SHAPES = [
    [()], [(0,)], [(1,), (0, 3)], [(7, 11), (5,)], [(CHUNK,)], [(CHUNK + 1,), (3,)], [(SMALL + 1,), (SMALL,)],
    [(9 * CHUNK,), (2, 3)],
]  # fmt: skip


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_one_norm_of_all_gradients_is_the_norm_of_all_their_elements(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> None:
    gradients = [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]
    expected = torch.stack([gradient.double().square().sum() for gradient in gradients]).sum(0, keepdim=True)
    for form in (total_square, TRACEABLE[total_square]):
        found = form(gradients, torch.ones(1))
        assert isinstance(found, torch.Tensor) and found.dtype == torch.float64
        assert_close(found, expected, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=0.0)


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_both_parts_of_complex_numbers_count(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> None:
    gradients = [torch.randn(3, dtype=torch.float32), *(torch.randn(shape, dtype=dtype).conj() for shape in shapes)]
    expected = torch.stack([g.abs().double().square().sum() for g in gradients]).sum(0, keepdim=True)
    for form in (total_square, TRACEABLE[total_square]):
        assert_close(form(gradients, torch.ones(1)), expected, rtol=1e-6, atol=0.0)


def test_one_norm_of_millions_of_elements_is_not_low() -> None:
    gradient = torch.rand(2**22)
    expected = gradient.double().square().sum()
    assert_close(total_square([gradient], torch.ones(1)), expected[None], rtol=2e-5, atol=0.0)


def test_gradients_of_several_precisions_have_one_norm() -> None:
    gradients = [torch.randn(5, 7), torch.randn(11, dtype=torch.float64), torch.randn(3, dtype=torch.bfloat16)]
    expected = torch.stack([gradient.double().square().sum() for gradient in gradients]).sum(0, keepdim=True)
    assert_close(total_square(gradients, torch.ones(1)), expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("size", [0, 2, 7])
def test_several_examples_have_no_norm_of_their_own(size: int) -> None:
    with pytest.raises(InvalidInput, match=f"got {size} examples"):
        total_square([torch.randn(3, 5)], torch.ones(size))
