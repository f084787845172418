"""The demonstration: accuracy within its budget, and its plot."""

from __future__ import annotations

from pathlib import Path

import torch

from dpcompile import dpcompile
from dpcompile.demo.digits import digits_task, make_model
from dpcompile.demo.show import draw_curves
from dpcompile.demo.train import Training

SEEDS = range(5)


def test_the_digits_reach_93_percent_within_epsilon_3_over_five_seeds() -> None:
    task = digits_task()
    private = dpcompile(task.model, loss=task.loss, max_grad_norm=task.max_grad_norm)
    accuracies = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        task.model.load_state_dict(make_model().state_dict())
        for _ in Training.of(task, private, seed).run():
            pass
        accuracies.append(task.accuracy())
    assert sum(accuracies) / len(accuracies) >= 0.93, accuracies


def test_the_digits_spend_what_they_say() -> None:
    task = digits_task()
    training = Training.of(task, dpcompile(task.model, loss=task.loss, max_grad_norm=task.max_grad_norm), 0)
    taken = [progress.steps for progress in training.run()]
    assert taken == list(range(1, training.steps + 1))
    assert 2.99 < training.engine.get_epsilon(task.target_delta) <= 3.0


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    draw_curves({"digits": [(0.0, 0.1), (3.0, 0.93)]}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
