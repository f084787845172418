"""What the demonstration trains: a model, its loss, its data and its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Data = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """One training task.

    train and held_out: inputs [N, ...] and targets [N] or [N, T]; an example is one row. batch_size is the
    expected number of examples of a step, a public constant: every example is drawn with probability
    batch_size / N. noise_multiplier: standard deviation of the noise on the sum, in units of max_grad_norm.
    """

    title: str
    example: str
    model: nn.Module
    loss: nn.Module | Callable[..., Tensor]
    train: Data
    held_out: Data
    batch_size: int
    steps: int
    max_grad_norm: float
    noise_multiplier: float
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

    def batch(self, generator: torch.Generator) -> Data:
        """Draw every training example independently (Poisson sampling); the drawn size varies."""
        inputs, targets = self.train
        drawn = torch.rand(len(inputs), generator=generator) < self.batch_size / len(inputs)
        return inputs[drawn], targets[drawn]

    def first_examples(self, count: int) -> Data:
        """The first training examples: a batch of known size, for timing and verification."""
        inputs, targets = self.train
        return inputs[:count], targets[:count]

    @torch.no_grad()
    def accuracy(self) -> float:
        """Share of right predictions on held-out data (digits, or next characters)."""
        inputs, targets = self.held_out
        return float((self.model(inputs).argmax(-1) == targets).float().mean())
