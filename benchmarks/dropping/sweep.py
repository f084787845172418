"""One training at given rates: accuracy on held-out data, and the share of the entries that noise is added to."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.dropping.tasks import TASKS, Task
from dpcompile import GradientDropping, PrePruning, dpcompile
from dpcompile.training import PrivacyEngine, noise_multiplier_for
from dpcompile.training.release import Poisson

PRUNE, DROP = (0.0, 0.3, 0.5, 0.7, 0.9), (0.0, 0.5, 0.7, 0.9)
CRITERIA = ("random", "magnitude", "snip", "synflow")
WAYS = (*((criterion, "weights") for criterion in CRITERIA), ("magnitude", "rows"))
"""Criterion and granularity of pruning."""


@dataclass(frozen=True)
class Setting:
    """A point of the sweep. criterion: of pruning; gradients are dropped at random, or by magnitude where pruning is."""

    task: str
    criterion: str
    granularity: str
    prune: float
    drop: float

    @property
    def key(self) -> str:
        """How the point is called in the results."""
        return f"{self.task} {self.criterion} {self.granularity} prune {self.prune:g} drop {self.drop:g}"

    def passes(self, seed: int) -> list[PrePruning | GradientDropping]:
        """What is given to make_private; nothing for rates of zero."""
        task = TASKS[self.task]
        _, public, _ = task.parts()
        chosen = task.hidden if self.granularity == "rows" else ()
        looks_at: dict[str, dict[str, Any]] = {"snip": {"public_batch": public}, "synflow": {"example": public[:1]}}
        given: dict[str, Any] = {"seed": seed, "parameters": chosen, **looks_at.get(self.criterion, {})}
        pruning = PrePruning(self.prune, self.criterion, self.granularity, **given)
        criterion = "magnitude" if self.criterion == "magnitude" else "random"
        dropping = GradientDropping(self.drop, criterion, self.granularity, parameters=chosen, seed=seed)
        return [*([pruning] if self.prune else []), *([dropping] if self.drop else [])]


@cache
def noise_of(task: Task) -> float:
    """The noise multiplier for the task's epsilon, which no rate changes."""
    sampling = Poisson(task.batch_size / task.train)
    steps = task.epochs * round(task.train / task.batch_size)
    return noise_multiplier_for(task.target_epsilon, task.target_delta, sampling, steps, "pld")


def compiled(setting: Setting, seed: int) -> Any:
    """The module of one training, its weights and masks from the seed."""
    task = TASKS[setting.task]
    torch.manual_seed(seed)
    return dpcompile(task.make(), loss=nn.CrossEntropyLoss(), max_grad_norm=task.max_grad_norm, passes=setting.passes(seed))


def session(setting: Setting, seed: int) -> tuple[Any, Callable[[], None]]:
    """A private module and one epoch of its training; the batches come from the seed alone."""
    task, private = TASKS[setting.task], compiled(setting, seed)
    optimizer = torch.optim.SGD(private.model.parameters(), lr=task.learning_rate, momentum=0.9)
    loader = DataLoader(TensorDataset(*task.parts()[0]), batch_size=task.batch_size)
    module, noisy, batches = PrivacyEngine(seed=seed).make_private(
        module=private, optimizer=optimizer, data_loader=loader, noise_multiplier=noise_of(task)
    )

    def epoch() -> None:
        for x, y in batches:
            module(x, y)
            noisy.step()

    return private, epoch


def trained(setting: Setting, seed: int) -> dict[str, float]:
    """{"accuracy", "kept"}: held-out accuracy, the share of entries trained."""
    torch.set_num_threads(1)
    task = TASKS[setting.task]
    (private, epoch), held_out = session(setting, seed), task.parts()[2]
    for _ in range(task.epochs):
        epoch()
    with torch.no_grad():
        right = (private.model(held_out[0]).argmax(1) == held_out[1]).float().mean()
    return {"accuracy": float(right), "kept": kept_share(private)}


def kept_share(private: Any) -> float:
    """The share of the entries that get noise, whose energy is in proportion."""
    selection, kept, total = private.program.selection, 0, 0
    for name, parameter in private.trainable():
        mask = None if selection is None else selection.mask(name)
        kept, total = kept + (parameter.numel() if mask is None else int(mask.sum())), total + parameter.numel()
    return kept / total


def seeds_of(setting: Setting, seeds: int) -> dict[str, tuple[float, float]]:
    """{measure: (mean, standard deviation)} of one point; here, where processes that are started anew find it."""
    return spread([trained(setting, seed) for seed in range(seeds)])


def spread(rows: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """The same of trainings that are done."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {name: (statistics.mean(v), statistics.stdev(v) if len(v) > 1 else 0.0) for name, v in columns.items()}
