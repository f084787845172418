"""The sweep of pruning and dropping: its points, one training, what is frozen, tables and plots of what is there."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.cases import CASES, MAX_GRAD_NORM, Case, floats, per_class
from benchmarks.dropping import step_cost
from benchmarks.dropping.__main__ import settings
from benchmarks.dropping.plot import accuracies, costs
from benchmarks.dropping.step_cost import CUTS, frozen, private_part, times_cheaper
from benchmarks.dropping.sweep import CRITERIA, DROP, PRUNE, Setting, seeds_of, spread, trained
from benchmarks.dropping.table import markdown
from benchmarks.dropping.tasks import TASKS
from dpcompile import dpcompile

MACHINE = {"cpu": "a processor", "versions": {"torch": "2.13.0"}}
SMALL = Case("two layers", lambda: nn.Sequential(nn.Flatten(), nn.Linear(8, 64), nn.Linear(64, 10)), floats(8), per_class, 3, 1.0)


def test_every_pair_of_rates_is_a_point_of_every_criterion() -> None:
    found = list(settings("digits"))
    pairs = len(PRUNE) * len(DROP)
    assert {0.0, 0.3, 0.5, 0.7, 0.9} == set(PRUNE) and {0.0, 0.5, 0.7, 0.9} == set(DROP)
    assert not seeds_of.__module__.endswith("__main__"), "a process that is started anew does not find it there"
    assert len(found) == len({one.key for one in found}) == pairs * (len(CRITERIA) + 1)


def test_a_training_notes_what_it_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(TASKS["digits"], epochs=1)
    monkeypatch.setitem(TASKS, "digits", short)
    setting = Setting("digits", "random", "weights", 0.5, 0.9)
    row = trained(setting, 0)
    weights = {name: p.numel() for name, p in short.make().named_parameters()}
    kept = sum(n if name.endswith("bias") else round(round(n * 0.5) * 0.1) for name, n in weights.items())
    assert row["kept"] == pytest.approx(kept / sum(weights.values()), abs=1e-3) and 0 <= row["accuracy"] <= 1


def test_frozen_weights_have_no_gradients() -> None:
    model = frozen(SMALL, ("*.weight",)).make()
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["1.bias", "2.bias"]
    private = dpcompile(model, loss=SMALL.losses, max_grad_norm=MAX_GRAD_NORM)
    assert set(private(*SMALL.batch("cpu")).grads) == {"1.bias", "2.bias"}


def test_the_private_part_is_what_frozen_weights_do_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "mlp", SMALL)
    times = {"ordinary": 4.0, "frozen": 3.0, "whole": 7.0, "pruned": 5.0}
    monkeypatch.setattr(step_cost, "interleaved", lambda steps, rounds, device: {
        name: [times[name] / 1e3] * 3 for name in steps})  # fmt: skip
    found = private_part("mlp", 1)
    assert all(found[name] == pytest.approx(2) for name in ("times", "times from", "times to")) and found["pruned bytes"] > 0


def test_the_interval_of_a_ratio_of_differences_holds_it() -> None:
    frozen, pruned = [1.0, 1.1, 0.9] * 9, [2.0, 2.3, 1.7] * 9
    found = times_cheaper(frozen, [3.0] * 27, pruned)
    assert found["times"] == pytest.approx(2) and found["times from"] < 2 < found["times to"]


def document(task: str) -> dict[str, Any]:
    """Results of a task as a run writes them, with nothing else measured."""
    rows = [{"accuracy": accuracy, "kept": 0.5} for accuracy in (0.8, 0.9)]
    steps = {one.key: {"step_ms": 2.0, "bytes": 3e6} for one in settings(task)} | {"ordinary": {"step_ms": 1.5}}
    ratio = {"times": 2.0, "times from": 1.9, "times to": 2.1}
    part = {"ordinary": 4.0, "frozen": 3.0, "whole": 7.0, "pruned": 5.0, **ratio, "whole bytes": 2e6, "pruned bytes": 1e6}
    points = {one.key: spread(rows) for one in settings(task)}
    return {"machine": MACHINE, "seeds": 2, "points": points, "extras": {f"steps {task}": steps, "part mlp": part}}


def test_tables_and_plots_of_what_is_there(tmp_path: Path) -> None:
    found = document("digits")
    text, deviation = markdown(found), statistics.stdev([0.8, 0.9])
    assert text.count(f"0.850 ± {deviation:.3f}") == len(list(settings("digits")))
    assert "mnist" not in text and f"| mlp | {CUTS['mlp'][0]} | 4.0 | 3.0 | 7.0 | 5.0 | 2.00 (1.90 to 2.10) | 2.0 | 1.0 |" in text
    for draw in (accuracies, costs):
        path = Path(draw(found, "digits", str(tmp_path / "plot")))
        assert path.stat().st_size > 10_000
    assert markdown({**found, "points": {}, "extras": {}}).count("|") == 0


def test_the_public_part_is_not_trained_on() -> None:
    (trained_on, _), (public, _), (held_out, _) = TASKS["digits"].parts()
    assert len(trained_on) + len(public) + len(held_out) == 1797
    whole, _ = TASKS["digits"].load()
    assert torch.equal(torch.cat([trained_on, public, held_out]), whole), "every digit is in one part, the same every time"
