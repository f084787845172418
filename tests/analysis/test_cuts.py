"""Cuts: everything behind one flows through it, so that a second backward from it gives the loop's clipped sums."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from captured import Captured, captured, captured_case, oracle_gradients, tensors
from oracle import relative_error
from torch import Tensor, fx, nn
from zoo import ZOO
from zoo_case import squares

from dpcompile import StrategyError, dpcompile
from dpcompile.analysis.cuts import find_cuts, gradients_of_losses, results
from dpcompile.ir.graph import value
from dpcompile.ir.site import Cut
from dpcompile.ir.verifier import check
from dpcompile.passes.order import order_nodes
from dpcompile.strategies.emitter import Emitter
from dpcompile.strategies.reweight import SecondBackward
from dpcompile.strategies.tail import copied_tail

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
TOLERANCE = {True: 1e-9, False: 1e-6}  # some models compute parts in float32 whatever their parameters are


def cuts_of(made: Captured) -> tuple[Cut, ...]:
    """All cuts of a captured graph."""
    return find_cuts(made.joint, made.states, made.sites)


def some(cuts: tuple[Cut, ...]) -> list[Cut]:
    """The first, one in the middle, and the last."""
    return list({cut.parameters: cut for cut in (*cuts[:1], *cuts[len(cuts) // 2 :][:1], *cuts[-1:])}.values())


def emit_again(made: Captured) -> Captured:
    """A copy of the graph that returns the weighted sums behind some cuts; the losses serve as factors."""
    copy = made.copied()
    losses = copy.joint.output("losses")
    assert losses is not None
    outputs: dict[tuple[str, str], fx.Node | None] = {("losses", ""): losses}
    for number, cut in enumerate(some(cuts_of(copy))):
        emitter = Emitter(copy.joint)
        again = SecondBackward(cut, losses, emitter)
        for site in copy.sites:
            if site.parameter in cut.parameters:
                sums = {term.contraction.node: again.copy(term.contraction.node) for term in site.terms}
                outputs["sum", f"{site.parameter} {number}"] = copied_tail(site, sums, emitter)
    copy.joint.replace_outputs(outputs)
    order_nodes(copy.joint)
    check(copy.joint, "the emission of second backward passes")
    copy.joint.module.recompile()
    return copy


@pytest.mark.parametrize("name", [case.name for case in ZOO])
def test_a_second_backward_from_a_cut_gives_the_sums_of_the_loop(name: str) -> None:
    emitted = emit_again(captured_case(name))
    with torch.no_grad():
        outputs = dict(zip(emitted.joint.outputs, emitted.joint.module(*tensors(emitted)), strict=True))
    losses, gradients = outputs.pop(("losses", "")), oracle_gradients(name)
    scale = max(float(g.abs().max()) for g in gradients.values()) * float(losses.abs().sum())
    is_double = all(fake.dtype == torch.float64 for node in gradients_of_losses(emitted.joint) for fake in results(node))
    for (_, way), found in outputs.items():
        right = torch.tensordot(losses, gradients[way.split()[0]], dims=1)
        assert relative_error(found, right, scale) < TOLERANCE[is_double], way


@pytest.mark.parametrize("name", ["MLP", "CNN", "LSTM", "GPT-2", "ResNet-18", "ViT"])
def test_ordinary_networks_can_be_cut_before_the_last_layer_and_between_layers(name: str) -> None:
    made = captured_case(next(case.name for case in ZOO if case.name.startswith(name)))
    cuts = cuts_of(made)
    assert len(cuts) > 1 and len(cuts[0].parameters) == len(made.sites)
    for before, behind in itertools.pairwise(cuts):
        assert set(behind.parameters) < set(before.parameters)


class Bypassed(nn.Module):
    """A gradient that reaches the first layer past the second one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return h + self.second(h).tanh()


def test_no_cut_lies_where_a_residual_connection_passes_by() -> None:
    made = captured(Bypassed(), squares, torch.randn(2, 3))
    names = [set(cut.parameters) for cut in cuts_of(made)]
    assert {"first.weight", "first.bias"} in names and len(names[0]) == 4
    inside = [cut.frontier.node for cut in cuts_of(made)]
    assert not any("tanh" in node.name for node in inside)


