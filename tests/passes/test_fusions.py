"""Cross entropy, group normalisation and small parameters are rewritten where that is sound, and only there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captured import Captured, captured, rewritten
from oracle import errors, expect
from torch import Tensor, nn
from zoo_case import squares

from dpcompile import dpcompile
from dpcompile.ir.printer import format_graph
from dpcompile.passes.fuse_cross_entropy import MINIMUM_CLASSES
from dpcompile.passes.gather_small import SMALL

MANY = MINIMUM_CLASSES + 1


def rows(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Tensor:
    """Cross entropy summed over positions: f[B]."""
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none", **options).view(y.shape).sum(1)


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Sequences and classes, some of them ignored."""
    y = torch.randint(0, MANY, (3, 2))
    y[0, 1] = -100
    return torch.randn(3, 2, 5, dtype=dtype), y


def printed(model: nn.Module, loss: Any, *args: Tensor) -> str:
    """The rewritten graph."""
    return format_graph(rewritten(captured(model, loss, *args)).joint)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [-100, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_loss_over_many_classes_is_fused_and_exact(weighted: bool, ignored: int, dtype: torch.dtype) -> None:
    model, (x, y) = nn.Linear(5, MANY).to(dtype), batch(dtype)
    y[y == -100] = ignored
    weight = torch.rand(MANY, dtype=dtype) if weighted else None

    def loss(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        chosen = weight if weight is None else weight.to(x.dtype)
        return rows(m, x, y, weight=chosen, ignore_index=ignored)

    expected = expect(model, loss, (x, y), {}, 0)
    private = dpcompile(model, loss=loss, max_grad_norm=expected.max_grad_norm)
    found = errors(private(x, y), expected)
    assert max(found.values()) < (1e-9 if dtype == torch.float64 else 1e-4), found
    text = private.print_readable()
    assert "dp.cross_entropy_backward_(" in text and "_log_softmax" not in text
    assert "dp.addmm(" in text  # the logits, over which their gradient is written, live in a workspace


def test_few_classes_keep_torchs_operations() -> None:
    text = printed(nn.Linear(5, 7), rows, torch.randn(3, 2, 5), torch.randint(0, 7, (3, 2)))
    assert "_log_softmax(" in text and "dp.cross_entropy" not in text


def test_logarithms_that_are_read_elsewhere_are_kept() -> None:
    def loss(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logs = F.log_softmax(m(x).flatten(0, 1), 1)
        entropy = -(logs.exp() * logs).sum(1)
        return (F.nll_loss(logs, y.flatten(), reduction="none") - 0.1 * entropy).view(y.shape).sum(1)

    assert "dp.cross_entropy" not in printed(nn.Linear(5, MANY), loss, *batch(torch.float32))


def test_group_normalisation_runs_backward_once(norm_net: Captured) -> None:
    text = format_graph(rewritten(norm_net).joint)
    assert text.count("dp.group_norm_backward(") == 1
    assert "native_group_norm_backward" not in text and "dp.channel_scale" not in text


def test_without_an_input_gradient_there_is_nothing_to_share() -> None:
    text = printed(nn.Sequential(nn.GroupNorm(2, 4), nn.Conv1d(4, 3, 1)), squares, torch.randn(3, 4, 5))
    assert "dp.channel_scale(" in text and "dp.group_norm_backward" not in text


@pytest.fixture(scope="module")
def norm_net() -> Captured:
    """A group normalisation behind a convolution."""
    return captured(nn.Sequential(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU()), squares, torch.randn(3, 2, 7))


def test_small_parameters_share_one_norm_and_one_sum() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))
    text = printed(model, squares, torch.randn(3, 2, 5))
    assert text.count("dp.gather(") == 1 and text.count("dp.weighted_sums(") == 1 and "dp.weighted_sum(" not in text


def test_large_and_single_gradients_are_left_alone() -> None:
    single = printed(nn.Linear(5, 7, bias=False), squares, torch.randn(3, 2, 5))
    assert "dp.gather(" not in single
    large = nn.Sequential(nn.Linear(5, SMALL + 1), nn.Linear(SMALL + 1, SMALL + 1))
    assert "dp.gather(" not in printed(large, squares, torch.randn(3, 5))


def test_gathered_gradients_have_memory_of_their_own() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))
    grads = dpcompile(model, loss=squares)(torch.randn(3, 2, 5)).grads
    assert len({g.untyped_storage().data_ptr() for g in grads.values()}) == len(grads)


def test_parameters_of_two_dtypes_are_gathered_apart() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7)).double()

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = model, nn.Sequential(nn.Linear(7, 3), nn.LayerNorm(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.narrow(self.wide(x).to(self.narrow[0].weight.dtype))

    mixed, x = Mixed(), torch.randn(3, 2, 5, dtype=torch.float64)
    expected = expect(mixed, squares, (x,), {}, 0)
    private = dpcompile(mixed, loss=squares, max_grad_norm=expected.max_grad_norm)
    assert max(errors(private(x), expected).values()) < 1e-4
    assert private.print_readable().count("dp.gather(") == 2
