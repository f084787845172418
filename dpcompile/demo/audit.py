"""The canary audit of the demonstration's own training: `python -m dpcompile audit`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dpcompile import dpcompile
from dpcompile.demo.digits import digits_task
from dpcompile.demo.task import Task
from dpcompile.demo.train import Training
from dpcompile.training.audit import Audit, CanaryLoss, WithCanaries, judge

CANARIES = 1000
GUESSES = 200
"""Chosen ahead of all runs: the hundred highest scores and the hundred lowest."""
OVERSIZE = 20.0
"""A canary's gradient in units of the clip norm: far above it, so that missing clipping shows."""


@dataclass(frozen=True)
class Audited:
    """An audit beside what the accountant says of the same run."""

    audit: Audit
    accounted: float
    statement: str


def audit_digits(seed: int | None = None, canaries: int = CANARIES, guesses: int = GUESSES) -> Audited:
    """Train the digits' task once with canaries among its examples, and guess which were in.

    The canaries are coin flips of the operating system, or of the seed; they are examples like the others, so that the sampling
    rate is batch_size / (digits + canaries that are in).
    """
    generator = torch.Generator()
    generator.manual_seed(torch.seed() if seed is None else seed)
    is_in = torch.rand(canaries, generator=generator) < 0.5
    task = with_canaries(digits_task(), is_in)
    private = dpcompile(task.model, loss=task.loss, max_grad_norm=task.max_grad_norm)
    training = Training.of(task, private, seed)
    return audited(training, published(training), is_in, guesses)


def audited(training: Training, scores: Tensor, is_in: Tensor, guesses: int) -> Audited:
    """The judgement of a run's scores."""
    delta = training.task.target_delta
    engine = training.engine
    return Audited(judge(scores, is_in, delta, guesses), engine.get_epsilon(delta), engine.statement(delta))


def with_canaries(task: Task, is_in: Tensor) -> Task:
    """The task with the canaries that are in among its examples, each a blank image with a number."""
    inputs, targets = task.train
    chosen = torch.nonzero(is_in).flatten()
    blank = torch.zeros(len(chosen), *inputs.shape[1:], dtype=inputs.dtype)
    number = torch.cat([torch.full((len(inputs),), -1), chosen])
    examples = torch.cat([inputs, blank]), torch.cat([targets, torch.zeros_like(chosen)]), number
    model = WithCanaries(task.model, len(is_in))
    return replace(task, model=model, loss=CanaryLoss(OVERSIZE * task.max_grad_norm), train=examples)


def published(training: Training) -> Tensor:
    """f32[m]: for each canary the sum of what training published along its coordinate (p.grad, noise and all)."""
    model = training.task.model
    assert isinstance(model, WithCanaries)
    total = torch.zeros_like(model.coordinates)
    for _ in training.run():
        assert model.coordinates.grad is not None
        total -= model.coordinates.grad
    return total
