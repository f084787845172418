"""Whole-graph choices within a budget: chunks and a second backward, the fastest that fits, obeyed by what is allocated."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import fx, nn
from torch.testing import assert_close
from zoo_case import squares

from benchmarks.measure import Step, peak_bytes
from dpcompile import BudgetError, PrivateModule, dpcompile
from dpcompile.forecast.fitting import DEAREST, FILLED, ROOM, SHARE, WORTH, Ways, preferred, within
from dpcompile.ir.site import Cut, Operand
from dpcompile.plan.cutting import MOST, worth_trying
from dpcompile.plan.plan import Plan


def cuts(count: int) -> tuple[Cut, ...]:
    """Cuts that differ in their parameters."""
    node = fx.Graph().placeholder("g")
    return tuple(Cut(Operand(node, 0), tuple(f"p{i}" for i in range(count - number))) for number in range(count))


@pytest.mark.parametrize("seed", range(60))
def test_the_fastest_of_what_fits_is_taken(seed: int) -> None:
    drawn, sizes, others = random.Random(seed), (16, 8, 4, 2, 1), cuts(3)
    ways = [(size, cut) for size in sizes for cut in (None, *others)]
    peaks = {way: way[0] * drawn.uniform(0.3, 1.0) * (1 if way[1] is None else 0.7) for way in ways}
    spent = {way: drawn.random() for way in ways}
    asked: list[tuple[int | None, Cut | None]] = []

    def choose(size: int | None, limit: float, cut: Cut | None) -> Plan:
        asked.append((size, cut))
        return Plan((), "cpu", 16, size, cut)

    def key(plan: Plan) -> tuple[int, Cut | None]:
        assert plan.microbatch is not None
        return plan.microbatch, plan.cut

    budget = drawn.uniform(0.2, 16)
    fitting = [way for way in ways if peaks[way] <= budget]
    if not fitting:
        with pytest.raises(BudgetError, match="1 example at a time"):
            within(choose, lambda p: peaks[key(p)], lambda p: spent[key(p)], Ways(sizes, None, others), budget)
        return
    found = key(within(choose, lambda p: peaks[key(p)], lambda p: spent[key(p)], Ways(sizes, None, others), budget))
    assert found in fitting
    assert spent[found] == min(spent[way] for way in fitting if way in asked)
    first = next((size for size in sizes if peaks[size, None] <= budget), None)
    if first is not None:
        assert spent[found] <= spent[first, None]


def preference(slower: float, saved: float, ordinary: float = 1.0, machine: float = math.inf) -> bool:
    """Whether a plan that is `slower` times as slow, and keeps `saved` times less than 2 GB, is preferred."""

    def choose(size: int | None, limit: float, cut: Cut | None) -> Plan:
        return Plan((), "cpu", 16, None if limit == math.inf else 1, cut)

    def peak(plan: Plan) -> float:
        return 2e9 if plan.microbatch is None else 2e9 / saved

    def seconds(plan: Plan) -> float:
        return 1.0 if plan.microbatch is None else slower

    return preferred(choose, peak, seconds, None, ordinary, None, machine).microbatch == 1


def test_a_leaner_plan_is_preferred_unless_it_is_too_slow() -> None:
    little = 2e9 - ROOM  # the ordinary step's memory with which the fastest plan is just within the preference
    assert preference(slower=0.99 * DEAREST, saved=3) and not preference(slower=1.01 * DEAREST, saved=3)
    assert preference(slower=1.05, saved=1.2) and not preference(slower=1.2, saved=1.15), "no more time than it saves memory"
    assert preference(slower=3.0, saved=4, machine=1.99e9 / FILLED)
    assert not preference(slower=3.0, saved=4, machine=2.01e9 / FILLED)
    assert not preference(1.01, saved=3, ordinary=max(little, 2e9 / SHARE)), "the fastest is within the preference"
    assert not preference(slower=1.01, saved=0.99 / WORTH), "it saves too little, and is not within the preference either"


def test_only_a_few_cuts_are_tried() -> None:
    assert worth_trying(()) == () and len(worth_trying(cuts(3))) == 3
    many = cuts(23)
    assert len(worth_trying(many)) <= MOST and worth_trying(many)[0] == many[0]


def model() -> nn.Module:
    """Many layers that a GPU starts more slowly than it computes."""
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(128, 128, bias=False), nn.Tanh())]
    return nn.Sequential(*layers)


def test_a_second_backward_is_taken_where_halving_the_batch_is_slower_and_the_budget_is_obeyed() -> None:
    x = torch.randn(32, 32, 128)
    lean = dpcompile(model(), loss=squares, hardware="h200", example_batch=(x,)).ready().outlook.leanest_peak(32)
    budget, made = 0.95 * lean, list[PrivateModule]()

    def make() -> Step:
        made.append(dpcompile(model(), loss=squares, hardware="h200", memory_budget=budget))
        return lambda: made[0](x).grads

    used = peak_bytes(make, "cpu")
    plan, forecast = made[0].plan, made[0].report().forecast
    assert plan.cut is not None and "reweight" in {total for _, total in plan.strategies().values()}
    assert used <= budget and "second time" in str(made[0].report())
    halves = dpcompile(model(), loss=squares, hardware="h200", schedule="microbatch", microbatch=16, memory_budget=budget)
    halves(x)
    assert forecast.seconds <= halves.report().what_if(memory_budget=budget).seconds
    assert_close(made[0](x).grads, dpcompile(model(), loss=squares)(x).grads, rtol=1e-4, atol=1e-4)


def test_a_plan_with_a_cut_can_be_given_to_another_module() -> None:
    x = torch.randn(4, 3, 128)
    first = dpcompile(model(), loss=squares, schedule="two-pass", example_batch=(x,))
    second = dpcompile(model(), loss=squares, plan=first.plan, example_batch=(x,))
    assert second.plan.strategies() == first.plan.strategies() and second.plan.cut is not None
    assert second.plan.cut.parameters == first.plan.cut.parameters  # type: ignore[union-attr]


def test_one_pass_excludes_everything_else() -> None:
    x = torch.randn(32, 32, 128)
    private = dpcompile(model(), loss=squares, schedule="one-pass", memory_budget="3 MB")
    with pytest.raises(BudgetError, match="32 examples at a time"):
        private(x)
