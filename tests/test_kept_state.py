"""Attributes that forward writes for its next call: caches that change nothing are exact, everything else is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import errors, expect
from torch import Tensor, nn
from zoo_case import squares
from zoo_layers import Using

from dpcompile import DPCompileError, dpcompile


def counted(module: Any, x: Tensor) -> Tensor:
    """Calls, counted in a tensor that is not there at first."""
    module.kept = torch.zeros(()) if module.kept is None else module.kept + 1
    return module.a(x) * (1 + module.kept)


def counted_on(module: Any, x: Tensor) -> Tensor:
    """Calls, counted in a tensor that is there from the beginning."""
    module.tensor = module.tensor + 1
    return module.a(x) * module.tensor


def carried(module: Any, x: Tensor) -> Tensor:
    """What the batch before gave is added."""
    y = module.a(x)
    z = y if module.kept is None else y + module.kept.mean()
    module.kept = y.detach()
    return z


def of_parameter(module: Any, x: Tensor) -> Tensor:
    """A value of a parameter that later calls find as it was."""
    if module.kept is None:
        module.kept = module.a.weight * 2
    return x @ module.kept.t()


def of_parameter_in_dict(module: Any, x: Tensor) -> Tensor:
    """The same in a dict."""
    if "weight" not in module.held:
        module.held["weight"] = module.a.weight * 2
    return x @ module.held["weight"].t()


def of_batch_in_dict(module: Any, x: Tensor) -> Tensor:
    """The batch before, in a dict."""
    before = module.held.get("x")
    module.held["x"] = x.detach()
    return module.a(x if before is None else x + before.mean())


def number_in_dict(module: Any, x: Tensor) -> Tensor:
    """Calls, counted in an entry of a dict."""
    module.numbers["calls"] += 1
    return module.a(x) * module.numbers["calls"]


def constant(module: Any, x: Tensor) -> Tensor:
    """The same numbers at every call."""
    if module.kept is None:
        module.kept = torch.arange(2).to(x.dtype)
    return module.a(x) + module.kept


def constant_in_dict(module: Any, x: Tensor) -> Tensor:
    """The same in a dict, by length."""
    if x.shape[1] not in module.held:
        module.held[x.shape[1]] = torch.arange(2).to(x.dtype)
    return module.a(x) + module.held[x.shape[1]]


def looked_at(module: Any, x: Tensor) -> Tensor:
    """Values kept for somebody else to look at."""
    module.kept = module.a(x)
    return torch.tanh(module.kept)


def made(call: Callable[..., Any]) -> Any:
    """A layer with room for what is kept."""
    model: Any = Using(call, a=nn.Linear(3, 2)).double()
    model.kept, model.held, model.numbers, model.tensor = None, {}, {"calls": 0}, torch.zeros(())
    return model


REFUSED = {
    counted: "keeps kept for", counted_on: "keeps tensor for", carried: "keeps kept for", of_parameter: "keeps kept for",
    of_parameter_in_dict: "keeps held for", of_batch_in_dict: "keeps held for",
    number_in_dict: "contents of the attribute numbers",
}  # fmt: skip


@pytest.mark.parametrize("check_examples", [True, False], ids=["checked", "unchecked"])
@pytest.mark.parametrize(("call", "message"), REFUSED.items(), ids=lambda case: getattr(case, "__name__", ""))
def test_state_between_calls_is_refused_and_put_back(call: Callable[..., Any], message: str, check_examples: bool) -> None:
    model = made(call)
    tensor = model.tensor
    with pytest.raises(DPCompileError, match=message):
        dpcompile(model, loss=squares, check_examples=check_examples)(torch.randn(4, 3).double())
    assert (model.kept, model.held, model.numbers) == (None, {}, {"calls": 0})
    assert model.tensor is tensor


@pytest.mark.parametrize("call", [constant, constant_in_dict, looked_at])
def test_a_cache_that_changes_nothing_is_exact_step_after_step(call: Callable[..., Any]) -> None:
    model, x = made(call), torch.randn(4, 3).double()
    private = dpcompile(model, loss=squares)
    for _ in range(2):
        expected = expect(model, squares, (x,))
        private.max_grad_norm = expected.max_grad_norm
        assert max(errors(private(x), expected).values()) < 1e-9
        assert (model.kept, model.held) == (None, {})
        with torch.no_grad():
            model.a.weight.add_(0.5)
