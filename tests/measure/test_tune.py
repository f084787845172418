"""Autotuning: near ways are measured, the fastest measured one is taken, times are kept and survive a broken file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from captured import captured
from torch import nn
from torch.testing import assert_close
from zoo_case import squares

from dpcompile import StrategyError, dpcompile
from dpcompile.cost.hardware import HARDWARE
from dpcompile.ir.printer import format_graph
from dpcompile.measure import tune as tuning
from dpcompile.measure.extract import extract
from dpcompile.measure.times import Times
from dpcompile.measure.tune import FEW_ROUNDS, LONG, MOST_ROUNDS, ROUNDS, SHORT, WITHIN, candidates, key_of, tune
from dpcompile.plan.plan import Option
from dpcompile.plan.select import choose, options_of

CPU = HARDWARE["cpu"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for every test."""
    monkeypatch.setenv("DPCOMPILE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def model() -> nn.Module:
    """Two equal layers on sequences, and one of another size."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 7))


def test_only_ways_near_the_best_are_candidates() -> None:
    made = captured(model(), squares, torch.randn(3, 7, 24))
    for site in made.sites:
        options, _ = options_of(site, CPU, 16)
        near, best = candidates(options), min(option.seconds for option in options)
        assert near[0].seconds == best and all(option.seconds <= WITHIN * best for option in near)
        assert all(option in near or option.seconds > WITHIN * best for option in options)


def everything(options: Any) -> list[Option]:
    """All options as candidates."""
    return list(options)


def test_what_is_measured_decides_and_the_graph_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    made = captured(model(), squares, torch.randn(3, 7, 24))
    before = format_graph(made.joint)
    monkeypatch.setattr(tuning, "candidates", everything)
    seconds = {("gram", "bookkeep"): 1.0, ("fused", "bookkeep"): 2.0}
    monkeypatch.setattr(tuning, "seconds_of", lambda programs, size, device: [
        seconds.get(way, 3.0) for program in programs for way in [way_of(program)]])  # fmt: skip
    tuned = tune(made.joint, made.sites, CPU, 16)
    plan = choose(made.sites, CPU, 16, measured=tuned.seconds)
    assert format_graph(made.joint) == before
    assert plan.strategies()["0.weight"] == ("gram", "bookkeep")
    choice = plan.choices[0]
    assert choice.option.measured and choice.option.seconds == 1.0 and "measured 2.0x slower" in choice.why


@pytest.mark.parametrize(("spent", "rounds"), [(1e-5, MOST_ROUNDS), (SHORT / 20, 20), (SHORT, ROUNDS), (0.6 * LONG, FEW_ROUNDS)])
def test_short_ways_are_called_more_often_than_long_ones(monkeypatch: pytest.MonkeyPatch, spent: float, rounds: int) -> None:
    made, calls = captured(model(), squares, torch.randn(3, 7, 24)), list[Any]()

    def once(module: Any, operands: Any, device: torch.device) -> float:
        calls.append(module)
        return 1e3 if calls.count(module) == 1 else spent

    monkeypatch.setattr(tuning, "once", once)
    site = made.site("0.weight")
    programs = [extract(made.joint, site, option.norm, option.sum) for option in options_of(site, CPU, 16)[0][:2]]
    assert tuning.seconds_of(programs, 16, torch.device("cpu")) == [spent, spent]
    assert [calls.count(program.module) for program in programs] == [rounds + 1, rounds + 1]


def way_of(program: Any) -> tuple[str, str]:
    """Norm and sum of an extracted program, by what it calls."""
    names = [getattr(node.target, "__name__", "") for node in program.module.graph.nodes]
    norm = "gram" if "sqnorm_gram" in names else "fused" if "sqnorm_materialized" in names else "materialize"
    return norm, "bookkeep" if "contract" in names else "reuse"


def test_ways_that_were_not_measured_move_with_those_that_were() -> None:
    made = captured(model(), squares, torch.randn(3, 7, 24))
    site = made.site("0.weight")
    options, _ = options_of(site, CPU, 16)
    first, *rest = options
    plan = choose([site], CPU, 16, measured={(site.parameter, first.norm, first.sum): 3 * first.seconds})
    every = {(o.norm, o.sum): o for o in (plan.choices[0].option, *plan.choices[0].others)}
    assert every[first.norm, first.sum].measured
    for option in rest:
        assert every[option.norm, option.sum].seconds == pytest.approx(3 * option.seconds)


def test_equal_layers_are_one_measurement_and_it_is_kept(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    calls: list[int] = []
    monkeypatch.setattr(tuning, "candidates", everything)

    def seconds_of(programs: Any, size: int, device: torch.device) -> list[float]:
        calls.append(size)
        return [1.0] * len(list(programs))

    monkeypatch.setattr(tuning, "seconds_of", seconds_of)
    made = captured(model(), squares, torch.randn(3, 7, 24))
    weights = [site for site in made.sites if site.parameter.endswith("weight")]
    first = tune(made.joint, weights, CPU, 16)
    assert len(calls) == 2  # 0.weight and 2.weight are alike
    assert len(list(cache.glob("autotune-*.json"))) == 1
    assert tune(made.joint, weights, CPU, 16) == first and len(calls) == 2
    tune(made.joint, weights, CPU, 17)
    assert len(calls) == 4


def test_a_key_says_what_runs_and_not_what_it_is_called() -> None:
    made = captured(model(), squares, torch.randn(3, 7, 24))

    def key(parameter: str, norm: str, size: int = 16) -> str:
        return key_of(extract(made.joint, made.site(parameter), norm, "bookkeep"), size)

    assert key("0.weight", "gram") == key("2.weight", "gram") != key("4.weight", "gram")
    assert len({key("0.weight", norm, size) for norm in ("gram", "fused") for size in (16, 17)}) == 4


@pytest.mark.parametrize("spent", [0.0, -1.0, float("nan"), float("inf")])
def test_times_that_cannot_have_been_measured_are_not_believed(spent: float) -> None:
    x = torch.randn(4, 7, 24)
    dpcompile(model(), loss=squares, strategy="autotune")(x)
    times = Times.load(torch.device("cpu"))
    times.seconds |= {"one more": spent}
    times.save()
    assert Times.load(torch.device("cpu")).notes and not Times.load(torch.device("cpu")).seconds


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 7}', '{"format": 1, "identity": {}, "seconds": {}}'])
def test_a_corrupt_cache_is_rebuilt_with_a_note(text: str) -> None:
    times = Times.load(torch.device("cpu"))
    times.path.parent.mkdir(parents=True)
    times.path.write_text(text)
    x = torch.randn(4, 7, 24)
    private = dpcompile(model(), loss=squares, strategy="autotune")
    private(x)
    assert "cannot be read" in str(private.report()) and Times.load(torch.device("cpu")).notes == []


def test_a_folder_that_cannot_be_written_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DPCOMPILE_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(tuning, "candidates", everything)  # so that something is measured, whatever the prices are
    private = dpcompile(model(), loss=squares, strategy="autotune")
    private(torch.randn(4, 7, 24))
    assert "cannot be kept" in str(private.report())


def test_autotuning_changes_nothing_but_the_way() -> None:
    x = torch.randn(5, 7, 24)
    tuned, plain = dpcompile(model(), loss=squares, strategy="autotune"), dpcompile(model(), loss=squares)
    assert_close(tuned(x).grads, plain(x).grads)
    assert_close(tuned(x).norms, plain(x).norms)


def test_autotuning_for_another_machine_is_refused() -> None:
    with pytest.raises(StrategyError, match="measures this machine"):
        dpcompile(model(), loss=squares, strategy="autotune", hardware="h200")
