"""Calibration: every kernel is measured, the result survives the cache, and a broken cache is no obstacle."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from captured import captured
from measured_layers import MODELS
from zoo_case import squares

from dpcompile import InvalidInput, dpcompile
from dpcompile.cost.curve import Curve
from dpcompile.cost.hardware import HARDWARE, Hardware
from dpcompile.ir.cost import Work
from dpcompile.kernels import dense
from dpcompile.kernels.workspace import Workspace
from dpcompile.measure import cache
from dpcompile.measure.calibrate import SUBJECTS, Calibration, calibrate, drawn, slowed, with_workspace_of
from dpcompile.measure.clock import Pace
from dpcompile.measure.document import as_dictionary, from_dictionary
from dpcompile.measure.show import run_calibration, summary
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


def test_every_curve_answers(measured: Hardware) -> None:
    for form, curve in measured.curves.items():
        for point in (curve.points[0], [3.0] * len(curve.points[0])):
            assert 0 < curve.correction([2**size for size in point]) < math.inf, form


def test_a_whole_model_is_predicted_with_a_calibration(measured: Hardware) -> None:
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    private = dpcompile(layer, loss=squares, hardware=measured, example_batch=(torch.randn(2, 5, 8),))
    assert 0 < private.report().forecast.seconds < 1


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.work.form)
def test_sizes_that_are_drawn_are_complete_and_affordable(subject: object) -> None:
    found = [work for _, (_, work) in zip(range(5), drawn(subject, HARDWARE["cpu"], 0), strict=False)]  # type: ignore[arg-type]
    assert len(found) == 5
    for work in found:
        assert isinstance(work, Work) and work.features and all(isinstance(f, float) for f in work.features)


def test_strategies_whose_kernels_are_not_measured_are_few(measured: Hardware) -> None:
    forms = {work.form for name in ("linear", "convolution", "depthwise", "embedding") for work in works(name)}
    assert "gram" in forms and forms - {"interval"} <= set(measured.curves)  # which reads what the norm has read


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


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file" / "below"))
    with pytest.raises(InvalidInput, match=r"below .*DPCOMPILE_CACHE"):
        run_calibration(5.0, "cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "mps"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device: str) -> None:
    with pytest.raises(InvalidInput, match=rf"no device '{device}' here; use one of cpu"):
        run_calibration(5.0, device)


def test_a_busy_machine_is_told_from_a_quiet_one(measured: Hardware) -> None:
    busy, quiet = (" ".join(summary(Calibration(measured, spread, 50.0, 100))) for spread in (0.3, 0.01))
    assert "spread 30.0%" in busy and "busy" in busy and "busy" not in quiet


@pytest.mark.parametrize(
    ("threads", "speedup", "warned"), [(1, 1.0, False), (2, 1.0, True), (2, 1.9, False), (64, 1.1, True), (64, 30.0, False)]
)
def test_threads_that_share_a_core_are_told(measured: Hardware, threads: int, speedup: float, warned: bool) -> None:
    lines = summary(Calibration(measured, 0.01, 50.0, 100, threads=threads, speedup=speedup))
    assert any(f"{threads} threads multiplied matrices only {speedup:.1f} times" in line for line in lines) == warned


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux lets a process choose its cores")
def test_two_threads_on_one_core_are_no_faster_than_one() -> None:
    """In a process of its own, for a pool of threads keeps the cores that it was started with."""
    code = (
        "import os, torch; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); torch.set_num_threads(2);"
        "from dpcompile.measure.calibrate import speedup_of_threads; print(speedup_of_threads(torch.device('cpu')))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    speedup = float(found.stdout)
    assert 0 < speedup < 1.2 and not Calibration(HARDWARE["cpu"], 0.01, 50.0, 100, threads=2, speedup=speedup).has_its_cores


def test_what_was_measured_at_another_pace_is_brought_to_the_usual_one() -> None:
    pace = Pace(1e9, CPU)
    pace.readings += [2.0, 3.0, 2.0]
    assert pace.usual == 2.0
    pace.readings += [5.0] * Pace.WINDOW
    assert pace.now == 5.0
    assert pace.corrected(lambda: [10.0])[0] == pytest.approx(2.0)  # the one reading that is really made is an outlier
    curve = Curve(((1.0,), (2.0,)), (0.0, 0.5))
    assert slowed(curve, 2.0).logarithms == pytest.approx((math.log(2), 0.5 + math.log(2)))


def test_a_workspace_is_shared_by_all_sets_of_operands() -> None:
    first, second = (Workspace(dense.materialize), torch.ones(1)), (Workspace(dense.materialize), torch.zeros(1))
    shared = with_workspace_of(first, second)
    assert shared[0] is first[0] and shared[1] is second[1]
