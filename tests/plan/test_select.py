"""The choice: the cheapest possible option per site, or what the user asked for, with reasons."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from captured import Captured, captured
from torch import nn
from zoo_case import squares

from dpcompile import dpcompile
from dpcompile.cost.hardware import HARDWARE, Hardware
from dpcompile.ir.errors import StrategyError
from dpcompile.plan.select import Wanted, choose, options_of
from dpcompile.strategies import NORMS

CPU = HARDWARE["cpu"]


@pytest.fixture(scope="module")
def model() -> Captured:
    """Two linear layers on sequences, whose best strategies differ."""
    net = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 131))
    return captured(net, squares, torch.randn(3, 7, 5))


@pytest.mark.parametrize("hardware", HARDWARE.values(), ids=lambda row: row.name)
@pytest.mark.parametrize("size", [1, 3, 1009])
def test_the_cheapest_option_is_chosen(model: Captured, hardware: Hardware, size: int) -> None:
    for choice in choose(model.sites, hardware, size).choices:
        options, declined = options_of(choice.site, hardware, size)
        assert choice.option.seconds == min(option.seconds for option in options)
        assert len(choice.others) == len(options) - 1 and choice.declined == tuple(declined)


def test_the_runner_up_is_the_best_of_the_others_and_the_reason_compares_with_it(model: Captured) -> None:
    for choice in model.plan().choices:
        if choice.runner_up is not None:
            assert choice.option.seconds <= choice.runner_up.seconds == min(o.seconds for o in choice.others)
            assert f"{choice.runner_up.norm}+{choice.runner_up.sum}" in choice.why


def test_a_limit_on_kept_memory_is_kept_and_the_reason_says_what_was_faster() -> None:
    net = nn.Sequential(nn.Linear(96, 384), nn.ReLU(), nn.Linear(384, 96))
    sites = captured(net, squares, torch.randn(3, 256, 96)).sites
    free = choose(sites, CPU, 64)
    tight = choose(sites, CPU, 64, limit=0.5 * free.resident_bytes)
    assert tight.resident_bytes <= 0.5 * free.resident_bytes and tight.seconds > free.seconds
    changed = [c for c, was in zip(tight.choices, free.choices, strict=True) if c.option != was.option]
    assert changed and any("keeps less memory than" in c.why for c in changed)


def test_where_no_plan_keeps_so_little_the_leanest_is_taken(model: Captured) -> None:
    least = sum(min(o.cost.resident_bytes for o in options_of(site, CPU, 1009)[0]) for site in model.sites)
    assert choose(model.sites, CPU, 1009, limit=0.0).resident_bytes == least


def test_a_single_name_applies_where_it_can(model: Captured) -> None:
    plan = model.plan("gram").strategies()
    assert plan["0.weight"][0] == plan["2.weight"][0] == "gram" and plan["0.bias"][0] != "gram"


def test_names_and_globs_choose_per_parameter(model: Captured) -> None:
    plan = model.plan({"0.weight": ("materialize", "reuse"), "2.*": "materialize"}).strategies()
    assert plan["0.weight"] == ("materialize", "reuse") and plan["2.weight"][0] == plan["2.bias"][0] == "materialize"


def test_the_first_pattern_that_matches_decides(model: Captured) -> None:
    plan = model.plan({"0.weight": "gram", "*.weight": "materialize"}).strategies()
    assert plan["0.weight"][0] == "gram" and plan["2.weight"][0] == "materialize"


@pytest.mark.parametrize("strategy", ["phantom", {"0.weight": "phantom"}, {"0.weight": ("gram", "phantom")}])
def test_an_unknown_name_is_refused_with_those_that_exist(model: Captured, strategy: Wanted) -> None:
    with pytest.raises(StrategyError, match=r"phantom.*gram.*materialize.*bookkeep"):
        model.plan(strategy)


def test_a_pattern_that_matches_no_parameter_is_refused(model: Captured) -> None:
    with pytest.raises(StrategyError, match=r"1\.weight.*no parameter"):
        model.plan({"1.weight": "gram"})


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        ({"0.weight": "outer"}, "7 positions"),
        ({"0.weight": "rows"}, "Rows"),
        ({"0.weight": "cross"}, "used once"),
        ({"0.bias": "gram"}, "Total"),
        ({"0.weight": ("gram", "reuse")}, "does not materialise"),
        ({"0.weight": "grouped"}, "convolution"),
    ],
)
def test_what_cannot_be_applied_is_refused_with_the_reason(model: Captured, strategy: Wanted, reason: str) -> None:
    with pytest.raises(StrategyError, match=reason):
        model.plan(strategy)


def test_a_single_name_that_applies_nowhere_is_refused_with_reasons(model: Captured) -> None:
    with pytest.raises(StrategyError, match=r"rows.*Rows"):
        model.plan("rows")


def test_a_plan_can_be_passed_back_and_edited(model: Captured) -> None:
    plan = model.plan()
    assert model.plan(plan.strategies()).strategies() == plan.strategies()
    edited = plan.strategies() | {"0.weight": ("materialize", "reuse")}
    assert model.plan(edited).strategies() == edited


def test_a_slow_machine_changes_the_seconds_and_not_the_options(model: Captured) -> None:
    slow = replace(CPU, bandwidth=CPU.bandwidth / 100, peak_flops={"float32": 1e9})
    for site in model.sites:
        fast, late = options_of(site, CPU, 1009)[0], options_of(site, slow, 1009)[0]
        assert [(o.norm, o.sum, o.cost) for o in fast] == [(o.norm, o.sum, o.cost) for o in late]
        assert all(a.seconds < b.seconds for a, b in zip(fast, late, strict=True))


def test_the_prices_of_a_microbatch_are_those_of_its_size(model: Captured) -> None:
    whole, chunk = choose(model.sites, CPU, 1009, microbatch=16), choose(model.sites, CPU, 16)
    assert [c.option for c in whole.choices] == [c.option for c in chunk.choices] and whole.microbatch == 16


def test_totals_of_a_plan_are_the_sums_of_its_choices(model: Captured) -> None:
    plan = model.plan()
    assert plan.seconds == pytest.approx(sum(choice.option.seconds for choice in plan.choices))
    assert plan.resident_bytes == sum(choice.option.cost.resident_bytes for choice in plan.choices)


@pytest.mark.parametrize("norm", NORMS)
def test_every_declined_strategy_has_a_reason(model: Captured, norm: str) -> None:
    for choice in model.plan().choices:
        taken = {choice.option.norm, *(option.norm for option in choice.others)}
        assert norm in taken or dict(choice.declined)[norm]


@pytest.mark.parametrize("strategy", ["reuse", {"*": "bookkeep"}, {"*": ("reweight", "auto")}], ids=str)
def test_a_sum_in_the_place_of_a_norm_is_refused_with_the_right_form(strategy: Any) -> None:
    private = dpcompile(nn.Linear(3, 2), loss=squares, strategy=strategy)
    with pytest.raises(StrategyError, match=r"is a sum.*\(\"auto\", "):
        private(torch.randn(2, 3))
