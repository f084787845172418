"""Cross entropy from two numbers per row equals torch's, its gradient too, whatever the logits and targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from dpcompile.kernels import cross_entropy as kernels

IGNORED = -100
SHAPES = [(0, 7), (1, 1), (5, 7), (13, 601), (3, kernels.BLOCK // 2 + 1)]
CheckTraceable = Callable[[Callable[..., Any], Callable[[int], tuple[Any, ...]]], None]


def sample(rows: int, classes: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with a spread of sizes, targets of which some are ignored, and gradients of the losses."""
    x = torch.randn(rows, classes, dtype=torch.float64) * torch.logspace(-2, 2, rows, dtype=torch.float64)[:, None]
    target = torch.randint(0, classes, (rows,))
    target[2::3] = IGNORED
    return x.to(dtype), target, torch.randn(rows, dtype=torch.float64).to(dtype)


def ours(
    x: Tensor, target: Tensor, gradient: Tensor, weight: Tensor | None = None, in_place: bool = False
) -> tuple[Tensor, Tensor]:
    """(losses, gradient of the logits)."""
    rest = (x, *kernels.row_statistics(x), target, weight, IGNORED)
    losses = kernels.cross_entropy(*rest)
    backward = kernels.cross_entropy_backward_ if in_place else kernels.cross_entropy_backward
    return losses, backward(gradient, *rest)


def torchs(x: Tensor, target: Tensor, gradient: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same by autograd in float64."""
    x = x.double().clone().requires_grad_()
    wide = weight.double() if weight is not None else None
    losses = F.cross_entropy(x, target, weight=wide, ignore_index=IGNORED, reduction="none")
    return losses.detach(), torch.autograd.grad(losses, x, gradient.double())[0]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_losses_and_gradient_equal_torchs(shape: tuple[int, int], weighted: bool, in_place: bool) -> None:
    x, target, gradient = sample(*shape)
    weight = torch.rand(shape[1], dtype=torch.float64) if weighted else None
    expected = torchs(x, target, gradient, weight)
    assert_close(ours(x, target, gradient, weight, in_place), expected, rtol=1e-12, atol=1e-14)


def test_float32_is_as_accurate_as_log_softmax_where_logits_are_large() -> None:
    x, target, gradient = sample(11, 601, torch.float32)
    x += 1e4
    expected, found = torchs(x, target, gradient), ours(x, target, gradient)
    plain = F.cross_entropy(x, target, reduction="none")
    assert (found[0] - expected[0]).abs().max() <= 2 * (plain - expected[0]).abs().max() + 1e-6
    assert_close(found[1].double(), expected[1], rtol=0, atol=1e-5)


def test_in_place_writes_over_the_logits_and_the_other_form_does_not() -> None:
    x, target, gradient = sample(5, 7)
    before = x.clone()
    kept = ours(x, target, gradient)[1]
    assert torch.equal(x, before)
    written = ours(x, target, gradient, in_place=True)[1]
    assert written.data_ptr() == x.data_ptr() and torch.equal(written, kept)


def test_masked_classes_have_no_gradient() -> None:
    x, target, gradient = sample(5, 7)
    target.clamp_(0, 5)
    x[:, 6] = -torch.inf
    losses, dx = ours(x, target, gradient)
    assert losses.isfinite().all() and (dx[:, 6] == 0).all()


def test_a_row_without_a_finite_logit_is_not_finite_as_in_torch() -> None:
    x, target, gradient = sample(5, 7)
    x[1, 2], x[3, 4], target[3] = torch.nan, torch.inf, 0
    for mine, reference in zip(ours(x, target, gradient), torchs(x, target, gradient), strict=True):
        assert torch.equal(mine.isfinite(), reference.isfinite())


def test_everything_traces_with_a_free_number_of_rows(check_traceable: CheckTraceable) -> None:
    def arguments(B: int) -> tuple[Any, ...]:
        x, target, gradient = sample(B, 7, torch.float32)
        return gradient, x, *kernels.row_statistics(x), target, None, IGNORED

    check_traceable(kernels.row_statistics_traceable, lambda B: sample(B, 7, torch.float32)[:1])
    check_traceable(kernels.cross_entropy, lambda B: arguments(B)[1:])
    check_traceable(kernels.cross_entropy_backward_traceable, arguments)


def test_traceable_forms_give_the_same_numbers() -> None:
    x, target, gradient = sample(13, 601)
    rest = (x, *kernels.row_statistics_traceable(x), target, None, IGNORED)
    found = kernels.cross_entropy(*rest), kernels.cross_entropy_backward_traceable(gradient, *rest)
    assert_close(found, torchs(x, target, gradient), rtol=1e-12, atol=1e-14)
