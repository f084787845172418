"""The walk over the emitted graph says what the step really allocates; several results, views and workspaces counted once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from zoo_case import squares

from benchmarks import models
from benchmarks.cases import per_class
from benchmarks.measure import Step, peak_bytes
from dpcompile import PrivateModule, dpcompile
from dpcompile.predict.memory import memory

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP": (lambda: nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)), (64,)),
    "sequences": (lambda: nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.Flatten()), (16, 64)),
    "CNN": (models.group_norm_cnn, (3, 32, 32)),
    "LSTM": (models.LSTMClassifier, (64, 64)),
    "wide convolution": (lambda: nn.Sequential(nn.Tanh(), nn.Conv2d(256, 256, 3, padding=1), nn.Flatten()), (256, 8, 8)),
}


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy per example."""
    return per_class(model(x), y)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("strategy", ["auto", "materialize", "gram"])
def test_predicted_peaks_are_within_a_tenth_of_measured_ones(name: str, strategy: str) -> None:
    make_model, shape = MODELS[name]
    model, x, y = make_model(), torch.randn(16, *shape), torch.randint(0, 10, (16,))
    made: list[PrivateModule] = []

    def make() -> Step:
        made.append(dpcompile(model, loss=losses, strategy=strategy))
        return lambda: made[0](x, y).grads

    measured = peak_bytes(make, "cpu")
    assert made[0].report().forecast.peak_bytes == pytest.approx(measured, rel=0.1)


def test_groups_of_unfolded_convolutions_are_materialised_for_the_sum() -> None:
    model, x, y = (
        nn.Sequential(nn.Tanh(), nn.Conv2d(64, 64, 3, groups=4), nn.Flatten()),
        torch.randn(16, 64, 6, 6),
        torch.zeros(16).long(),
    )
    made: list[PrivateModule] = []

    def make() -> Step:
        made.append(dpcompile(model, loss=losses, strategy={"1.weight": ("gram", "unfold")}))
        return lambda: made[0](x, y).grads

    measured = peak_bytes(make, "cpu")
    assert made[0].report().forecast.peak_bytes == pytest.approx(measured, rel=0.1)


def test_memory_is_read_at_any_batch_size() -> None:
    private = dpcompile(nn.Linear(64, 32), loss=squares, example_batch=(torch.randn(4, 64),))
    small, large = (memory(private.ready().joint, size).peak for size in (4, 4000))
    assert 900 * small > large > 10 * small
