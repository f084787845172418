"""Half precision, autocast and float64: in which types a step computes and returns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import errors, expect, one_example, whole_norm
from torch import Tensor, nn
from zoo import LAYERS
from zoo_case import Case, squares
from zoo_networks import mlp

from dpcompile import dpcompile

NAMES = (
    "linear on sequences", "called twice", "weight norm", "layer norm", "group norm", "conv2d grouped",
    "conv2d depthwise", "embedding with padding", "module tie", "LSTM cell", "spectral norm, training",
)  # fmt: skip
FAMILIES = [case for case in LAYERS if case.name in NAMES]
HALF = torch.bfloat16


def dtypes(step: Any) -> set[torch.dtype]:
    """The types of everything that a step returns but its flags."""
    return {t.dtype for t in (step.losses, step.norms, step.clip_factors, *step.grads.values())}


def sequence_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy f[B] over the positions of each example."""
    return F.cross_entropy(model(x).transpose(1, 2), y, reduction="none").mean(1)


def network() -> tuple[nn.Module, Tensor, Tensor]:
    """A network whose layers autocast treats differently, and five examples with four positions."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 11), nn.ReLU(), nn.LayerNorm(11), nn.Linear(11, 3))
    return model, torch.randn(5, 4, 7), torch.randint(0, 3, (5, 4))


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_half_precision_model_has_float32_results_and_keeps_the_bound(case: Case) -> None:
    model, loss = case.build(HALF)
    batch, kwargs = case.batch(3, HALF), case.kwargs(3, HALF)
    expected = expect(model, loss, batch, kwargs, case.batch_dim)
    private = dpcompile(model, loss=loss, batch_dim=case.batch_dim, max_grad_norm=expected.max_grad_norm)
    step = private(*batch, **kwargs)
    assert dtypes(step) == {torch.float32}
    assert max(errors(step, expected).values()) < 0.02  # a few roundings to eight bits
    private.max_grad_norm = 1e-3
    for index in range(3):
        args, named = one_example(batch, kwargs, case.batch_dim, index)
        assert whole_norm(private(*args, **named).grads) <= 1e-3 * (1 + 1e-4)


def test_float64_model_has_float64_results() -> None:
    step = dpcompile(mlp(3, 5, 2).double(), loss=squares)(torch.randn(4, 3, dtype=torch.float64))
    assert dtypes(step) == {torch.float64}


def test_empty_batch_has_the_types_of_a_full_one() -> None:
    for dtype in (torch.float64, torch.float32, HALF):
        private = dpcompile(mlp(3, 5, 2).to(dtype), loss=squares)
        full, empty = (dtypes(private(torch.randn(size, 3, dtype=dtype))) for size in (2, 0))
        assert full == empty


@pytest.mark.parametrize("strategy", ["auto", "gram", "materialize"])
def test_autocast_around_the_call_is_traced_and_part_of_the_guard(strategy: str) -> None:
    model, x, y = network()
    private = dpcompile(model, loss=sequence_loss, max_grad_norm=1e-3, strategy=strategy)
    plain = private(x, y)
    with torch.autocast("cpu", dtype=HALF):
        cast = private(x, y)
        for index in range(5):
            assert whole_norm(private(x[[index]], y[[index]]).grads) <= 1e-3 * (1 + 1e-4)
    assert "bf16" in private.print_readable(print_output=False)
    assert dtypes(cast) == {torch.float32}
    assert not torch.equal(cast.norms, plain.norms) and torch.allclose(cast.norms, plain.norms, rtol=0.02)
    assert torch.equal(private(x, y).norms, plain.norms)


class Autocast(nn.Module):
    """A model that turns autocast on by itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=HALF):
            return self.model(x).float()


def test_autocast_inside_the_model_equals_autocast_around_the_call() -> None:
    model, x, y = network()
    with torch.autocast("cpu", dtype=HALF):
        outside = dpcompile(model, loss=sequence_loss)(x, y)
    inside = dpcompile(Autocast(model), loss=sequence_loss)(x, y)
    assert torch.allclose(inside.norms, outside.norms, rtol=1e-3)
    assert dtypes(inside) == {torch.float32}


def test_drop_in_traces_the_autocast_of_its_forward() -> None:
    model: Any
    model, x, y = network()
    with torch.autocast("cpu", dtype=HALF):
        expected = dpcompile(model, loss=sequence_loss, max_grad_norm=1e-3)(x, y)
        module: Any = dpcompile(model, max_grad_norm=1e-3).as_module()
        loss = F.cross_entropy(module(x).transpose(1, 2), y)
    loss.backward()
    assert torch.allclose(module.last_step.norms, expected.norms, rtol=0.02)
    assert whole_norm({n: p.grad for n, p in model.named_parameters()}) <= 5e-3 * (1 + 1e-4)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_steps_run_without_autograd_around_them(mode: Any) -> None:
    model, x, y = network()
    expected = dpcompile(model, loss=sequence_loss)(x, y).norms
    with mode():
        assert torch.equal(dpcompile(model, loss=sequence_loss)(x, y).norms, expected)
