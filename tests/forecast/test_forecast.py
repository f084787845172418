"""Forecasts: what-if and the largest batch without running anything; the captured graph stays as it was."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from captured import captured, captured_case
from torch import nn
from zoo_case import squares

from dpcompile import InvalidInput, dpcompile
from dpcompile.cost.hardware import HARDWARE
from dpcompile.forecast.forecast import Outlook, bytes_of, largest
from dpcompile.forecast.rewriting import Source
from dpcompile.ir.printer import format_graph
from dpcompile.predict.memory import memory


@pytest.fixture(scope="module")
def outlook() -> Outlook:
    """Two layers on sequences."""
    made = captured(nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32)), squares, torch.randn(3, 7, 32))
    return Outlook(Source(made.joint, tuple(made.sites)), HARDWARE["cpu"], "auto", None)


def test_a_forecast_leaves_the_captured_graph_alone(outlook: Outlook) -> None:
    before = format_graph(outlook.source.joint)
    outlook.forecast(16)
    assert format_graph(outlook.source.joint) == before


def test_time_and_memory_grow_with_the_batch(outlook: Outlook) -> None:
    found = [outlook.forecast(size) for size in (1, 16, 256, 4096)]
    assert [f.seconds for f in found] == sorted(f.seconds for f in found)
    peaks = [f.peak_bytes for f in found]
    assert peaks == sorted(peaks) and peaks[-1] > 10 * peaks[1]
    assert all(0 < f.ordinary_seconds < f.seconds for f in found)


def test_a_faster_machine_is_predicted_faster(outlook: Outlook) -> None:
    def seconds(name: str) -> float:
        return outlook.what_if(4096, name, None).seconds

    assert seconds("h200") < seconds("p100") < seconds("cpu")


def test_chunks_need_less_memory_and_more_time(outlook: Outlook) -> None:
    chunked = Outlook(outlook.source, outlook.hardware, "auto", 16)
    one, many = outlook.forecast(256), chunked.forecast(256)
    assert many.peak_bytes < one.peak_bytes and many.seconds > 0 and "chunks of 16" in str(many)


def test_the_largest_batch_fits_and_the_next_does_not(outlook: Outlook) -> None:
    size = outlook.max_batch_size("20 MB")
    assert outlook.leanest_peak(size) <= 2e7 < outlook.leanest_peak(size + 1) and size > 1
    assert outlook.max_batch_size(10) == 0


def test_the_report_answers_what_if() -> None:
    private = dpcompile(nn.Linear(32, 16), loss=squares, example_batch=(torch.randn(8, 32),))
    report = private.report()
    assert report.what_if(batch_size=8).plan.strategies() == private.plan.strategies()
    assert report.what_if(hardware="h200").hardware == "h200" and report.max_batch_size("1 GB") > 8
    with pytest.raises(InvalidInput, match=r"h999.*h200"):
        report.what_if(hardware="h999")


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"batch_size": -5}, {"batch_size": 2.5}, {"batch_size": "x"}, {"hardware": 3}], ids=str
)
def test_impossible_circumstances_are_refused(options: dict[str, Any]) -> None:
    private = dpcompile(nn.Linear(3, 2), loss=squares, example_batch=(torch.randn(4, 3),))
    with pytest.raises(InvalidInput):
        private.report().what_if(**options)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("512 MiB", 2**29),
        ("2GB", 2e9),
        ("1.5 gb", 1.5e9),
        ("7000", 7000),
        ("100b", 100),
        (2.5e6, 2.5e6),
        ("1e6", 1e6),
        (".5 GB", 5e8),
        ("5e-1 GB", 5e8),
        ("2 gb", 2e9),
        ("1. kb", 1000),
        (np.float32(8), 8),
        (np.int64(9), 9),
    ],
)
def test_budgets_are_read(text: str | float, number: float) -> None:
    assert bytes_of(text) == number


@pytest.mark.parametrize("text", ["", "much", "1.2.3 GB", "-1", -1, 0, True, "5 XB", None, "0", "2 Gb", "3 i",
                                  "1e400", pytest.param(10**5000, id="huge"), math.inf, math.nan, torch.ones(1)])  # fmt: skip
def test_other_budgets_are_refused(text: object) -> None:
    with pytest.raises(InvalidInput, match="memory_budget must be"):
        bytes_of(text)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["2", " 1.5 ", "16."])
def test_a_number_that_lacks_its_unit_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=rf'say the unit, "{float(text):g} GB"'):
        bytes_of(text)


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 100, 1023, 1024])
def test_the_largest_size_is_found(limit: int) -> None:
    assert largest(lambda size: size <= limit) == limit


@pytest.mark.parametrize("name", ["GPT-2", "CNN", "ResNet-18"])
def test_every_result_of_a_model_is_counted(name: str) -> None:
    made = captured_case(next(case for case in names() if case.startswith(name)))
    outlook = Outlook(Source(made.joint, tuple(made.sites)), HARDWARE["cpu"], "auto", None)
    plan = outlook.forecast(3).plan
    found = memory(outlook.rewritten(plan), 3)
    outputs = sum(p.numel() * 8 for p in made.program.parameters())
    assert found.peak >= outputs and min(found.at.values()) >= 0


def names() -> list[str]:
    """The models of the zoo."""
    from zoo import ZOO  # noqa: PLC0415

    return [case.name for case in ZOO]
