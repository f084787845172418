"""A small convolutional network with GroupNorm on the 1,797 handwritten digits that scikit-learn carries.

The images are real (8 x 8 pixels, 16 grey levels) and need no network. Alpaydin and Kaynak, Optical
Recognition of Handwritten Digits, 1998.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

from dpcompile.demo.task import Data, Task

TRAIN_EXAMPLES = 1500


def digits_task() -> Task:
    """1,500 digits to train on, 297 held out."""
    train, held_out = load_images()
    return Task(
        title="GroupNorm CNN on handwritten digits",
        example="image",
        model=make_model(),
        loss=nn.CrossEntropyLoss(),
        train=train,
        held_out=held_out,
        batch_size=256,
        steps=80,
        max_grad_norm=1.0,
        noise_multiplier=1.0,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9),
    )


def make_model() -> nn.Module:
    """f32[B, 1, 8, 8] -> f32[B, 10], about 20,000 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def load_images() -> tuple[Data, Data]:
    """Images f32[N, 1, 8, 8] in [0, 1] and classes i64[N], in a fixed random order."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    classes = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, held_out = order[:TRAIN_EXAMPLES], order[TRAIN_EXAMPLES:]
    return (images[train], classes[train]), (images[held_out], classes[held_out])
