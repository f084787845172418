"""The log of a private training: one row per logical step, and names that say what is not private."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from training_case import data, finish, made, network

from dpcompile import InvalidInput, dpcompile
from dpcompile.training import TrainingLog


def test_a_row_holds_the_drawn_examples_of_all_physical_batches(tmp_path: Path) -> None:
    model = network()
    triple = made(model, physical_batch_size=5, pad_batches=True)
    drawn = triple[2].draws.examples(0)
    with TrainingLog(triple[1], delta=1e-3, path=tmp_path / "log.jsonl", every=2) as log:
        expected = dpcompile(model, loss=torch.nn.CrossEntropyLoss(), max_grad_norm=0.3)(*(t[drawn] for t in data()))
        finish(triple, 3)
    first = log.rows[0]
    assert first["examples_NOT_PRIVATE"] == len(drawn)
    assert first["loss_NOT_PRIVATE"] is None  # a drop-in never sees it
    assert math.isclose(first["norm_quantiles_NOT_PRIVATE"]["0.5"], float(expected.norms.quantile(0.5)), rel_tol=1e-12)
    assert math.isclose(first["share_clipped_NOT_PRIVATE"], expected.share_clipped, rel_tol=1e-12)
    assert [row["step"] for row in log.rows] == [1, 2, 3]
    assert [row["epsilon"] is None for row in log.rows] == [True, False, True]
    lines = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    finish(triple, 4)
    assert len(log.rows) == 3


def test_the_loss_of_a_compiled_step_is_recorded() -> None:
    model = network()
    private = dpcompile(model, loss=torch.nn.CrossEntropyLoss(), max_grad_norm=0.3)
    triple = made(model, module=private)
    inputs, targets = (t[triple[2].draws.examples(0)] for t in data())
    expected = torch.nn.functional.cross_entropy(model(inputs), targets).detach()
    with TrainingLog(triple[1], delta=1e-3) as log:
        triple[0](*next(iter(triple[2])))
        triple[1].step()
    assert math.isclose(log.rows[0]["loss_NOT_PRIVATE"], float(expected), rel_tol=1e-12)


def test_everything_computed_from_the_data_says_so() -> None:
    triple = made(network())
    with TrainingLog(triple[1], delta=1e-3, total=1) as log:
        finish(triple, 1)
    public = {"step", "epsilon", "noise_multiplier", "max_grad_norm"}
    assert {name for name in log.rows[0] if not name.endswith("NOT_PRIVATE")} == public


def refuse(constant: str) -> None:
    """What JSON does not know."""
    raise AssertionError(f"{constant} is no JSON")


def test_an_empty_draw_has_a_row_that_every_reader_of_json_takes(tmp_path: Path) -> None:
    triple = made(network(), sample_rate=1e-9)
    with TrainingLog(triple[1], delta=1e-3, path=tmp_path / "log.jsonl", total=1) as log:
        finish(triple, 1)
    assert log.rows[0]["examples_NOT_PRIVATE"] == 0
    assert log.rows[0]["share_clipped_NOT_PRIVATE"] is None
    assert json.loads((tmp_path / "log.jsonl").read_text(encoding="utf-8"), parse_constant=refuse) == log.rows[0]


def test_a_wrong_delta_is_refused_before_training() -> None:
    with pytest.raises(InvalidInput, match="delta"):
        TrainingLog(made(network())[1], delta=1.0)
