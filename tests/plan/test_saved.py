"""Plans go to JSON and come back; an edited plan is carried out, a foreign or broken one is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from zoo_case import squares

from dpcompile import InvalidInput, StrategyError, dpcompile
from dpcompile.plan.saved import SavedPlan, load_plan


def model(width: int = 5) -> nn.Module:
    """Two layers on sequences."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A saved plan."""
    private = dpcompile(model(), loss=squares, example_batch=(torch.randn(2, 7, 3),), microbatch=3)
    private.plan.save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def test_a_plan_comes_back_as_it_was(plan: Path) -> None:
    private = dpcompile(model(), loss=squares, example_batch=(torch.randn(2, 7, 3),), microbatch=3)
    assert load_plan(plan) == private.plan.saved() and load_plan(plan).microbatch == 3


def test_an_edited_plan_is_carried_out(plan: Path) -> None:
    document = json.loads(plan.read_text())
    for choice in document["choices"]:
        if choice["parameter"] == "0.weight":
            choice |= {"norm": "gram", "sum": "bookkeep"}
    document["microbatch"] = 2
    plan.write_text(json.dumps(document))
    x = torch.randn(5, 7, 3)
    edited, plain = dpcompile(model(), loss=squares, plan=plan), dpcompile(model(), loss=squares)
    assert_close(edited(x).grads, plain(x).grads)
    assert edited.plan.strategies()["0.weight"] == ("gram", "bookkeep") and edited.plan.microbatch == 2


def test_a_plan_of_another_module_can_be_given_itself() -> None:
    x = torch.randn(5, 7, 3)
    first = dpcompile(model(), loss=squares, strategy={"2.weight": "gram"})
    first(x)
    second = dpcompile(model(), loss=squares, plan=first.plan)
    second(x)
    assert second.plan.strategies() == first.plan.strategies()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 2)), r"0.weight was .*\[5, 3\] and is .*\[7, 3\]"),
        (nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2, bias=False)), "2.bias is not a parameter with a gradient"),
        (nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2), nn.Linear(2, 2)), "3.weight is not in the plan"),
    ],
)
def test_a_foreign_plan_says_what_does_not_fit(plan: Path, changed: nn.Module, message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        dpcompile(changed, loss=squares, plan=plan)(torch.randn(2, 7, 3))


def test_a_plan_made_for_sequences_does_not_fit_vectors_silently(plan: Path) -> None:
    loaded = load_plan(plan)
    wrong = replace(loaded, choices=tuple(replace(choice, norm="rows") for choice in loaded.choices))
    with pytest.raises(StrategyError, match="rows"):
        dpcompile(model(), loss=squares, plan=wrong)(torch.randn(2, 7, 3))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 99, "choices": []}', '{"format": 1, "choices": [{}]}'])
def test_what_is_no_plan_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(StrategyError, match=r"broken.json is not a plan"):
        dpcompile(model(), loss=squares, plan=tmp_path / "broken.json")


@pytest.mark.parametrize("name", ["none.json", ""])
def test_a_file_that_cannot_be_read_is_refused_with_its_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(StrategyError, match="cannot be read"):
        dpcompile(model(), loss=squares, plan=str(tmp_path / name))


@pytest.mark.parametrize("given", [{"strategy": "gram"}, {"schedule": "two-pass"}, {"strategy": {"0.weight": "gram"}}])
def test_a_plan_leaves_neither_strategy_nor_schedule_to_be_asked_for(plan: Path, given: dict[str, Any]) -> None:
    with pytest.raises(StrategyError, match=f"the plan says already what {next(iter(given))}"):
        dpcompile(model(), loss=squares, plan=plan, **given)


def test_a_plan_keeps_its_chunks_unless_others_are_asked_for(plan: Path) -> None:
    chunked = replace(load_plan(plan), microbatch=3)
    assert dpcompile(model(), loss=squares, plan=chunked).options.microbatch == 3
    assert dpcompile(model(), loss=squares, plan=chunked, microbatch=2).options.microbatch == 2
    with pytest.raises(InvalidInput, match="microbatch must be a positive integer, got 0"):
        dpcompile(model(), loss=squares, plan=chunked, microbatch=0)


def test_a_plan_that_names_a_parameter_twice_does_not_fit(plan: Path) -> None:
    loaded = load_plan(plan)
    with pytest.raises(StrategyError, match="is in the plan 2 times"):
        dpcompile(model(), loss=squares, plan=replace(loaded, choices=(*loaded.choices, loaded.choices[0])))(torch.randn(2, 7, 3))


def test_names_that_look_like_globs_are_names_first() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.of = nn.ParameterDict({"[ab]": nn.Parameter(torch.randn(3, 2)), "a": nn.Parameter(torch.randn(3, 2))})

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.of["[ab]"] + x @ self.of["a"]

    x = torch.randn(2, 7, 3)
    first = dpcompile(Named(), loss=squares, strategy={"of.[ab]": "gram", "of.a": "materialize"}, example_batch=(x,))
    assert first.plan.strategies()["of.[ab]"][0] == "gram" and first.plan.strategies()["of.a"][0] == "materialize"
    second = dpcompile(Named(), loss=squares, plan=first.plan, example_batch=(x,))
    assert second.plan.strategies() == first.plan.strategies()


def test_saving_twice_gives_the_same_file(plan: Path, tmp_path: Path) -> None:
    loaded: SavedPlan = load_plan(plan)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == plan.read_text()


@pytest.mark.parametrize("plan", [3, {"0.weight": "gram"}, []])
def test_what_cannot_be_a_plan_is_refused(plan: object) -> None:
    with pytest.raises(StrategyError, match="plan must be"):
        dpcompile(model(), loss=squares, plan=plan)  # type: ignore[arg-type]
