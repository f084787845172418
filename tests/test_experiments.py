"""The founding papers' experiments: points, claims and tables; a small network of each runs by the loop and by dpcompile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.cases import Case
from benchmarks.experiments.__main__ import EXPERIMENTS
from benchmarks.experiments.lee_kifer import speed_up
from benchmarks.experiments.rochette import straightness
from benchmarks.experiments.rochette_networks import net
from benchmarks.experiments.table import judged, markdown, medians
from benchmarks.methods import ALL_METHODS
from benchmarks.reference import largest_error, make_reference
from benchmarks.region_map import RATES


def test_the_grid_of_rochette_has_all_thirty_points_and_both_sweeps() -> None:
    for size in ("small", "full"):
        names = list(EXPERIMENTS["rochette"].points(size))
        assert sum(" L" in name for name in names) == 30 == 2 * sum(len(rates) for rates in RATES.values())
        assert {"AlexNet", "VGG-16", "k3 B3", "k5 B15"} <= set(names)


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda e: e.name)
def test_every_method_is_known(experiment: Any) -> None:
    assert set(experiment.methods) <= set(ALL_METHODS) and "dpcompile eager" in experiment.methods


def test_net_is_the_papers() -> None:
    model = net(3, 25, 2, 5, 16)
    shapes = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert shapes == [(25, 3, 5, 5), (50, 25, 5, 5), (100, 50, 5, 5), (10, 6400)]
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 10)


RUN = (("rochette", "k3 L2 f1"), ("lee-kifer", "RNN B128"), ("lee-kifer", "CNN B16"), ("lee-kifer", "Transformer B128"),
       ("beltran", "ViT-Tiny bfloat16"))  # fmt: skip


@pytest.mark.parametrize(("experiment", "point"), RUN)
def test_a_point_is_right_by_the_loop_and_by_the_compiler(experiment: str, point: str) -> None:
    given = EXPERIMENTS[experiment].points("small")[point]
    case = Case(given.title, given.make, given.draw, given.example_loss, 3, 1.0, tolerance=given.tolerance)
    reference = make_reference(case)
    for name in ("careful loop", "dpcompile eager"):
        step = ALL_METHODS[name].make(case, case.model("cpu"), *case.batch("cpu"))
        assert largest_error(step(), reference.clipped, reference.clipped_size) < case.tolerance, name


def document(rows: dict[str, dict[str, float]], methods: tuple[str, ...]) -> dict[str, Any]:
    """Results as a run writes them."""
    machine = {"accelerator": None, "cpu": "a processor", "cores": 2, "versions": {"torch": "2.13.0"}}
    points = {name: {"methods": {m: {"median_ms": ms} for m, ms in row.items()}} for name, row in rows.items()}
    return {"machine": machine, "rounds": 3, "size": "small", "methods": list(methods), "points": points}


def test_claims_are_judged_on_the_points_that_they_name() -> None:
    experiment = EXPERIMENTS["rochette"]
    rows = {"AlexNet": {"crb": 2.0, "multi": 3.0, "naive": 30.0, "auto": 2.05, "ordinary eager": 1.0},
            "VGG-16": {"crb": 5.0, "multi": 5.5, "naive": 37.0, "auto": 6.0}}  # fmt: skip
    found = document(rows, ("crb", "multi", "naive", "auto"))
    verdicts = {row["claim"]: row["holds"] for row in judged(experiment, found)}
    assert verdicts == {"AlexNet: crb < multi < naive": True, "VGG-16: multi < crb < naive": False,
                        "auto takes at most 1.05 times the fastest method": False}  # fmt: skip
    found["points"]["VGG-16"]["methods"]["multi"] = {"failure": "MemoryError: no memory"}
    found["claims"] = judged(experiment, found)
    assert "- multi at VGG-16: MemoryError: no memory" in markdown(experiment, found)


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda e: e.name)
def test_nothing_is_claimed_of_points_that_are_not_measured(experiment: Any) -> None:
    assert judged(experiment, document({}, experiment.methods)) == []


def test_straight_lines_and_speed_ups() -> None:
    assert straightness([(1, 2.0), (2, 4.0), (3, 6.0)]) == pytest.approx(1)
    assert straightness([(1, 1.0), (2, 4.0), (3, 1.0)]) < 0.1
    assert speed_up({"loop of single examples": 9.0, "naive": 12.0, "auto": 3.0}, "auto") == 3
    assert medians({"points": {"p": {"methods": {"a": {"failure": "x"}}}}}) == {"p": {}}


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda e: e.name)
def test_plots_are_drawn_of_what_is_there(experiment: Any, tmp_path: Any) -> None:
    row = dict.fromkeys(experiment.methods, 2.0)
    found = document(dict.fromkeys(experiment.points("small"), row), experiment.methods)
    names = experiment.draw(found, str(tmp_path / "plot"))
    assert names and all(len(Path(name).read_text(encoding="utf-8")) > 1000 for name in names)


@pytest.mark.filterwarnings("ignore:Full backward hook")  # by Opacus, on every call
@pytest.mark.parametrize("method", ["Opacus hooks", "Opacus functorch", "Opacus ghost"])
def test_opacus_is_given_its_own_form_of_a_recurrent_layer(method: str) -> None:
    given = EXPERIMENTS["lee-kifer"].points("small")["RNN B128"]
    case = Case(given.title, given.make, given.draw, given.example_loss, 3, 1.0)
    reference = make_reference(case)
    step = ALL_METHODS[method].make(case, case.model("cpu"), *case.batch("cpu"))
    assert largest_error(step(), reference.clipped, reference.clipped_size) < case.tolerance


def test_sums_of_parts_of_a_parameter_are_compared_with_its_parts() -> None:
    whole = {"a.in_proj_weight": torch.arange(12.0).double().view(6, 2), "b.weight": torch.ones(2).double()}
    parts = {f"a.{letter}linear.weight": whole["a.in_proj_weight"][2 * i : 2 * i + 2] for i, letter in enumerate("qkv")}
    assert largest_error(whole, whole, 1.0) == largest_error({**parts, "b.weight": whole["b.weight"]}, whole, 1.0) == 0
    swapped = {**parts, "a.qlinear.weight": parts["a.klinear.weight"], "b.weight": whole["b.weight"]}
    assert largest_error(swapped, whole, 1.0) == 4
    assert largest_error({"b.weight": whole["b.weight"]}, whole, 1.0) == float("inf")
