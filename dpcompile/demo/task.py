"""What the demonstration trains: a model, its loss, its data and its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Data = tuple[Tensor, ...]


@dataclass(frozen=True)
class Task:
    """One training task.

    train and held_out: inputs [N, ...] and targets [N] or [N, T]; an example is one row. batch_size is the
    expected number of examples of a step, a public constant: every example is drawn with probability
    batch_size / N. The noise is what keeps `epochs` epochs within (target_epsilon, target_delta).
    """

    title: str
    example: str
    model: nn.Module
    loss: nn.Module | Callable[..., Tensor]
    train: Data
    held_out: Data
    batch_size: int
    epochs: int
    max_grad_norm: float
    target_epsilon: float
    target_delta: float
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

    def first_examples(self, count: int) -> Data:
        """The first training examples: a batch of known size, for timing and verification."""
        return tuple(tensor[:count] for tensor in self.train)

    @torch.no_grad()
    def accuracy(self) -> float:
        """Share of right predictions on held-out data (digits, or next characters)."""
        inputs, targets = self.held_out
        return float((self.model(inputs).argmax(-1) == targets).float().mean())
