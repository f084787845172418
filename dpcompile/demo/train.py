"""A plain training loop around a compiled step: Poisson batches, noise on the sum, an optimizer of torch, an accountant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import DataLoader, TensorDataset

from dpcompile import PrivateModule, Step
from dpcompile.demo.task import Task
from dpcompile.training import PrivacyEngine


@dataclass(frozen=True)
class Progress:
    """What one step did. All but `steps` (how many were taken) are computed from the data and are NOT private."""

    steps: int
    examples: int
    loss: float
    share_clipped: float


@dataclass(frozen=True)
class Training:
    """A task in the hands of a privacy engine."""

    task: Task
    private: PrivateModule
    engine: PrivacyEngine

    @staticmethod
    def of(task: Task, private: PrivateModule, seed: int | None) -> Training:
        """Make the task private; seed: repeatable draws and noise."""
        engine = PrivacyEngine(seed=seed)
        engine.make_private_with_epsilon(
            module=private,
            optimizer=task.optimizer(task.model.parameters()),
            data_loader=DataLoader(TensorDataset(*task.train), batch_size=task.batch_size),
            target_epsilon=task.target_epsilon,
            target_delta=task.target_delta,
            epochs=task.epochs,
        )
        return Training(task, private, engine)

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.task.epochs * len(self.engine.triple()[2])

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise on the sum, in units of the clip norm."""
        return self.engine.triple()[1].noise_multiplier

    def run(self) -> Iterator[Progress]:
        """Train for the task's number of epochs and yield after each step."""
        module, optimizer, loader = self.engine.triple()
        for _ in range(self.task.epochs):
            for batch in loader:
                step: Step = module(*batch)
                counted = step.losses[: loader.counted]
                optimizer.step()
                loss = float(counted.mean()) if len(counted) else float("nan")
                yield Progress(optimizer.session.completed, len(counted), loss, step.share_clipped)
