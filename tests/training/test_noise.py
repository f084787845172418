"""Noise: normal, of the right size, independent from step to step, repeatable only where a seed was given."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from scipy import stats
from training_case import finish, made, network, values

from dpcompile.training.noise import GeneratorNoise, Noise, SecureNoise

COUNT = 200_000


SOURCES: dict[str, Noise] = {
    "seeded": GeneratorNoise(seed=5),
    "generator": GeneratorNoise(generator=torch.Generator().manual_seed(5)),
    "secure": SecureNoise(),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_normal(source: str, dtype: torch.dtype) -> None:
    noise = SOURCES[source]
    drawn = noise.fill(torch.empty(COUNT, dtype=dtype), 2.5)
    assert drawn.dtype is dtype
    # One in 10,000 draws of the operating system's fails this; the seeded ones are always the same.
    assert stats.kstest(drawn.double().numpy() / 2.5, "norm").pvalue > 1e-4
    assert abs(float(drawn.double().std()) / 2.5 - 1) < 5 / (2 * COUNT) ** 0.5


@pytest.mark.parametrize("noise", [GeneratorNoise(seed=5), SecureNoise()], ids=["seeded", "secure"])
def test_draws_are_independent(noise: Noise) -> None:
    first, second = (noise.fill(torch.empty(COUNT, dtype=torch.float64), 1.0) for _ in range(2))
    for a, b in ((first, second), (first[1:], first[:-1]), (first.square(), second.square())):
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 5 / COUNT**0.5


def test_secure_noise_fills_any_layout() -> None:
    out = torch.zeros(30, 20).t()
    assert (SecureNoise().fill(out, 1.0) != 0).all()


def test_only_seeded_noise_has_a_state() -> None:
    assert GeneratorNoise(seed=1).state() is not None
    assert GeneratorNoise().state() is None
    assert GeneratorNoise(generator=torch.Generator()).state() is None
    assert SOURCES["secure"].state() is None


def test_runs_without_a_seed_differ() -> None:
    ends = []
    for _ in range(2):
        model = network()
        finish(made(model, seed=None, sample_rate=1e-9), 1)
        ends.append(values(model))
    assert not torch.equal(*ends)


def test_noise_is_drawn_once_per_logical_step_whatever_the_physical_batches() -> None:
    for size in (None, 2):
        model = network()
        triple = made(model, physical_batch_size=size)
        with mock.patch.object(triple[1].noise, "fill", wraps=triple[1].noise.fill) as fill:
            finish(triple, 3)
        assert [call.args[1] for call in fill.call_args_list] == [0.3 / 12] * 3


def test_the_released_sum_has_the_accounted_noise() -> None:
    model = torch.nn.Linear(5, 2000, bias=False).double()
    start = values(model).clone()
    triple = made(model, noise_multiplier=1.7, sample_rate=1e-9)
    finish(triple, 1)
    drawn = (start - values(model)) / 0.5 * 12 / 0.3
    assert stats.kstest(drawn.numpy() / 1.7, "norm").pvalue > 0.01
