"""An empirical lower bound on epsilon from one training run with canaries.

Every canary is an example that is in the training data with probability 1/2, and whose gradient is as large as clipping lets
it be, along a coordinate of its own. From the noisy gradients that training publishes one guesses for some canaries that they
were in, and for as many that they were not. A mechanism that is (epsilon, delta)-private bounds how many guesses can be right
(Steinke, Nasr and Jagielski, Privacy auditing with one (1) training run, 2023, theorem 5.2): more right guesses than that show a
larger epsilon.

A bound above the accounted epsilon shows that something is broken. A bound below it shows nothing wrong, and proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from scipy.stats import binom
from torch import Tensor, nn

from dpcompile.ir.errors import InvalidInput

LARGEST = 50.0
"""The largest epsilon that is looked at."""


@dataclass(frozen=True)
class Audit:
    """What an audit found: epsilon is at least `lower_bound` with this confidence, if the canaries were drawn by fair coins."""

    lower_bound: float
    correct: int
    guesses: int
    canaries: int
    delta: float
    confidence: float

    def __str__(self) -> str:
        return (
            f"epsilon >= {self.lower_bound:.3f} at delta {self.delta:g} with {self.confidence:.0%} confidence: {self.correct} of "
            f"{self.guesses} guesses about {self.canaries} canaries were right (one training run)"
        )


def judge(scores: Tensor, is_in: Tensor, delta: float, guesses: int, confidence: float = 0.95) -> Audit:
    """Guess from scores f[m] that the `guesses` / 2 canaries with the largest scores were in and those with the least were out.

    is_in: bool[m], the coins. guesses: an even number that was chosen before the scores were seen, at most m.
    """
    if guesses < 2 or guesses % 2 or guesses > len(scores):
        raise InvalidInput(f"guesses must be an even number from 2 to the number of canaries ({len(scores)}), got {guesses}")
    order = scores.argsort()
    half = guesses // 2
    correct = int((~is_in[order[:half]]).sum() + is_in[order[-half:]].sum())
    bound = epsilon_lower_bound(correct, guesses, len(scores), delta, confidence)
    return Audit(bound, correct, guesses, len(scores), delta, confidence)


def epsilon_lower_bound(correct: int, guesses: int, canaries: int, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon that this many right guesses refute at this confidence; 0 if they refute none."""
    allowed = 1 - confidence

    def excess(epsilon: float) -> float:
        return chance_of(correct, guesses, canaries, epsilon, delta) - allowed

    if excess(0.0) >= 0:
        return 0.0
    return float(brentq(excess, 0.0, LARGEST)) if excess(LARGEST) > 0 else LARGEST


def chance_of(correct: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """An upper bound on the chance of at least this many right guesses under (epsilon, delta)-privacy.

    Under epsilon alone every guess is right with at most the chance e^epsilon / (1 + e^epsilon), independently; delta adds
    2 m delta max_i P[correct - i <= binomial < correct] / i.
    """
    right = 1 / (1 + np.exp(-epsilon))
    tail = binom.sf(correct - 1, guesses, right)
    steps = np.arange(1, correct + 1)
    below = np.cumsum(binom.pmf(correct - steps, guesses, right))
    slack = float((below / steps).max()) if correct else 0.0
    return min(1.0, float(tail) + 2 * canaries * delta * slack)


class WithCanaries(nn.Module):
    """A model beside one parameter f32[m] in which every canary has a coordinate of its own."""

    def __init__(self, model: nn.Module, canaries: int) -> None:
        super().__init__()
        self.model = model
        self.coordinates = nn.Parameter(torch.zeros(canaries))

    def forward(self, inputs: Tensor) -> Tensor:
        """The model's outputs."""
        outputs: Tensor = self.model(inputs)
        return outputs


@dataclass(frozen=True)
class CanaryLoss:
    """Losses f[B]: cross entropy of examples (canary -1); canaries (their number) a gradient of norm `size` along their own."""

    size: float

    def __call__(self, model: WithCanaries, inputs: Tensor, targets: Tensor, canary: Tensor) -> Tensor:
        """For a batch of inputs [B, ...], targets i64[B] and canary numbers i64[B]."""
        ordinary = F.cross_entropy(model(inputs), targets, reduction="none")
        own = F.one_hot(canary + 1, len(model.coordinates) + 1)[:, 1:].to(ordinary.dtype)
        return torch.where(canary < 0, ordinary, -self.size * (own * model.coordinates).sum(1))
