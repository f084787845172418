"""Networks of Lee and Kifer 2021 (arXiv:2009.03106), as their code builds them; ten classes, two for texts.

Frozen parts (word vectors, batch normalisation of pretrained ResNets) are buffers, as they train nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.experiments.rochette_networks import convolutions, with_head

VGG11 = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)
STAGES = ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))


def mlp() -> nn.Module:
    """Hidden layers of 128 and 256 with sigmoids, f32[B, 28, 28] -> f32[B, 10]."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.Sigmoid(), nn.Linear(128, 256), nn.Sigmoid(), nn.Linear(256, 10))


def cnn() -> nn.Module:
    """20 and 50 channels, 5 x 5 kernels, pooling by 2, 128 hidden units, f32[B, 28, 28] -> f32[B, 10]."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28)), nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(800, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


class Recurrent(nn.Module):
    """Rows of an image as a sequence, f32[B, 28, 28] -> f32[B, 10] from the last output."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """One recurrent layer, then a linear head."""
        result: Tensor = self.head(self.layer(x)[0][:, -1])
        return result


def rnn() -> nn.Module:
    """Hidden size 128."""
    return Recurrent(nn.RNN(28, 128, batch_first=True))


def lstm() -> nn.Module:
    """Hidden size 128."""
    return Recurrent(nn.LSTM(28, 128, batch_first=True))


class Transformer(nn.Module):
    """One encoder layer, 8 heads, width 200, 800 hidden units over frozen word vectors; i64[B, T] -> f32[B, 2]."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vectors = nn.Buffer(torch.randn(vocabulary, 200) * 0.1)
        self.layer = nn.TransformerEncoderLayer(200, 8, 800, dropout=0.0, batch_first=True)
        self.head = nn.Linear(200, 2)

    def forward(self, ids: Tensor) -> Tensor:
        """The mean over positions of the layer's output, and a linear head."""
        result: Tensor = self.head(self.layer(F.embedding(ids, self.vectors)).mean(1))
        return result


class FrozenNorm(nn.Module):
    """Batch normalisation of a pretrained network: a fixed scale and shift per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Buffer(torch.rand(channels, 1, 1) + 0.5), nn.Buffer(torch.randn(channels, 1, 1) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """f32[B, channels, H, W], scaled and shifted."""
        return x * self.scale + self.shift


class Block(nn.Module):
    """Two 3 x 3 convolutions with a shortcut, f32[B, inputs, H, W] -> f32[B, outputs, H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        )
        self.norms = nn.ModuleList([FrozenNorm(outputs), FrozenNorm(outputs)])
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), FrozenNorm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """The residual block of He et al."""
        return F.relu(self.norms[1](self.second(F.relu(self.norms[0](self.first(x))))) + self.shortcut(x))


def resnet18() -> nn.Module:
    """He et al.'s ResNet-18 with a first kernel of 6 as their code has it, f32[B, 3, side, side] -> f32[B, 10]."""
    parts: list[nn.Module] = [nn.Conv2d(3, 64, 6, 2, 3, bias=False), FrozenNorm(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for outputs, stride in STAGES:
        parts.append(Block(inputs, outputs, stride))
        inputs = outputs
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def vgg11(side: int, hidden: int) -> nn.Module:
    """Simonyan and Zisserman's configuration A, f32[B, 3, side, side] -> f32[B, 10]."""
    features = nn.Sequential(*convolutions(VGG11), nn.AdaptiveAvgPool2d(7 if side > 64 else 1), nn.Flatten())
    return with_head(features, (hidden, hidden), side)
