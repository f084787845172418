"""What is watched or refused beside the program's own modules: modules in lists and closures, code that was exchanged, arrays and
objects among the arguments, modes of functions around the call."""

from __future__ import annotations

import array
import random
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from zoo_case import squares

from dpcompile import DPCompileError, dpcompile, reads

Change = Callable[[Any], Any]


class Listing(nn.Module):
    """A layer, and another module in a plain list."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.layer, self.others = nn.Linear(3, 2), [other]

    def forward(self, x: Tensor) -> Any:
        """What the other module makes of the layer's result."""
        return self.others[0](self.layer(x))


def check_seen(model: nn.Module, loss: Callable[..., Tensor], change: Callable[[], Any], **kwargs: Any) -> None:
    """A step before and after the change is what the model and the loss are then; nothing is traced without need."""
    x = torch.randn(5, 3)
    private = dpcompile(model, loss=loss)
    before = private(x, **kwargs).losses
    change()
    after = private(x, **kwargs).losses
    assert_close(after, loss(model, x, **kwargs))
    assert not torch.allclose(after, before)
    private(x, **kwargs)
    assert len(private.steps.by_key) == 2


class Scaling(nn.Module):
    """A number as an attribute."""

    factor = 2.0

    def forward(self, x: Tensor) -> Tensor:
        """Multiples of x."""
        return x * self.factor


MODULES: dict[str, tuple[Callable[[], nn.Module], Change]] = {
    "attribute": (Scaling, lambda m: setattr(m, "factor", 3.0)),
    "hook": (nn.Tanh, lambda m: m.register_forward_hook(lambda module, args, out: out * 3)),
    "mode": (lambda: nn.Dropout(1.0).eval(), lambda m: m.train()),
    "inside": (lambda: nn.Sequential(Scaling()), lambda m: setattr(m[0], "factor", 3.0)),
}


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("case", MODULES)
def test_a_change_of_a_module_that_is_not_registered(case: str, closed: bool) -> None:
    make, change = MODULES[case]
    other = make()
    if closed:
        check_seen(nn.Linear(3, 2), lambda m, x: other(m(x)).square().sum(1), lambda: change(other))
    else:
        check_seen(Listing(other), squares, lambda: change(other))


