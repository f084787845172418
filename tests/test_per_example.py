"""Every example's own gradient, as the plain loop computes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import expect, per_example_gradients, relative_error
from torch import nn
from zoo import LAYERS
from zoo_case import Case, squares
from zoo_layers import Using
from zoo_networks import mlp

from dpcompile import DPCompileError, dpcompile

NAMES = (
    "linear on sequences", "conv2d grouped", "conv2d strided", "embedding with padding", "module tie",
    "layer norm", "LSTM", "nested inputs", "weight norm", "group norm",
)  # fmt: skip
FAMILIES = [case for case in LAYERS if case.name in NAMES]


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_gradients_equal_the_loop(case: Case) -> None:
    model, loss = case.build(torch.float64)
    batch, kwargs = case.batch(3, torch.float64), case.kwargs(3, torch.float64)
    _, expected = per_example_gradients(model, loss, batch, kwargs, case.batch_dim)
    actual = dpcompile(model, loss=loss, batch_dim=case.batch_dim).per_example_gradients(*batch, **kwargs)
    scale = expect(model, loss, batch, kwargs, case.batch_dim).norms.max()
    assert list(actual) == [name for name, p in model.named_parameters() if p.requires_grad]
    assert max(relative_error(actual[name], g, scale) for name, g in expected.items()) < 1e-9


def test_their_norms_are_the_steps_norms() -> None:
    private, x = dpcompile(mlp(3, 5, 2), loss=squares), torch.randn(7, 3)
    squares_of = [g.double().flatten(1).square().sum(1) for g in private.per_example_gradients(x).values()]
    assert torch.allclose(torch.stack(squares_of).sum(0).sqrt().float(), private(x).norms, rtol=1e-6)


@pytest.mark.parametrize("size", [0, 1, 2, 11])
def test_every_batch_size_is_served_by_one_trace(size: int) -> None:
    private = dpcompile(mlp(3, 5, 2), loss=squares)
    for count in (size, 3, size):
        found = private.per_example_gradients(torch.randn(count, 3))
        assert {name: tuple(g.shape) for name, g in found.items()} == {
            name: (count, *p.shape) for name, p in private.model.named_parameters()
        }
    assert len(private.gradients.by_key) == 1


def test_parameter_without_gradient_path_has_zeros() -> None:
    model = Using(lambda m, x: m.a(x), a=nn.Linear(3, 2), spare=nn.Linear(5, 7))
    found = dpcompile(model, loss=squares).per_example_gradients(torch.randn(4, 3))
    assert found["spare.weight"].shape == (4, 7, 5) and not found["spare.weight"].any()


def test_frozen_parameter_is_absent_and_unfreezing_is_seen() -> None:
    model: Any = mlp(3, 5, 2)
    model[0].requires_grad_(False)
    private, x = dpcompile(model, loss=squares), torch.randn(4, 3)
    assert set(private.per_example_gradients(x)) == {"2.weight", "2.bias"}
    model[0].requires_grad_(True)
    assert private.per_example_gradients(x)["0.weight"].any()


def test_neither_grad_nor_buffers_are_touched() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh())
    nn.utils.parametrizations.spectral_norm(model[0])
    private = dpcompile(model, loss=squares)
    before = [buffer.clone() for buffer in model.buffers()]
    private.per_example_gradients(torch.randn(4, 3))
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))


def test_half_precision_gives_float32() -> None:
    model = mlp(3, 5, 2).bfloat16()
    found = dpcompile(model, loss=squares).per_example_gradients(torch.randn(4, 3, dtype=torch.bfloat16))
    assert {g.dtype for g in found.values()} == {torch.float32}


def test_mixed_examples_are_refused() -> None:
    model: Any = Using(lambda m, x: m.a(x) - m.a(x).mean(0), a=nn.Linear(3, 2))
    with pytest.raises(DPCompileError, match="mean"):
        dpcompile(model, loss=squares).per_example_gradients(torch.randn(4, 3))
