"""A second backward is offered only where scaling a gradient scales everything behind it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captured import captured, captured_case
from oracle import errors, expect
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ZOO
from zoo_case import squares

from dpcompile import StrategyError, dpcompile
from dpcompile.analysis.cuts import find_cuts


class Bent(torch.autograd.Function):
    """The identity, whose backward is whatever a test says."""

    @staticmethod
    def forward(x: Tensor, bend: Any) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.bend = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.bend(gradient), None


BENDS = {
    "sign": torch.sign,
    "clamp": lambda g: g.clamp(-0.01, 0.01),
    "normalise": lambda g: g / (g.norm(dim=1, keepdim=True) + 1e-6),
    "offset": lambda g: g + 0.1,
    "square": lambda g: g * g.abs(),
    "round": lambda g: torch.div(g, 0.01, rounding_mode="floor"),
    "fill": lambda g: torch.where(g > 0, g, 1.0),
    "pad": lambda g: F.pad(g[:, 1:], (1, 0), value=1.0),
    "relu": torch.relu,
    "softmax": lambda g: g.softmax(1),
    "put": lambda g: g.scatter(1, torch.zeros(g.shape[0], 1, dtype=torch.long), 0.5),
    "put a whole number": lambda g: g.scatter(1, torch.zeros(g.shape[0], 1, dtype=torch.long), 1),
    "whole numbers": lambda g: (10 * g).long().to(g.dtype) + g,
    "bytes": lambda g: (20 * g).to(torch.int8).to(g.dtype) / 20,
    "truth values": lambda g: g.bool().to(g.dtype),
    "few bits": lambda g: g.to(torch.float8_e4m3fn).to(g.dtype),
    "bias": lambda g: F.conv1d(g[:, None], torch.ones(1, 1, 3, dtype=g.dtype), torch.ones(1, dtype=g.dtype), padding=1)[:, 0],
    "copied numbers": lambda g: torch.cat([g[:, :4], g[:, 4:].clone().copy_(torch.arange(4).expand(g.shape[0], 4))], 1),
    "itself": lambda g: g + g / g.clone(),
    "complex offset": lambda g: (g.to(torch.complex128) + 0.1j).imag + g,
    "sum of whole numbers": lambda g: g + (10 * g).sum(1, keepdim=True, dtype=torch.long).to(g.dtype),
}


class Hooked(nn.Module):
    """Three layers with something in the backward pass behind the second one."""

    def __init__(self, bend: Any, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.bend, self.way = bend, way

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(self.a(x))
        if self.way == "hook":
            h.register_hook(self.bend)
        else:
            h = Bent.apply(h, self.bend)  # type: ignore[no-untyped-call]
        return self.c(h)


@pytest.mark.parametrize("way", ["function", "hook"])
@pytest.mark.parametrize("name", BENDS)
def test_no_second_backward_starts_before_what_is_not_linear(name: str, way: str) -> None:
    model, x = Hooked(BENDS[name], way).double(), torch.randn(4, 5, dtype=torch.float64)
    right = expect(model, squares, (x,), max_grad_norm=0.3)
    assert max(errors(dpcompile(model, loss=squares, max_grad_norm=0.3)(x), right).values()) < 1e-9
    private = dpcompile(model, loss=squares, max_grad_norm=0.3, schedule="two-pass")
    assert max(errors(private(x), right).values()) < 1e-9
    assert private.plan.cut is not None and set(private.plan.cut.parameters) <= {"a.weight", "a.bias", "b.weight", "b.bias"}


@pytest.mark.parametrize("factor", [2.0, -1.0, 0.0])
def test_a_number_may_multiply_gradients(factor: float) -> None:
    model, x = Hooked(lambda g: factor * g, "hook").double(), torch.randn(4, 5, dtype=torch.float64)
    private = dpcompile(model, loss=squares, max_grad_norm=0.3, schedule="two-pass")
    assert max(errors(private(x), expect(model, squares, (x,), max_grad_norm=0.3)).values()) < 1e-9
    assert private.plan.cut is not None and len(private.plan.cut.parameters) == 6


def test_two_branches_of_the_loss_meet_at_the_losses() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.i, self.o = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.i(x)
            return self.o(h.tanh()), h

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        out, h = model(x)
        return out.square().sum(1) + h.square().sum(1)

    model, x = Two().double(), torch.randn(4, 5, dtype=torch.float64)
    private = dpcompile(model, loss=loss, max_grad_norm=0.3, schedule="two-pass")
    assert max(errors(private(x), expect(model, loss, (x,), max_grad_norm=0.3)).values()) < 1e-9
    assert private.plan.cut is not None and len(private.plan.cut.parameters) == 4


def test_gradients_of_gradients_are_not_linear() -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.requires_grad_()
            out = model(x).square().sum(1)
            (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return out + gradient.square().sum(1)

    model, x = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double(), torch.randn(4, 5, dtype=torch.float64)
    private = dpcompile(model, loss=loss, max_grad_norm=0.3, schedule="two-pass")
    try:
        found = private(x)
    except StrategyError:
        return
    assert max(errors(found, expect(model, loss, (x,), max_grad_norm=0.3)).values()) < 1e-9


def test_every_model_of_the_zoo_can_be_cut_at_its_losses_or_behind() -> None:
    partial = []
    for case in ZOO:
        made = captured_case(case.name)
        cuts = find_cuts(made.joint, made.states, made.sites)
        if not cuts or len(cuts[0].parameters) < len(made.sites):
            partial.append(case.name)
    assert partial == []


def test_a_captured_model_without_gradients_has_no_cut() -> None:
    made = captured(nn.Linear(3, 2), squares, torch.randn(2, 3))
    assert find_cuts(made.joint, made.states, made.sites[:0]) == ()


class Constant(torch.autograd.Function):
    """The identity in its first argument, with a constant as the gradient of its second: an auxiliary loss in disguise."""

    @staticmethod
    def forward(h: Tensor, aside: Tensor) -> Tensor:
        return h.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, 0.01 * torch.ones_like(ctx.saved_tensors[0])


class Routed(nn.Module):
    """A layer whose gradient does not come from the losses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.aside = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).tanh()
        return self.b(Constant.apply(h, self.aside(h)))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("schedule", ["auto", "two-pass"])
def test_a_gradient_that_does_not_come_from_the_losses_is_behind_no_cut(schedule: str) -> None:
    model, x = Routed().double(), torch.randn(4, 5, dtype=torch.float64)
    private = dpcompile(model, loss=squares, max_grad_norm=0.3, schedule=schedule)
    assert max(errors(private(x), expect(model, squares, (x,), max_grad_norm=0.3)).values()) < 1e-9
    assert private.plan.cut is None or not {"aside.weight", "aside.bias"} & set(private.plan.cut.parameters)
