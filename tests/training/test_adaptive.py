"""The adaptive clip norm: it finds its quantile, its noise is accounted, and one example moves the count by one half."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from training_case import data, finish, loader, made, network, train, values

from dpcompile import Flat, InvalidInput, Step, dpcompile
from dpcompile.training import AdaptiveQuantile
from dpcompile.training.adaptive import indicators
from dpcompile.training.noise import GeneratorNoise


@pytest.mark.parametrize("quantile", [0.25, 0.75])
def test_the_norm_finds_the_quantile(quantile: float) -> None:
    model = network()
    adaptive = AdaptiveQuantile(quantile, count_noise=1.0)
    triple = made(model, rate=1e-9, max_grad_norm=0.3, clipping=adaptive, expected_batch_size=40)
    norms = []
    for _ in train(triple, 150):
        norms.append(triple[1].max_grad_norm)
    private = dpcompile(model, loss=torch.nn.CrossEntropyLoss())
    share = float((private(*data()).norms <= sum(norms[-50:]) / 50).double().mean())
    assert abs(share - quantile) < 0.06


def test_gradients_and_count_amount_to_what_is_accounted() -> None:
    adaptive = AdaptiveQuantile(count_noise=3.0)
    used = adaptive.gradient_noise(1.3, 12)
    assert used > 1.3
    assert math.isclose((used**-2 + (2 * 3.0) ** -2) ** -0.5, 1.3)
    triple = made(network(), noise_multiplier=1.3, clipping=adaptive)
    finish(triple, 3)
    assert [(release.noise_multiplier, count) for release, count in triple[1].accountant.ledger.entries] == [(1.3, 3)]


def test_the_gradients_noise_is_the_larger_one() -> None:
    model = network()
    before = values(model)
    triple = made(model, noise_multiplier=1.3, sample_rate=1e-9, clipping=AdaptiveQuantile(count_noise=2.0))
    finish(triple, 1)
    deviation = 0.3 * AdaptiveQuantile(count_noise=2.0).gradient_noise(1.3, 12) / 12
    noise = GeneratorNoise(seed=4).fill(torch.empty_like(before), deviation)
    assert torch.allclose(before - values(model), 0.5 * noise, rtol=0, atol=1e-15)


@pytest.mark.parametrize("norm", [0.0, 1.0, 5.0, float("inf"), float("nan")])
@pytest.mark.parametrize("counted", [True, False])
def test_one_example_moves_the_count_by_at_most_one_half(norm: float, counted: bool) -> None:
    norms = torch.tensor([0.5, 2.0, norm])
    mask = torch.tensor([True, True, counted])
    step = Step(norms, norms, (1 / norms).clamp(max=1), {}, ~norms.isfinite(), mask, Flat(), 1.0)
    found = indicators(step)
    assert abs(float(found.sum() - found[:2].sum())) == (0.5 if counted and math.isfinite(norm) else 0.0)


def test_all_physical_batches_are_counted() -> None:
    norms = []
    for size in (None, 3):
        triple = made(network(), clipping=AdaptiveQuantile(), physical_batch_size=size, pad_batches=size is not None)
        finish(triple, 4)
        norms.append(triple[1].max_grad_norm)
    assert math.isclose(*norms, rel_tol=1e-12)


BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"quantile": 0.0}, "quantile"),
    ({"quantile": 1.0}, "quantile"),
    ({"learning_rate": 0.0}, "learning_rate"),
    ({"count_noise": -1.0}, "count_noise"),
    ({"least": 2.0, "most": 1.0}, "least"),
)


@pytest.mark.parametrize(("options", "name"), BAD, ids=str)
def test_bad_settings_are_refused(options: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidInput, match=name):
        AdaptiveQuantile(**options)


def test_a_count_that_spends_everything_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"count_noise above 0\.5"):
        made(network(), clipping=AdaptiveQuantile(count_noise=0.4), data_loader=loader())
