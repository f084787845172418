"""Normalisations whose gradient lies in another memory format than their input, down to a batch of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import errors, expect
from torch import Tensor, nn
from zoo_case import squares
from zoo_layers import Using

from dpcompile import dpcompile


def tokens(module: Any, x: Tensor) -> Tensor:
    """Normalised images f[B, C, ...] as tokens [B, T, C] for a layer, as before attention: the gradient comes channels-last."""
    return module.out(torch.tanh(module.norm(module.first(x)).flatten(2).transpose(1, 2)))


def evaluated(norm: Any) -> nn.Module:
    """A normalisation with fixed statistics of no special value."""
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 1.5)
    return norm


def network(convolution: type[nn.Module], norm: nn.Module) -> Callable[[], nn.Module]:
    """A convolution, this normalisation of its four channels, and a layer on tokens."""
    return lambda: Using(tokens, first=convolution(3, 4, 2), norm=norm, out=nn.Linear(4, 2))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batch norm 1d": (network(nn.Conv1d, evaluated(nn.BatchNorm1d(4))), (3, 5)),
    "batch norm 2d": (network(nn.Conv2d, evaluated(nn.BatchNorm2d(4))), (3, 5, 4)),
    "batch norm 3d": (network(nn.Conv3d, evaluated(nn.BatchNorm3d(4))), (3, 3, 4, 3)),
    "instance norm 2d": (network(nn.Conv2d, nn.InstanceNorm2d(4, affine=True)), (3, 5, 4)),
}


def eval_norms(model: nn.Module) -> nn.Module:
    """In float64, batch normalisation in eval mode."""
    return model.double().eval()


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, "channels last"], ids=["contiguous", "channels last"])
@pytest.mark.parametrize(("make", "shape"), CASES.values(), ids=CASES)
def test_the_step_equals_the_loop(
    make: Callable[[], nn.Module], shape: tuple[int, ...], memory_format: torch.memory_format | str, size: int
) -> None:
    model, x = eval_norms(make()), torch.randn(size, *shape).double()
    if isinstance(memory_format, str):
        x = x.contiguous(memory_format={5: torch.channels_last_3d, 4: torch.channels_last}.get(x.dim(), torch.contiguous_format))
    expected = expect(model, squares, (x,))
    private = dpcompile(model, loss=squares, max_grad_norm=expected.max_grad_norm)
    assert max(errors(private(x), expected).values()) < 1e-9
    assert private.verify(x).ok


def test_torch_itself_is_wrong_for_one_image() -> None:
    """Why normalisations are traced and looped over with their gradients laid out anew; when this fails, torch was repaired."""
    x = torch.randn(1, 4, 3, 3).double()
    lying = torch.randn(3, 3, 4).double().as_strided((1, 4, 3, 3), (4, 1, 12, 4))
    none, one = torch.empty(0).double(), torch.ones(4).double()

    def gradient(incoming: Tensor) -> Tensor:
        args = (x, one, one, one, none, none, False, 1e-5, [True, True, True])
        return torch.ops.aten.native_batch_norm_backward(incoming, *args)[0]

    assert not torch.allclose(gradient(lying), gradient(lying.contiguous()))
