"""Copies, conversions and other changes of the object that the user holds between two steps."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from oracle import errors, expect
from torch import Tensor, nn
from zoo_case import squares
from zoo_networks import mlp

from dpcompile import dpcompile

CLONES = pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda private: pickle.loads(pickle.dumps(private))], ids=["deepcopy", "pickle"]
)


def batch(size: int = 5) -> tuple[Tensor, Tensor]:
    """Inputs and classes."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, generator=generator), torch.randint(0, 2, (size,), generator=generator)


@CLONES
def test_clone_gives_the_same_step_and_owns_its_parameters(clone: Any) -> None:
    private = dpcompile(mlp(3, 5, 2), loss=nn.CrossEntropyLoss(), max_grad_norm=0.1, strategy="materialize")
    step, twin = private(*batch()), clone(private)
    again = twin(*batch())
    assert torch.equal(again.norms, step.norms)
    assert all(torch.equal(again.grads[name], g) for name, g in step.grads.items())
    with torch.no_grad():
        twin.model[0].weight.zero_()
    assert torch.equal(private(*batch()).norms, step.norms)
    assert not torch.equal(twin(*batch()).norms, step.norms)


@CLONES
def test_clone_of_what_never_ran_works(clone: Any) -> None:
    private = dpcompile(mlp(3, 5, 2), loss=nn.CrossEntropyLoss())
    assert torch.equal(clone(private)(*batch()).norms, private(*batch()).norms)


def test_conversion_of_the_private_module_converts_the_model() -> None:
    model = mlp(3, 5, 2)
    private = dpcompile(model, loss=squares)
    x = batch()[0]
    private(x)
    private.double()
    found = errors(private(x.double()), expect(model, squares, (x.double(),), max_grad_norm=1.0))
    assert max(found.values()) < 1e-9, found
    assert private.to(torch.float32)(x).norms.dtype == torch.float32


def test_mode_of_the_private_module_is_that_of_the_model() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 31), nn.Dropout(0.5))
    private, (x, _) = dpcompile(model, loss=squares), batch()
    assert not torch.equal(private(x).norms, private(x).norms)
    private.eval()
    assert torch.equal(private(x).norms, private(x).norms)
    private.train()
    assert not torch.equal(private(x).norms, private(x).norms)


def test_changed_dropout_probability_is_seen() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5))
    private, (x, _) = dpcompile(model, loss=squares), batch()
    private(x)
    model[1].p = 0.0
    assert torch.allclose(private(x).losses, squares(model, x), rtol=1e-6)


def test_freezing_and_unfreezing_the_private_module() -> None:
    model: Any = mlp(3, 5, 2)
    private, (x, _) = dpcompile(model, loss=squares), batch()
    private(x)
    model[0].requires_grad_(False)
    assert set(private(x).grads) == {"2.weight", "2.bias"}
    private.requires_grad_(True)
    assert set(private(x).grads) == {name for name, _ in private.named_parameters()}


def test_loaded_state_is_used() -> None:
    model, other = mlp(3, 5, 2), mlp(3, 5, 2)
    private, (x, _) = dpcompile(model, loss=squares), batch()
    private(x)
    private.load_state_dict(other.state_dict())
    assert torch.equal(private(x).norms, dpcompile(other, loss=squares)(x).norms)
    assert private.state_dict().keys() == model.state_dict().keys()


def test_names_of_parameters_are_those_of_gradients() -> None:
    private, (x, _) = dpcompile(mlp(3, 5, 2), loss=squares), batch()
    assert [name for name, _ in private.named_parameters()] == list(private(x).grads)
    assert len(torch.optim.SGD(private.parameters(), lr=0.1).param_groups[0]["params"]) == 4


@pytest.mark.parametrize(
    "layout",
    [
        lambda x, y: ((x, y), {}),
        lambda x, y: ((x,), {"y": y}),
        lambda x, y: ((x.expand(5, 3).t().contiguous().t(), y), {}),
        lambda x, y: ((x[::1].clone()[:, [0, 1, 2]], y.int().long()), {}),
        lambda x, y: ((x[:3], y[:3]), {}),
    ],
    ids=["positional", "keyword", "other strides", "copied", "smaller"],
)
def test_changed_layout_of_the_batch_is_served(layout: Any) -> None:
    model = mlp(3, 5, 2)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(model(x), y, reduction="none")

    private = dpcompile(model, loss=loss, max_grad_norm=0.1)
    private(*batch())
    args, kwargs = layout(*batch())
    found = errors(private(*args, **kwargs), expect(model, loss, args, kwargs, max_grad_norm=0.1))
    assert max(found.values()) < 1e-5, found


def test_new_batch_sizes_never_trace_again_and_changes_do() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.0))
    private, (x, _) = dpcompile(model, loss=squares), batch()
    for size in (5, 1, 2, 4):
        private(x[:size])
    assert len(private.steps.by_key) == 1
    model[1].p = 0.5
    private(x)
    model[1].p = 0.0
    private(x)
    assert len(private.steps.by_key) == 2


def test_a_model_that_keeps_changing_is_warned_about_with_the_change() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.0))
    private, (x, _) = dpcompile(model, loss=squares), batch()
    with pytest.warns(UserWarning, match=r"traced this model 9 times.*0\.07 became 0\.08"):
        for step in range(9):
            model[1].p = step / 100
            private(x)
    assert len(private.steps.by_key) == 8


class Configured(nn.Module):
    """A model that follows attributes of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.options: Any = {"scales": [1.0, 2.0], "more": SimpleNamespace(on=True)}
        self._hidden = 1
        self.call: Any = torch.sin

    def forward(self, x: Tensor) -> Tensor:
        scale = sum(self.options["scales"]) + self._hidden + self.options["more"].on
        return self.call(self.layer(x)) * scale


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a list in a dict": lambda m: m.options["scales"].append(3.0),
    "an object in a dict": lambda m: setattr(m.options["more"], "on", False),
    "a new object": lambda m: m.options.update(more=SimpleNamespace(on=5)),
    "a private attribute": lambda m: setattr(m, "_hidden", 2),
    "a function": lambda m: setattr(m, "call", torch.cos),
    "forward itself": lambda m: setattr(m, "forward", lambda x: m.layer(x) * 7),
    "a hook": lambda m: m.layer.register_forward_hook(lambda *given: given[-1] * 3),
    "the class": lambda m: setattr(m, "__class__", type("Other", (Configured,), {"forward": lambda m, x: m.layer(x)})),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_attribute_is_seen(change: str) -> None:
    model = Configured()
    private, (x, _) = dpcompile(model, loss=squares), batch()
    before = private(x).losses
    CHANGES[change](model)
    losses = private(x).losses
    assert torch.allclose(losses, squares(model, x), rtol=1e-5) and not torch.allclose(losses, before)


def test_unchanged_attributes_cause_no_new_trace() -> None:
    model = Configured()
    private, (x, _) = dpcompile(model, loss=squares), batch()
    private(x)
    model.options["scales"] = [1.0, 2.0]
    model._hidden = 1
    private(x)
    assert len(private.steps.by_key) == 1


def test_function_that_took_over_an_address_is_told_apart() -> None:
    model = Configured()
    private, (x, _) = dpcompile(model, loss=squares), batch()
    for factor in range(1, 7):
        model.call = eval(f"lambda x: x * {factor}")  # a new function each time, the last one is freed
        assert torch.allclose(private(x).losses, squares(model, x), rtol=1e-5)
