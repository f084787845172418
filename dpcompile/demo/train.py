"""A plain training loop around a compiled step: Poisson batches, noise on the sum, an optimizer of torch.

    p.grad = (clipped sum + noise_multiplier * max_grad_norm * N(0, 1)) / batch_size

The divisor is the expected batch size, a public constant, and never the number of examples that were drawn
(Abadi et al., Deep Learning with Differential Privacy, 2016, algorithm 1). The loop claims no epsilon: it has
no accountant, and torch's generator is not a cryptographic one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from dpcompile import PrivateModule, Step
from dpcompile.demo.task import Task


@dataclass(frozen=True)
class Progress:
    """What one step did; all three are computed from the data and are NOT private."""

    examples: int
    loss: float
    share_clipped: float


def new_generator(seed: int | None) -> torch.Generator:
    """The source of batches and noise, seeded by the operating system unless a seed is given."""
    generator = torch.Generator()
    return generator.manual_seed(int.from_bytes(os.urandom(8)) >> 1 if seed is None else seed)


def train(private: PrivateModule, task: Task, generator: torch.Generator) -> Iterator[Progress]:
    """Train for the task's number of steps and yield after each."""
    optimizer = task.optimizer(task.model.parameters())
    for _ in range(task.steps):
        step = private(*task.batch(generator))
        set_noisy_gradients(step, task, generator)
        optimizer.step()
        loss = float(step.losses.mean()) if len(step.losses) else float("nan")
        yield Progress(len(step.losses), loss, step.share_clipped)


def set_noisy_gradients(step: Step, task: Task, generator: torch.Generator) -> None:
    """Put (clipped sum + noise) / batch size into p.grad; the noise is drawn in float32."""
    deviation = task.noise_multiplier * task.max_grad_norm
    for name, parameter in task.model.named_parameters():
        noise = torch.empty(parameter.shape, dtype=torch.float32).normal_(std=deviation, generator=generator)
        parameter.grad = ((step.grads[name] + noise) / task.batch_size).to(parameter.dtype)
