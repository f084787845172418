"""A small convolutional network on the 1,797 handwritten digits that scikit-learn carries.

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
    """1,500 digits to train on, 297 held out.

    Model and settings were chosen on 300 of the 1,500, by training on the other 1,200; the held-out digits were not looked at.
    """
    train, held_out = load_images()
    return Task(
        title="CNN on handwritten digits",
        example="image",
        model=make_model(),
        loss=nn.CrossEntropyLoss(),
        train=train,
        held_out=held_out,
        batch_size=500,
        epochs=20,
        max_grad_norm=0.5,
        target_epsilon=3.0,
        target_delta=1e-4,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.4, momentum=0.9),
    )


def make_model() -> nn.Module:
    """f32[B, 1, 8, 8] -> f32[B, 10], 2,730 parameters: few, for each of them gets its noise."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.LayerNorm(16 * 4 * 4, elementwise_affine=False),
        nn.Linear(16 * 4 * 4, 10),
    )


def load_images() -> tuple[Data, Data]:
    """Images f32[N, 1, 8, 8] in [0, 1] and classes i64[N], in a fixed random order."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    classes = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, held_out = order[:TRAIN_EXAMPLES], order[TRAIN_EXAMPLES:]
    return (images[train], classes[train]), (images[held_out], classes[held_out])