def test_forward_values_are_no_gradients() -> None:
    made = captured_case("MLP")
    losses = made.joint.output("losses")
    assert losses is not None and losses not in gradients_of_losses(made.joint)
    assert all(node in gradients_of_losses(made.joint) for node in made.joint.named("gradient").values())


def test_two_passes_are_refused_where_sums_would_be_rounded() -> None:
    private = dpcompile(nn.Linear(3, 2).bfloat16(), loss=squares, schedule="two-pass")
    with pytest.raises(StrategyError, match="second time"):
        private(torch.randn(2, 3).bfloat16())


class HalfStream(nn.Module):
    """Rows of two tables in bfloat16, whose sum has one gradient in bfloat16 and two in float32 behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.segments = nn.Embedding(5, 3), nn.Embedding(2, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return (self.tokens(ids).bfloat16() + self.segments(ids % 2).bfloat16()).float()


def test_no_clip_factor_is_rounded_to_a_half_type() -> None:
    ids = torch.randint(0, 5, (4, 3))
    made = captured(HalfStream(), squares, ids)
    assert not any(value(cut.frontier.node).dtype == torch.bfloat16 for cut in cuts_of(made))
    model = HalfStream()
    steps = [dpcompile(model, loss=squares, max_grad_norm=0.5, schedule=way)(ids) for way in ("one-pass", "two-pass")]
    assert (steps[0].norms > 0.5).all()
    torch.testing.assert_close(steps[1].grads, steps[0].grads, rtol=1e-5, atol=1e-6)


def halved(model: nn.Module, x: Tensor) -> Tensor:
    """Losses that are rounded to bfloat16."""
    return squares(model, x).bfloat16()


def test_losses_of_a_half_type_are_not_scaled() -> None:
    x = torch.randn(4, 3)
    cuts = cuts_of(captured(nn.Linear(3, 2), halved, x))
    assert cuts and all(value(cut.frontier.node).dtype == torch.float32 for cut in cuts)
    dpcompile(nn.Linear(3, 2), loss=halved, schedule="two-pass")(x)


def test_reweighting_must_be_asked_for_everything_behind_a_cut() -> None:
    model, x = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), torch.randn(4, 3)
    private = dpcompile(model, loss=squares, strategy={"0.*": ("auto", "reweight")})
    torch.testing.assert_close(private(x).grads, dpcompile(model, loss=squares)(x).grads)
    assert {name for name, (_, total) in private.plan.strategies().items() if total == "reweight"} == {"0.weight", "0.bias"}
    with pytest.raises(StrategyError, match=r"nearest cut has 0.weight, 0.bias"):
        dpcompile(model, loss=squares, strategy={"0.weight": ("auto", "reweight")})(x)
    with pytest.raises(StrategyError, match="one-pass"):
        dpcompile(model, loss=squares, strategy={"0.*": ("auto", "reweight")}, schedule="one-pass")(x)


def network(layer: Callable[..., nn.Module], *sizes: tuple[int, ...]) -> nn.Module:
    """Three layers with tanh between."""
    first, second, third = (layer(*size) for size in sizes)
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), third)


LAYERS = {
    "products": (partial(network, nn.Linear, (3, 5), (5, 5), (5, 2)), (3,)),
    "products of sequences": (partial(network, nn.Linear, (3, 5), (5, 5), (5, 2)), (4, 3)),
    "convolutions": (partial(network, nn.Conv1d, (1, 2, 3), (2, 2, 3), (2, 1, 3)), (1, 9)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rounded", ["nothing", "products", "convolutions"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_gradient_goes_through_a_rounded_product_a_second_time(name: str, rounded: str, dtype: torch.dtype) -> None:
    make, shape = LAYERS[name]
    settings: Any = operator.attrgetter("mkldnn.conv")(torch.backends)
    before = settings.fp32_precision
    try:
        if rounded == "products":
            torch.set_float32_matmul_precision("medium")
        elif rounded == "convolutions":
            settings.fp32_precision = "bf16"
        found = cuts_of(captured(make().to(dtype), squares, torch.randn(2, *shape, dtype=dtype)))
    finally:
        torch.set_float32_matmul_precision("highest")
        settings.fp32_precision = before
    everything = ("0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias")
    is_hit = dtype == torch.float32 and rounded in ("products", name)  # torch rounds convolutions where it rounds products
    assert {frozenset(cut.parameters) for cut in found} == {
        frozenset(everything[:end]) for end in ((2,) if is_hit else (2, 4, 6))
    }
