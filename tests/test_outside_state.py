"""What a program reads besides its arguments and the model's own attributes: every later change is seen by the next step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.testing import assert_close
from zoo_case import squares

from dpcompile import dpcompile
from dpcompile.module import PrivateModule
from dpcompile.reads import names_of

SETTINGS = SimpleNamespace(alpha=1.0, inner=SimpleNamespace(beta=1.0))
NUMBER: Any = 1.0
SWITCH, NAME, PAIR, MISSING = False, "one", (1.0, 2.0), None
SCALE = torch.tensor(1.0)
TABLE = {"weights": [1.0]}


class Config:
    """Settings as attributes of a class."""

    factor = 1.0


def helper(x: Tensor) -> Tensor:
    """A function between the one that is called and the number."""
    return deeper(x)


def deeper(x: Tensor) -> Tensor:
    """One call further."""
    return x * NUMBER


def tripled(x: Tensor) -> Tensor:
    """What may be put in the place of `deeper`."""
    return x * 3.0


@functools.lru_cache
def cached_factor() -> float:
    """A number that is read through a decorator."""
    return 1.0


def generated(x: Tensor) -> Tensor:
    """A global in a generator expression."""
    return sum(x * NUMBER for _ in range(1))


def nested(x: Tensor) -> Tensor:
    """A global in a nested function within a lambda."""

    def inner() -> list[Tensor]:
        return sorted([x], key=lambda entry: float(entry.dim() * NUMBER))

    return inner()[0] * (lambda y: y * NUMBER / y)(torch.ones(()))  # noqa: PLC3002  (a lambda is what is asked for)


READERS: dict[str, tuple[Callable[[Tensor], Tensor], str, Any]] = {
    "an attribute of a namespace": (lambda x: x * SETTINGS.alpha, "SETTINGS", SimpleNamespace(alpha=3.0)),
    "a number": (lambda x: x * NUMBER, "NUMBER", 3.0),
    "a truth value": (lambda x: 3.0 * x if SWITCH else x, "SWITCH", True),
    "a text": (lambda x: 3.0 * x if NAME == "three" else x, "NAME", "three"),
    "none": (lambda x: x if MISSING is None else x * MISSING, "MISSING", 3.0),
    "a tuple": (lambda x: x * PAIR[0], "PAIR", (3.0, 2.0)),
    "the value of a tensor": (lambda x: x * SCALE.item(), "SCALE", torch.tensor(3.0)),
    "a container": (lambda x: x * TABLE["weights"][0], "TABLE", {"weights": [3.0]}),
    "through two functions": (helper, "NUMBER", 3.0),
    "in a generator expression": (generated, "NUMBER", 3.0),
    "in a nested function": (nested, "NUMBER", 3.0),
    "another function": (helper, "deeper", tripled),
}
WRITES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[pytest.MonkeyPatch], None]]] = {
    "a namespace": (lambda x: x * SETTINGS.alpha, lambda m: m.setattr(SETTINGS, "alpha", 3.0)),
    "a nested namespace": (lambda x: x * SETTINGS.inner.beta, lambda m: m.setattr(SETTINGS.inner, "beta", 3.0)),
    "a class": (lambda x: x * Config.factor, lambda m: m.setattr(Config, "factor", 3.0)),
    "a nested list": (lambda x: x * TABLE["weights"][0], lambda m: m.setitem(TABLE, "weights", [3.0])),
    "an attribute of a function": (lambda x: x * getattr(helper, "scale", 1.0),
                                   lambda m: m.setattr(helper, "scale", 3.0, raising=False)),
}  # fmt: skip


class Calling(nn.Module):
    """A layer followed by a function that a method of the class names."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(3, 2), function

    def forward(self, x: Tensor) -> Tensor:
        """f[B, 3] to f[B, 2]."""
        return self.function(self.layer(x))


def check_seen(model: nn.Module, loss: Callable[..., Tensor], change: Callable[[], Any], traces: int = 2) -> None:
    """A step before and after the change is what the model and the loss are then; nothing is traced without need."""
    x = torch.randn(5, 3)
    private = dpcompile(model, loss=loss)
    before = private(x).losses
    assert_close(before, loss(model, x))
    private(x)
    assert len(private.steps.by_key) == 1
    change()
    after = private(x).losses
    assert_close(after, loss(model, x))
    assert not torch.allclose(after, before)
    private(x)
    assert len(private.steps.by_key) == traces


