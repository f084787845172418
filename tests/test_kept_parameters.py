"""Tensors computed from parameters before the step: refused where ordinary training goes through them, else constants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import errors, expect
from torch import Tensor, nn
from zoo_case import squares
from zoo_layers import Using

from dpcompile import DPCompileError, dpcompile

DERIVED = "was computed from a tensor that requires grad"


def layer(call: Any) -> Any:
    """A linear layer in float64 and a function that uses it."""
    torch.manual_seed(0)
    return Using(call, a=nn.Linear(3, 3)).double()


def transposed() -> Any:
    """A view of the weight, made once."""
    model = layer(lambda module, x: module.a(x) @ module.view)
    model.view = model.a.weight.t()
    return model


def in_pieces() -> Any:
    """Rows of the weight in a list; the parameter is reached in no other way."""
    model = layer(lambda module, x: torch.stack([x @ row for row in module.rows], 1))
    model.rows = list(model.a.weight.unbind(0))
    return model


def merged() -> Any:
    """A weight that was computed from another, beside a counter that is written to."""
    model = layer(lambda module, x: module.a(x) @ module.twice * module.n.add_(1))
    model.twice = model.a.weight * 2
    model.register_buffer("n", torch.zeros((), dtype=torch.float64))
    return model


def registered() -> Any:
    """The view as a buffer."""
    model = layer(lambda module, x: module.a(x) @ module.view)
    model.register_buffer("view", model.a.weight.t())
    return model


@pytest.mark.parametrize("make", [transposed, in_pieces, merged, registered])
def test_what_was_computed_from_a_parameter_is_refused(make: Any) -> None:
    with pytest.raises(DPCompileError, match=DERIVED) as caught:
        dpcompile(make(), loss=squares)(torch.randn(4, 3).double())
    assert "lambda module" in str(caught.value)


def test_it_is_refused_in_the_loss_and_in_a_drop_in() -> None:
    model = nn.Linear(3, 3)
    view = model.weight.t()
    with pytest.raises(DPCompileError, match=DERIVED):
        dpcompile(model, loss=lambda m, x: (m(x) @ view).sum(1))(torch.randn(4, 3))
    with pytest.raises(DPCompileError, match=DERIVED):
        dpcompile(transposed()).as_module()(torch.randn(4, 3).double())


def detached() -> Any:
    """A constant that has the weight's memory."""
    model = layer(lambda module, x: module.a(x) @ module.constant)
    model.constant = model.a.weight.detach().t()
    return model


def leaf() -> Any:
    """A tensor that requires grad and is no parameter: nobody's gradient is lost with it."""
    model = layer(lambda module, x: module.a(x) * module.constant)
    model.constant = torch.randn(3, dtype=torch.float64, requires_grad=True)
    return model


@pytest.mark.parametrize("make", [detached, leaf])
def test_detached_values_and_leaves_are_constants(make: Any) -> None:
    model, x = make(), torch.randn(4, 3).double()
    expected = expect(model, squares, (x,))
    private = dpcompile(model, loss=squares, max_grad_norm=expected.max_grad_norm)
    assert max(errors(private(x), expected).values()) < 1e-12
    assert "a constant of shape" in str(private.report())


def sign_of(model: nn.Module, x: Tensor) -> Tensor:
    """Losses whose gradient is zero everywhere."""
    return model(x).sign().sum(1)


@pytest.mark.parametrize("options", [{}, {"microbatch": 2}, {"memory_budget": "1 GB"}, {"clipping": "per-layer"}], ids=str)
@pytest.mark.parametrize("is_beside", [True, False])
def test_without_a_gradient_path_everything_is_zero(options: dict[str, Any], is_beside: bool) -> None:
    weight = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    model, x = nn.Linear(3, 2).double(), torch.randn(5, 3).double()
    step = dpcompile(model, loss=(lambda m, x: (x @ weight).sum(1)) if is_beside else sign_of, **options)(x)
    assert step.norms.tolist() == [0] * 5 and step.clip_factors.flatten().tolist() == [1] * 5
    assert {name: float(g.abs().sum()) for name, g in step.grads.items()} == {"weight": 0, "bias": 0}
