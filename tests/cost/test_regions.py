"""The founding paper's map of its two methods, and the report's map of strategies, both from prices alone."""

from __future__ import annotations

import pytest
import torch
from captured import captured
from torch import nn
from zoo_case import squares

from benchmarks.region_map import PUBLISHED, layers, points
from dpcompile.cost.hardware import HARDWARE
from dpcompile.plan.select import options_of
from dpcompile.report.regions import POSITIONS, SIDES, WAYS, regions, way_seconds


def test_the_p100_row_names_the_published_winner_on_24_of_30_networks() -> None:
    found = points(HARDWARE["p100"])
    assert len(found) == 30 and sum(point.agrees for point in found) >= 24


def test_naming_one_method_everywhere_would_be_worse() -> None:
    winners = [a < b for first, second in PUBLISHED.values() for a, b in zip(first, second, strict=True)]
    assert max(sum(winners), len(winners) - sum(winners)) == 22


def test_the_networks_are_those_of_the_paper() -> None:
    net = layers(2, 3, 16)
    assert [(layer.fan_in, layer.fan_out) for layer in net] == [(3, 25), (25, 400)]
    assert net[-1].after == 260  # padding of 2 for a kernel of 3: 256, 258, 260
    assert sum(layer.fan_in * layer.fan_out * 9 for layer in net) == 90_675


@pytest.mark.parametrize("positions", [1, 7, 300])
def test_the_map_has_the_prices_of_a_real_layer(positions: int) -> None:
    model = nn.Linear(64, 64, bias=False)
    made = captured(model, squares, torch.randn(3, positions, 64) if positions > 1 else torch.randn(3, 64))
    (site,) = made.sites
    options, _ = options_of(site, HARDWARE["cpu"], 16)
    real = {f"{option.norm}+{option.sum}": option.seconds for option in options}
    shared = set(real) & set(WAYS)
    assert len(shared) >= 2
    for name in shared:
        assert way_seconds(name, HARDWARE["cpu"], 16, positions, 64, 64) == pytest.approx(real[name])


def test_long_sequences_materialise_and_large_weights_do_not() -> None:
    found = regions(HARDWARE["h200"], 32)
    assert (len(found.winners), len(found.winners[0])) == (len(POSITIONS), len(SIDES))
    assert found.winners[1][-1].endswith("bookkeep") and found.winners[-1][0] == "materialize+reuse"
