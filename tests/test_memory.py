"""Results have memory of their own: no gradient shares it with another, with a later step, or with a mode of torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from oracle import errors, expect
from torch import Tensor, nn
from torch.testing import assert_close
from zoo_case import squares

from dpcompile import StrategyError, dpcompile


class Added(nn.Module):
    """Two layers that are added: weights and biases have equal gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        """f32[B, 2, 5] to f32[B, 2, 3]."""
        return self.first(x) + self.second(x)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_equal_gradients_of_two_parameters_are_two_tensors(backend: str) -> None:
    model, batches = Added(), [torch.randn(3, 2, 5), torch.randn(3, 2, 5)]
    private = dpcompile(model, loss=squares, backend=backend)
    expected = [{name: g.clone() for name, g in private(x).grads.items()} for x in batches]
    steps = [private.backward(x) for x in batches]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert_close(parameter.grad, expected[0][name] + expected[1][name])
        assert_close(steps[0].grads[name], expected[0][name])  # a later step leaves an earlier one alone
    pieces = {g.untyped_storage().data_ptr() for g in steps[0].grads.values()}
    assert len(pieces) == len(steps[0].grads)


def test_per_example_gradients_are_separate_tensors() -> None:
    found = dpcompile(Added(), loss=squares).per_example_gradients(torch.randn(3, 2, 5))
    assert len({g.untyped_storage().data_ptr() for g in found.values()}) == len(found)


@pytest.mark.parametrize("strategy", ["auto", "materialize"])
def test_a_step_inside_inference_mode_leaves_later_steps_alone(strategy: str) -> None:
    model, x = nn.Linear(5, 3, bias=False), torch.randn(2, 7, 5)
    private = dpcompile(model, loss=squares, strategy=strategy)
    with torch.inference_mode():
        inside = private(x).grads["weight"].clone()
    assert_close(private(x).grads["weight"], inside)


class TwoPrecisions(nn.Module):
    """A tied table whose logits are computed in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 5)

    def forward(self, ids: Tensor) -> Tensor:
        """i64[B, T] to f64[B, T, 11]."""
        return F.linear(self.table(ids).double(), self.table.weight.double())


def of_tokens(model: nn.Module, ids: Tensor) -> Tensor:
    """Cross entropy per example."""
    return F.cross_entropy(model(ids).flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape).sum(1)


def test_a_tied_weight_used_in_two_precisions_is_right_and_cross_declines() -> None:
    model, ids = TwoPrecisions(), torch.randint(11, (3, 7))
    expected = expect(model, of_tokens, (ids,), {}, 0)
    assert max(errors(dpcompile(model, loss=of_tokens, max_grad_norm=expected.max_grad_norm)(ids), expected).values()) < 1e-4
    with pytest.raises(StrategyError, match="several precisions"):
        dpcompile(model, loss=of_tokens, strategy={"table.weight": "cross"})(ids)


def test_newer_settings_of_precision_are_read() -> None:
    program = """
import torch
from torch import nn
from dpcompile import dpcompile
from dpcompile.kernels.gram import operand_rounding
torch.backends.cuda.matmul.fp32_precision = "tf32"
assert operand_rounding() == 2.0**-10, operand_rounding()
dpcompile(nn.Linear(5, 3), loss=lambda m, x: m(x).sum(1))(torch.randn(2, 5))
"""
    subprocess.run([sys.executable, "-c", program], check=True)  # the setting is global and cannot be taken back