class Counting(nn.Module):
    """Counts its calls, which changes nothing for a long time."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """x, and much more after a thousand calls."""
        self.calls += 1
        return x if self.calls < 1000 else x * 3


def test_a_count_in_a_module_that_is_not_registered_is_refused() -> None:
    with pytest.raises(DPCompileError, match=r"every call changes what the next one finds[\s\S]*outside"):
        dpcompile(Listing(Counting()), loss=squares)(torch.randn(4, 3))


def test_a_private_module_within_reach_is_not_looked_into() -> None:
    holder = types.SimpleNamespace(weight=1.0)
    private = dpcompile(nn.Linear(3, 2), loss=lambda m, x: squares(m, x) * holder.weight)
    holder.private, holder.module = private, private.as_module()
    for _ in range(2):
        private(torch.randn(4, 3))
    assert len(private.steps.by_key) == 1


def test_buffers_of_a_module_within_reach_may_change_at_every_step() -> None:
    holder = types.SimpleNamespace(weight=2.0, average=nn.BatchNorm1d(2).eval())
    model, x = nn.Linear(3, 2), torch.randn(4, 3)

    def loss(model: nn.Module, x: Tensor) -> Any:
        return F.relu(model(x) + holder.average.running_mean).sum(1) * holder.weight

    private = dpcompile(model, loss=loss)
    for _ in range(2):
        assert_close(private(x).losses, loss(model, x))
        holder.average.running_mean.add_(1)
    assert len(private.steps.by_key) == 1


def test_code_that_was_exchanged() -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return squares(model, x)

    def tripled(model: nn.Module, x: Tensor) -> Tensor:
        return squares(model, x) * 3

    check_seen(nn.Linear(3, 2), loss, lambda: setattr(loss, "__code__", tripled.__code__))


def test_code_of_forward_and_of_a_helper_that_was_exchanged() -> None:
    def helper(x: Tensor) -> Tensor:
        return x

    def other(x: Tensor) -> Tensor:
        return x * 3

    class Helped(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return helper(super().forward(x))

    def own(self: Any, x: Tensor) -> Any:
        return F.linear(x, self.weight)

    check_seen(Helped(3, 2), squares, lambda: setattr(helper, "__code__", other.__code__))
    with_cell = Helped.forward
    Helped.forward = lambda self, x: F.linear(x, self.weight * 2)  # type: ignore[method-assign]
    assert with_cell is not Helped.forward
    check_seen(Helped(3, 2), squares, lambda: setattr(Helped.forward, "__code__", own.__code__))


def weighted(model: nn.Module, x: Tensor, held: Any) -> Tensor:
    """A loss that reads a number of one of its arguments."""
    return squares(model, x) * float(held.weight if isinstance(held, types.SimpleNamespace) else held[0])


ARGUMENTS: dict[str, tuple[Any, Change]] = {
    "object": (types.SimpleNamespace(weight=1.0), lambda held: setattr(held, "weight", 3.0)),
    "array of numpy": (np.ones(2), lambda held: held.__setitem__(0, 3.0)),
    "array": (array.array("d", [1.0]), lambda held: held.__setitem__(0, 3.0)),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_an_argument_that_is_written_to(case: str) -> None:
    held, change = ARGUMENTS[case]
    check_seen(nn.Linear(3, 2), weighted, lambda: change(held), held=held)


class Tripled(TorchFunctionMode):
    """Linear layers give a multiple."""

    factor = 3.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return out * self.factor if func is F.linear else out


def test_a_mode_around_the_call() -> None:
    model, x = nn.Linear(3, 2), torch.randn(5, 3)
    private = dpcompile(model, loss=squares)
    before = private(x).losses
    for _ in range(2):
        with Tripled():
            assert_close(private(x).losses, squares(model, x))
    assert_close(private(x).losses, before)
    assert len(private.steps.by_key) == 2


def test_files_beside_the_package_are_the_users() -> None:
    for folder in reads.FOLDERS:
        assert reads.is_own_file(f"{folder}_experiment.py") or "site-packages" in folder
        assert not reads.is_own_file(f"{folder}/experiment.py")


GENERATORS: list[Callable[[], Any]] = [
    lambda: random.Random(0),
    lambda: np.random.default_rng(0),
    lambda: np.random.RandomState(0),
]


@pytest.mark.parametrize("make", GENERATORS)
@pytest.mark.parametrize("closed", [False, True])
def test_draws_from_a_generator_of_the_programs_own_are_refused(make: Callable[[], Any], closed: bool) -> None:
    generator, model = make(), nn.Linear(3, 2)
    method = "uniform" if closed else "random" if isinstance(generator, random.Random) else "normal"

    class Drawing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 + 1e-12 * getattr(self.generator, method)())

    if not closed:
        model = Drawing(3, 2)
        model.generator = generator
    held = types.SimpleNamespace(generator=generator)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return squares(model, x) * (1 + 1e-12 * held.generator.uniform(0, 1) if closed else 1)

    with pytest.raises(DPCompileError, match=r"forward draws from a .* of its own"):
        dpcompile(model, loss=loss)(torch.randn(4, 3))


def test_a_generator_that_is_drawn_from_elsewhere_is_no_change() -> None:
    held = types.SimpleNamespace(generator=random.Random(0), weight=2.0)
    private = dpcompile(nn.Linear(3, 2), loss=lambda m, x: squares(m, x) * held.weight)
    for _ in range(2):
        private(torch.randn(4, 3))
        held.generator.random()
    assert len(private.steps.by_key) == 1
