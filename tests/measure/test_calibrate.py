"""Calibration: every kernel is measured, the result survives the cache, and a broken cache is no obstacle."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from captured import captured
from measured_layers import MODELS
from zoo_case import squares

from dpcompile import dpcompile
from dpcompile.cost.hardware import HARDWARE, Hardware
from dpcompile.ir.cost import Work
from dpcompile.measure import cache
from dpcompile.measure.calibrate import SUBJECTS, calibrate, drawn
from dpcompile.measure.document import as_dictionary, from_dictionary
from dpcompile.plan.select import options_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def measured() -> Hardware:
    """A hasty calibration: few points, which is enough to see that everything runs."""
    return calibrate(HARDWARE["cpu"], CPU, seconds=0.1).hardware


def test_every_kernel_gets_a_curve(measured: Hardware) -> None:
    assert set(measured.curves) == {subject.work.form for subject in SUBJECTS} and measured.is_measured
    assert all(len(curve.points) == len(curve.logarithms) > 0 for curve in measured.curves.values())
    assert all(math.isfinite(number) for curve in measured.curves.values() for number in curve.logarithms)


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.work.form)
def test_sizes_that_are_drawn_are_complete_and_affordable(subject: object) -> None:
    found = [work for _, (_, work) in zip(range(5), drawn(subject, HARDWARE["cpu"], 0), strict=False)]  # type: ignore[arg-type]
    assert len(found) == 5
    for work in found:
        assert isinstance(work, Work) and work.features and all(isinstance(f, float) for f in work.features)


def test_strategies_whose_kernels_are_not_measured_are_few(measured: Hardware) -> None:
    forms = {work.form for name in ("linear", "convolution", "depthwise", "embedding") for work in works(name)}
    assert "gram" in forms and forms <= set(measured.curves)


def works(name: str) -> list[Work]:
    """The work of all options of a layer."""
    model, draw = MODELS[name]
    site = captured(model, squares, draw(2)).sites[0]
    return [work for option in options_of(site, HARDWARE["cpu"], 3)[0] for work in option.cost.work]


def test_a_row_survives_json(measured: Hardware) -> None:
    assert from_dictionary(as_dictionary(measured)) == measured
    assert from_dictionary(as_dictionary(HARDWARE["h200"])) == HARDWARE["h200"]


def test_the_cache_gives_back_what_was_kept(measured: Hardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    assert cache.load(CPU) == (None, "")
    cache.save(measured, 0.01, CPU)
    assert cache.load(CPU) == (measured, "")
    private = dpcompile(torch.nn.Linear(3, 2), loss=lambda m, x: m(x).square().sum(1), example_batch=(torch.randn(2, 3),))
    assert private.plan.hardware == "this machine" and "calibrate" not in str(private.report())


@pytest.mark.parametrize("text", ["", "{", '{"format": 99}', '{"format": 1, "identity": {}}', "[1]"])
def test_a_corrupt_cache_is_reported_and_not_used(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    cache.path_for(CPU).write_text(text)
    found, note = cache.load(CPU)
    assert found is None and "calibrate again" in note
    private = dpcompile(torch.nn.Linear(3, 2), loss=lambda m, x: m(x).square().sum(1), example_batch=(torch.randn(2, 3),))
    assert note in str(private.report()) and private.plan.hardware == "cpu"


def test_without_a_calibration_the_report_says_so() -> None:
    private = dpcompile(torch.nn.Linear(3, 2), loss=lambda m, x: m(x).square().sum(1), example_batch=(torch.randn(2, 3),))
    assert "table's row cpu" in str(private.report())
