"""Networks of Rochette, Manoel and Tramel 2020 (arXiv:1912.06015): the family Net(L, n, f, k), AlexNet and VGG-16.

Net(L, n, f, k) for images 3 x side x side: convolution i has int(n f^(i-1)) inputs (3 for the first), int(n f^i) outputs, a
kernel of k x k, stride 1 and padding 2 whatever k is; ReLU behind each; pooling by 2 behind every second; one linear layer to 10
classes.
AlexNet and VGG-16 are torchvision's, without dropout, so that all methods compute the same sums.
"""

from __future__ import annotations

import torch
from torch import nn

CLASSES = 10
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
"""Channels of the convolutions; 0 is pooling."""


def net(layers: int, width: int, rate: float, kernel: int, side: int) -> nn.Module:
    """f32[B, 3, side, side] -> f32[B, 10]."""
    parts: list[nn.Module] = []
    for i in range(layers):
        inputs = 3 if i == 0 else int(width * rate ** (i - 1))
        parts += [nn.Conv2d(inputs, int(width * rate**i), kernel, padding=2), nn.ReLU()]
        if i % 2:
            parts.append(nn.MaxPool2d(2))
    return with_head(nn.Sequential(*parts, nn.Flatten()), (), side)


def alexnet(side: int, hidden: int = 4096) -> nn.Module:
    """Krizhevsky's network in torchvision's sizes, f32[B, 3, side, side] -> f32[B, 1000]."""
    features = nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.AdaptiveAvgPool2d(6), nn.Flatten(),
    )  # fmt: skip
    return with_head(features, (hidden, hidden), side, 1000)


def vgg16(side: int, hidden: int = 4096) -> nn.Module:
    """Simonyan and Zisserman's configuration D, f32[B, 3, side, side] -> f32[B, 1000]."""
    return with_head(nn.Sequential(*convolutions(VGG16), nn.AdaptiveAvgPool2d(7), nn.Flatten()), (hidden, hidden), side, 1000)


def convolutions(channels: tuple[int, ...]) -> list[nn.Module]:
    """3 x 3 convolutions with ReLU, and pooling where a 0 stands."""
    parts: list[nn.Module] = []
    inputs = 3
    for outputs in channels:
        parts += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()] if outputs else [nn.MaxPool2d(2)]
        inputs = outputs or inputs
    return parts


def with_head(features: nn.Module, hidden: tuple[int, ...], side: int, classes: int = CLASSES) -> nn.Module:
    """Linear layers behind features, whose number is found by running one image."""
    with torch.no_grad():
        count = features(torch.zeros(1, 3, side, side)).shape[1]
    parts: list[nn.Module] = []
    for outputs in hidden:
        parts += [nn.Linear(count, outputs), nn.ReLU()]
        count = outputs
    return nn.Sequential(features, *parts, nn.Linear(count, classes))
