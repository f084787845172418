"""A small private training for the tests: data, model, loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dpcompile.training import PrivacyEngine
from dpcompile.training.engine import Triple

EXAMPLES = 60


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """60 examples of 5 numbers in 3 classes."""
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(EXAMPLES, 5, generator=generator, dtype=dtype)
    return inputs, inputs[:, :3].argmax(1)


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Two layers, without draws."""
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def loader(batch_size: int | None = 12, **options: Any) -> DataLoader[Any]:
    """The user's loader."""
    return DataLoader(TensorDataset(*data()), batch_size=batch_size, **options)


def made(model: nn.Module, noise_multiplier: float = 1.0, seed: int | None = 3, rate: float = 0.5, **options: Any) -> Triple:
    """Private module, optimizer (SGD) and loader for a model."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    given = {"module": model, "data_loader": loader(), "max_grad_norm": 0.3, **options}
    return PrivacyEngine(seed=seed).make_private(optimizer=optimizer, noise_multiplier=noise_multiplier, **given)


def train(triple: Triple, steps: int) -> Iterator[int]:
    """The user's loop for a number of logical steps; yields after every call of optimizer.step()."""
    module, optimizer, batches = triple
    while optimizer.session.completed < steps:
        for inputs, targets in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(inputs), targets).backward()
            optimizer.step()
            yield optimizer.session.completed
            if optimizer.session.completed == steps and not optimizer.session.steps:
                return


def finish(triple: Triple, steps: int) -> None:
    """Run the loop to its end."""
    for _ in train(triple, steps):
        pass


def values(model: nn.Module) -> Tensor:
    """All parameters in one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
