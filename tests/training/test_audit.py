"""The canary audit: its bound is below the accounted epsilon for right training, above it when clipping or noise is broken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from dpcompile import InvalidInput, PrivateModule
from dpcompile.demo.audit import Audited, audit_digits
from dpcompile.training.audit import chance_of, epsilon_lower_bound, judge
from dpcompile.training.noise import GeneratorNoise


def test_right_training_is_above_zero_and_below_what_is_accounted() -> None:
    found = audit_digits(seed=1)
    assert 0 < found.audit.lower_bound < found.accounted <= 3.0


def unclipped() -> Any:
    """Every example may contribute twenty times the clip norm that the noise is made for."""
    clip = PrivateModule.run

    def run(self: PrivateModule, *args: Any) -> Any:
        wanted, self.max_grad_norm = self.max_grad_norm, 20 * self.max_grad_norm
        try:
            return replace(clip(self, *args), max_grad_norm=wanted)
        finally:
            self.max_grad_norm = wanted

    return mock.patch.object(PrivateModule, "run", run)


def faint() -> Any:
    """A fifth of the noise."""
    fill = GeneratorNoise.fill
    return mock.patch.object(GeneratorNoise, "fill", lambda self, out, deviation: fill(self, out, deviation / 5))


@pytest.fixture(params=[unclipped, faint])
def broken(request: pytest.FixtureRequest) -> Iterator[Audited]:
    """The audit of a broken training."""
    with request.param():
        yield audit_digits(seed=1)


def test_broken_training_is_above_what_is_accounted(broken: Audited) -> None:
    assert broken.audit.lower_bound > broken.accounted


def coins_and_scores(epsilon: float, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Randomised response, the mechanism for which the bound is tight: each coin told with the chance that epsilon allows."""
    generator = np.random.default_rng(seed)
    coins = generator.random(count) < 0.5
    told = np.where(generator.random(count) < 1 / (1 + np.exp(-epsilon)), coins, ~coins)
    return torch.from_numpy(told + 0.01 * generator.random(count)), torch.from_numpy(coins)


def test_the_bound_is_wrong_as_seldom_as_it_says_and_not_loose() -> None:
    bounds = []
    for seed in range(200):
        scores, coins = coins_and_scores(1.5, 400, seed)
        bounds.append(judge(scores, coins, 0.0, 400).lower_bound)
    assert sum(bound > 1.5 for bound in bounds) <= binom.ppf(0.999, 200, 0.05)
    assert np.median(bounds) > 1.1


def test_guessing_shows_nothing() -> None:
    assert epsilon_lower_bound(100, 200, 1000, 1e-4) == 0.0
    assert epsilon_lower_bound(0, 200, 1000, 1e-4) == 0.0


def test_the_bound_grows_with_right_guesses_and_shrinks_with_delta_and_confidence() -> None:
    bounds = [epsilon_lower_bound(correct, 200, 1000, 1e-5) for correct in (120, 150, 180, 200)]
    assert bounds == sorted(bounds)
    assert bounds[-1] > bounds[0]
    assert epsilon_lower_bound(180, 200, 1000, 1e-3) < epsilon_lower_bound(180, 200, 1000, 1e-6)
    assert epsilon_lower_bound(180, 200, 1000, 1e-5, 0.99) < epsilon_lower_bound(180, 200, 1000, 1e-5, 0.9)


def test_without_delta_the_chance_is_the_binomial_tail() -> None:
    epsilon = 0.7
    right = np.exp(epsilon) / (1 + np.exp(epsilon))
    assert np.isclose(chance_of(30, 40, 40, epsilon, 0.0), sum(binom.pmf(k, 40, right) for k in range(30, 41)))


@pytest.mark.parametrize("guesses", [0, 3, 12])
def test_guesses_that_cannot_be_made_are_refused(guesses: int) -> None:
    with pytest.raises(InvalidInput, match="even number"):
        judge(torch.zeros(10), torch.zeros(10, dtype=torch.bool), 1e-5, guesses)
