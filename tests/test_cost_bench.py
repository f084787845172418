"""`make bench-cost`: the convolutions it takes from networks, its figures, and what a run of one part leaves of the others."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from benchmarks import cost
from benchmarks.cases import Case, floats, per_class
from benchmarks.cost import Measured, figures, publish
from benchmarks.paper_convolutions import convolutions_of


def network() -> nn.Module:
    """Three convolutions, two of them alike."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(),
        nn.Linear(4 * 5 * 5, 10),
    )  # fmt: skip


def test_a_networks_convolutions_are_sites_of_their_own() -> None:
    case = Case("three convolutions", network, floats(3, 5, 5), per_class, 7, 1.0)
    layers = list(convolutions_of(case))
    assert [(layer.batch_size, layer.shape) for layer in layers] == [(7, (3, 5, 5)), (7, (4, 5, 5)), (7, (4, 5, 5))]
    assert len({layer.name for layer in layers}) == 2 and all(layer.make.bias is None for layer in layers)
    weight = case.model("cpu").get_parameter("0.weight")
    x = layers[0].batch(2)
    assert_close(layers[0].make(x), torch.conv2d(x, weight, None, padding=1))


def site(chosen: str, gram: float, materialize: float) -> Measured:
    """One with two ways."""
    seconds = {"gram+bookkeep": gram, "materialize+reuse": materialize}
    return Measured("a layer", 3, dict(seconds), seconds, 0.0, chosen, 5.0, 49.0)


def test_lost_time_is_of_all_sites_together() -> None:
    found = figures([site("gram+bookkeep", 2.0, 1.0), site("materialize+reuse", 9.0, 3.0)])
    assert found["lost"] == pytest.approx((2 + 3) / (1 + 3) - 1)
    assert found["dpcompile"]["mean"] == pytest.approx(0.5) and found["sites"] == 2


def test_a_part_that_was_not_measured_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "describe_machine", lambda device: {
        "name": "machine", "cpu": "a processor", "cores": 2, "versions": {"torch": "2.13.0"}})  # fmt: skip
    sites = [site("gram+bookkeep", 2.0, 1.0)]
    part = {"calibration": {"spread": 0.1, "measurements": 7}, "figures": figures(sites), "sites": [asdict(one) for one in sites]}
    publish(tmp_path, {"papers": part})
    publish(tmp_path, {"layers": {**part, "calibration": {"spread": 0.1, "measurements": 8}}})
    document = json.loads((tmp_path / "machine-cost.json").read_text("ascii"))
    assert document["papers"]["calibration"]["measurements"] == 7
    text = (tmp_path / "machine-cost.md").read_text("utf-8")
    assert "7 measurements" in text and "8 measurements" in text and "100.0% longer" in text
    assert (tmp_path / "machine-cost.svg").exists()
