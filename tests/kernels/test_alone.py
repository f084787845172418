"""The ordinary gradient belongs to an example only where there is one."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from dpcompile.ir.errors import InvalidInput
from dpcompile.kernels.alone import TRACEABLE, only_example


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