@pytest.mark.parametrize("place", ["loss", "forward"])
@pytest.mark.parametrize("case", READERS)
def test_a_global_that_is_bound_anew(case: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, name, value = READERS[case]
    model = Calling(function) if place == "forward" else nn.Linear(3, 2)
    loss = squares if place == "forward" else lambda m, x: function(squares(m, x))
    check_seen(model, loss, lambda: monkeypatch.setitem(globals(), name, value))


@pytest.mark.parametrize("case", WRITES)
def test_a_global_that_is_written_to(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, change = WRITES[case]
    check_seen(nn.Linear(3, 2), lambda m, x: function(squares(m, x)), lambda: change(monkeypatch))


class Reading(nn.Linear):
    """A global that forward itself reads, one through a method, one through a property, and an attribute of the class."""

    shift: Any = (0.0,)

    def forward(self, x: Tensor) -> Tensor:
        """f[B, 3] to f[B, 2]."""
        return self.scaled(super().forward(x)) + self.offset + self.shift[0]

    def scaled(self, x: Tensor) -> Tensor:
        """By a number of the file."""
        return x * SETTINGS.alpha

    @property
    def offset(self) -> Any:
        """A number of the file."""
        return NUMBER


def other_forward(self: Any, x: Tensor) -> Tensor:
    """What is put in the place of forward."""
    return 3.0 * F.linear(x, self.weight, self.bias)


FORWARDS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "a global in a method": lambda m: m.setattr(SETTINGS, "alpha", 3.0),
    "a global in a property": lambda m: m.setitem(globals(), "NUMBER", 3.0),
    "a tuple of the class": lambda m: m.setattr(Reading, "shift", (3.0,)),
    "forward itself": lambda m: m.setattr(Reading, "forward", other_forward),
    "a method": lambda m: m.setattr(Reading, "scaled", lambda self, x: 3.0 * x),
}


@pytest.mark.parametrize("change", FORWARDS)
def test_what_the_methods_of_an_inner_module_read(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_seen(nn.Sequential(nn.Linear(3, 3), Reading(3, 2)), squares, lambda: FORWARDS[change](monkeypatch))


def test_forward_of_a_class_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    check_seen(nn.Linear(3, 2), squares, lambda: monkeypatch.setattr(nn.Linear, "forward", other_forward))


def test_attributes_and_keyword_defaults_of_the_loss() -> None:
    def loss(model: nn.Module, x: Tensor, *, gamma: float = 1.0) -> Tensor:
        return squares(model, x) * loss.alpha * gamma  # type: ignore[attr-defined]

    loss.alpha = 1.0  # type: ignore[attr-defined]
    check_seen(nn.Linear(3, 2), loss, lambda: setattr(loss, "alpha", 3.0))
    check_seen(nn.Linear(3, 2), loss, lambda: (loss.__kwdefaults__ or {}).update(gamma=3.0))


@pytest.mark.parametrize("nested", [False, True])
def test_a_plain_tensor_whose_value_python_reads(nested: bool) -> None:
    held = torch.tensor(2.0)
    model: Any = Calling(lambda x: x * float(model.held[0] if nested else model.held))
    model.held = [held] if nested else held
    check_seen(model, squares, lambda: held.fill_(3.0))


def test_a_buffer_in_a_list_is_read_anew_without_a_trace() -> None:
    model: Any = Calling(lambda x: x * model.held)
    model.register_buffer("held", torch.tensor(2.0))
    model.listed = [model.held]
    check_seen(model, squares, lambda: model.held.fill_(3.0), traces=1)


def tripled_input(module: nn.Module, args: Any) -> Any:
    """A hook on the arguments of all modules of the model, and on whatever stands around it."""
    return None if isinstance(module, PrivateModule) else (args[0] * 3.0, *args[1:])


def tripled_output(module: nn.Module, args: Any, output: Any) -> Any:
    """The same on their results."""
    return None if isinstance(module, PrivateModule) else output * 3.0


@pytest.mark.parametrize("before", [False, True])
def test_a_hook_on_all_modules(before: bool) -> None:
    handles = []

    def change() -> None:
        if before:
            handles.append(register_module_forward_pre_hook(tripled_input))
        else:
            handles.append(register_module_forward_hook(tripled_output))

    try:
        check_seen(nn.Linear(3, 2), squares, change)
    finally:
        for handle in handles:
            handle.remove()


def test_a_number_that_a_hook_closes_over() -> None:
    scale = 1.0
    model = nn.Linear(3, 2)
    model.register_forward_hook(lambda module, args, out: out * scale)

    def change() -> None:
        nonlocal scale
        scale = 3.0

    check_seen(model, squares, change)


def test_globals_that_nothing_reads_are_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    private, x = dpcompile(Reading(3, 2), loss=squares), torch.randn(5, 3)
    private(x)
    monkeypatch.setitem(globals(), "SWITCH", True)
    private(x)
    assert len(private.steps.by_key) == 1
    assert ("SETTINGS", "alpha") in names_of(Reading.scaled.__code__)
    assert cached_factor() == 1.0
