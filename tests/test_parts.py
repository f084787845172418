"""Parts of the model through its drop-in: to be looked at; what they compute is not differentiated unclipped."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpcompile import DPCompileError, dpcompile


class Encoder(nn.Module):
    """A body and a head, with methods that compute parts of forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 6), nn.Linear(6, 4)
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])

    def encode(self, x: Tensor) -> Tensor:
        """Features f[B, 6]."""
        return self.body(x).tanh()

    def outputs(self, x: Tensor) -> dict[str, list[Tensor]]:
        """The same in containers."""
        return {"hidden": [self.encode(x)]}

    def embedded(self) -> nn.Module:
        """The first layer."""
        return self.body

    def weight(self) -> Tensor:
        """A parameter itself."""
        return self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        """Classes."""
        scores: Tensor = self.head(self.encode(x))
        return scores


X = torch.randn(5, 3)
CALLS = {
    "method": lambda m: m.encode(X),
    "containers": lambda m: m.outputs(X),
    "submodule": lambda m: m.body(X),
    "its forward": lambda m: m.body.forward(X),
    "of a list": lambda m: m.layers[1](X),
    "of a loop": lambda m: [layer(X) for layer in m.layers],
    "returned": lambda m: m.embedded()(X),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_calls_whose_result_requires_grad_are_refused(call: Any) -> None:
    model = Encoder()
    module = dpcompile(model, max_grad_norm=0.1).as_module()
    with pytest.raises(DPCompileError, match="without being clipped"):
        call(module)
    with torch.no_grad():
        assert str(call(module)) == str(call(model))
    model.requires_grad_(False)
    call(module)
    assert all(p.grad is None for p in model.parameters())


def test_everything_else_is_the_models_own() -> None:
    model: Any = Encoder()
    module: Any = dpcompile(model).as_module()
    assert module.head.weight is model.head.weight is module.weight() and module.head == model.head
    assert isinstance(module.head, nn.Linear) and len(module.layers) == 2 and module.head.in_features == 6
    assert list(module.head.parameters()) == list(model.head.parameters())
    assert module.head.state_dict().keys() == model.head.state_dict().keys()
    assert module.state_dict().keys() == model.state_dict().keys()
    module.body.requires_grad_(False)
    body: Any = module.body
    body.scale = 2
    assert not model.body.weight.requires_grad and model.body.scale == 2
    module(X).sum().backward()
    assert model.head.weight.grad is not None and model.body.weight.grad is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))])
def test_copies_of_parts_are_ordinary_modules(copied: Any) -> None:
    module: Any = dpcompile(Encoder()).as_module()
    part = copied(module.head)
    assert type(part) is nn.Linear and torch.equal(part.weight, module.head.weight)
    assert part(torch.randn(2, 6)).requires_grad
    assert torch.equal(copied(module)(X), module(X))


def test_a_drop_in_has_the_places_of_its_model() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    module: Any = dpcompile(model, max_grad_norm=1.0).as_module()
    assert len(module) == 2
    assert [layer.__class__ for layer in module] == [nn.Linear, nn.Tanh]
    assert module[0].weight is model[0].weight
    for layer in (module[0], next(iter(module))):
        with pytest.raises(DPCompileError, match="called with gradients enabled"):
            layer(X)
    with torch.no_grad():
        assert torch.equal(module[0](X), model[0](X))


def test_a_drop_in_of_a_model_without_places_has_none_and_is_true() -> None:
    module: Any = dpcompile(Encoder(), max_grad_norm=1.0).as_module()
    assert module
    for look in (len, iter, lambda m: m[0]):
        with pytest.raises(TypeError, match="Encoder"):
            look(module)
