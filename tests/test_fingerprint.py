"""Whatever a trace has read and Python can change is seen by the next step: attributes of every kind, and the loss's own."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from zoo_case import squares

from dpcompile import dpcompile


def model() -> Any:
    """A model that reads attributes of many kinds, of classes that no other test shares."""

    class Scale:
        bias = 0

        def __init__(self) -> None:
            self.factor = 1

        def __call__(self, x: Tensor) -> Tensor:
            return x * self.factor + self.bias

    class Slotted:
        __slots__ = ("factor",)

        def __init__(self) -> None:
            self.factor = 1

    class Many(nn.Module):
        shift = 0

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)
            self.scale, self.slotted = Scale(), Slotted()
            self.part = functools.partial(torch.mul, other=1)
            self.array, self.queue, self.long = np.ones(3), deque([1.0]), [1.0] * 2000

        def forward(self, x: Tensor) -> Tensor:
            numbers = self.slotted.factor + float(self.array.sum()) + sum(self.queue) + self.long[5]
            return self.scale(self.part(self.layer(x))) * numbers + self.shift

    return Many()


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a keyword of a partial function": lambda m: m.part.keywords.update(other=3),
    "an attribute of a callable": lambda m: setattr(m.scale, "factor", 3),
    "a slot": lambda m: setattr(m.slotted, "factor", 3),
    "an array": lambda m: m.array.fill(3.0),
    "a queue": lambda m: m.queue.append(3.0),
    "an entry of a long list": lambda m: m.long.__setitem__(5, 3.0),
    "an attribute of the module's class": lambda m: setattr(type(m), "shift", 3),
    "an attribute of an object's class": lambda m: setattr(type(m.scale), "bias", 3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_attribute_is_seen(change: str) -> None:
    made, x = model(), torch.randn(5, 3)
    private = dpcompile(made, loss=squares)
    before = private(x).losses
    assert_close(before, squares(made, x))
    CHANGES[change](made)
    losses = private(x).losses
    assert_close(losses, squares(made, x))
    assert not torch.allclose(losses, before)
    private(x)
    assert len(private.steps.by_key) == 2  # nothing changed since


FACTOR = 1.0


def by_global(model: nn.Module, x: Tensor) -> Tensor:
    """A loss that reads a number of its file."""
    return squares(model, x) * FACTOR


class Annealed:
    """A loss with a weight that a schedule changes."""

    def __init__(self) -> None:
        self.weight = 1.0

    def __call__(self, model: nn.Module, x: Tensor) -> Tensor:
        return squares(model, x) * self.weight

    def method(self, model: nn.Module, x: Tensor) -> Tensor:
        """The same as a bound method."""
        return self(model, x)


def test_a_number_of_the_file_that_the_loss_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    private, x = dpcompile(nn.Linear(3, 2), loss=by_global), torch.randn(5, 3)
    before = private(x).losses
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert_close(private(x).losses, 3 * before)


@pytest.mark.parametrize("bound", [False, True])
def test_an_attribute_of_the_loss(bound: bool) -> None:
    loss, x = Annealed(), torch.randn(5, 3)
    private = dpcompile(nn.Linear(3, 2), loss=loss.method if bound else loss)
    before = private(x).losses
    loss.weight = 3.0
    assert_close(private(x).losses, 3 * before)


def test_a_name_that_the_loss_closes_over() -> None:
    weight, x = 1.0, torch.randn(5, 3)
    private = dpcompile(nn.Linear(3, 2), loss=lambda m, x: squares(m, x) * weight)
    before = private(x).losses
    weight = 3.0
    assert_close(private(x).losses, 3 * before)


def test_a_criterion_beside_a_model_that_has_one_of_the_same_name() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.loss = nn.Linear(3, 4), nn.CrossEntropyLoss(weight=torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    made, x, y = Net(), torch.randn(5, 3), torch.randint(0, 4, (5,))
    private = dpcompile(made, loss=nn.CrossEntropyLoss(weight=torch.full((4,), 5.0)))
    assert_close(private(x, y).losses, 5 * F.cross_entropy(made(x), y, reduction="none"))
    assert private.verify(x, y).ok
