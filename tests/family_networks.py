"""Vision architectures of the table that are written here, with GroupNorm or LayerNorm so that examples stay independent."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def block(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: type[nn.Module] = nn.ReLU
) -> nn.Module:
    """Convolution, GroupNorm and activation, with padding that keeps the size but for the stride."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(2, outputs), act())


def head(inputs: int, classes: int = 5) -> nn.Module:
    """Mean over the image and a linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class Residual(nn.Module):
    """The input plus a branch of it."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Any tensor whose shape the branch keeps."""
        return x + self.branch(x)


class Branches(nn.Module):
    """Several branches of the input, concatenated along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """f[B, C, H, W] to f[B, sum of channels, H, W]."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class SqueezeExcite(nn.Module):
    """Every channel times a number from the means of all channels (Hu et al. 2018)."""

    def __init__(self, channels: int, gate: type[nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 2, 1), nn.ReLU(), nn.Conv2d(2, channels, 1), gate()
        )

    def forward(self, x: Tensor) -> Tensor:
        """f[B, channels, H, W] to the same shape."""
        return x * self.gate(x)


class Shuffle(nn.Module):
    """Half of the channels through a depthwise branch, then channels interleaved (ShuffleNet v2, Ma et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            block(half, half, 1), block(half, half, 3, groups=half, act=nn.Identity), block(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """f[B, channels, H, W] to the same shape."""
        kept, changed = x.chunk(2, dim=1)
        joined = torch.stack([kept, self.branch(changed)], dim=2)
        return joined.flatten(1, 2)


class MixerBlock(nn.Module):
    """One network over the patches and one over the channels (MLP-Mixer, Tolstikhin et al. 2021)."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(patches, 7), nn.GELU(), nn.Linear(7, patches))
        self.channels = nn.Sequential(nn.Linear(width, 7), nn.GELU(), nn.Linear(7, width))

    def forward(self, x: Tensor) -> Tensor:
        """f[B, patches, width] to the same shape."""
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Patches(nn.Module):
    """An image as a sequence of embedded patches."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """f[B, 3, H, W] to f[B, patches, width]."""
        return self.embed(x).flatten(2).transpose(1, 2)


class TokenMean(nn.Module):
    """LayerNorm, mean over the sequence and a linear layer."""

    def __init__(self, width: int, classes: int = 5) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """f[B, T, width] to f[B, classes]."""
        return self.out(self.norm(x).mean(1))


def alexnet() -> nn.Module:
    """Large kernels first, local response normalisation, dropout off (Krizhevsky et al. 2012)."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, 2, 2), nn.ReLU(inplace=True), nn.LocalResponseNorm(3), nn.MaxPool2d(3, 2),
        nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.0), nn.Linear(24, 7), nn.ReLU(inplace=True), nn.Linear(7, 5),
    )  # fmt: skip


def vgg() -> nn.Module:
    """Pairs of 3x3 convolutions and pooling (Simonyan & Zisserman 2015)."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 4), (4, 6)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.ReLU(True),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.ReLU(True),
        ]
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24, 7), nn.ReLU(True), nn.Linear(7, 5))


class DenseLayer(nn.Module):
    """The input and what a convolution makes of it (Huang et al. 2017)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.GroupNorm(2, inputs), nn.ReLU(), nn.Conv2d(inputs, growth, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """f[B, inputs, H, W] to f[B, inputs + growth, H, W]."""
        return torch.cat([x, self.layers(x)], dim=1)


def densenet() -> nn.Module:
    """Two dense blocks with a transition between them."""
    first = [DenseLayer(4 + 2 * i, 2) for i in range(2)]
    second = [DenseLayer(4 + 2 * i, 2) for i in range(2)]
    return nn.Sequential(block(3, 4), *first, block(8, 4, 1), nn.AvgPool2d(2), *second, head(8))


def inverted(inputs: int, outputs: int, stride: int, act: type[nn.Module], excite: type[nn.Module] | None = None) -> nn.Module:
    """Wide, depthwise, narrow: the inverted bottleneck (Sandler et al. 2018), with squeeze and excitation if wanted."""
    wide = 2 * inputs
    gate = [] if excite is None else [SqueezeExcite(wide, excite)]
    depthwise = block(wide, wide, 3, stride, wide, act)
    layers = nn.Sequential(block(inputs, wide, 1, act=act), depthwise, *gate, block(wide, outputs, 1, act=nn.Identity))
    return Residual(layers) if inputs == outputs and stride == 1 else layers


def mobilenet_v2() -> nn.Module:
    """Inverted bottlenecks with ReLU6."""
    return nn.Sequential(block(3, 4, 3, 2, act=nn.ReLU6), inverted(4, 4, 1, nn.ReLU6), inverted(4, 6, 2, nn.ReLU6), head(6))


def mobilenet_v3() -> nn.Module:
    """Inverted bottlenecks with hard swish and hard-sigmoid gates (Howard et al. 2019)."""
    middle = (inverted(4, 4, 1, nn.Hardswish, nn.Hardsigmoid), inverted(4, 6, 2, nn.Hardswish, nn.Hardsigmoid))
    return nn.Sequential(block(3, 4, 3, 2, act=nn.Hardswish), *middle, head(6))


def efficientnet() -> nn.Module:
    """Inverted bottlenecks with swish and gates (Tan & Le 2019)."""
    middle = (inverted(4, 4, 1, nn.SiLU, nn.Sigmoid), inverted(4, 6, 2, nn.SiLU, nn.Sigmoid))
    return nn.Sequential(block(3, 4, 3, 2, act=nn.SiLU), *middle, head(6))


def inception() -> nn.Module:
    """Branches of different kernels side by side (Szegedy et al. 2015)."""
    pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), block(4, 2, 1))
    tall = nn.Sequential(block(4, 2, 1), nn.Conv2d(2, 2, (1, 5), padding=(0, 2)), nn.Conv2d(2, 2, (5, 1), padding=(2, 0)))
    return nn.Sequential(block(3, 4, 3, 2), Branches(block(4, 2, 1), block(4, 2, 3), tall, pooled), head(8))


def resnext() -> nn.Module:
    """Residual bottlenecks with grouped convolutions (Xie et al. 2017)."""
    branch = [nn.Sequential(block(6, 4, 1), block(4, 4, 3, groups=2), block(4, 6, 1, act=nn.Identity)) for _ in range(2)]
    return nn.Sequential(block(3, 6, 3, 2), *(nn.Sequential(Residual(b), nn.ReLU()) for b in branch), head(6))


def mixer() -> nn.Module:
    """MLP-Mixer on four patches."""
    return nn.Sequential(Patches(6, 4), MixerBlock(4, 6), MixerBlock(4, 6), TokenMean(6))


def shufflenet() -> nn.Module:
    """Two shuffled blocks."""
    return nn.Sequential(block(3, 8, 3, 2), Shuffle(8), Shuffle(8), head(8))


def convmixer() -> nn.Module:
    """Depthwise and pointwise convolutions at one size (Trockman & Kolter 2022)."""
    stem = nn.Sequential(nn.Conv2d(3, 6, 2, 2), nn.GELU(), nn.GroupNorm(1, 6))
    depthwise = Residual(nn.Sequential(nn.Conv2d(6, 6, 3, groups=6, padding="same"), nn.GELU(), nn.GroupNorm(1, 6)))
    return nn.Sequential(stem, depthwise, nn.Conv2d(6, 6, 1), nn.GELU(), nn.GroupNorm(1, 6), head(6))


def squeezenet() -> nn.Module:
    """A narrow layer and two wide ones side by side; classes straight from the channels (Iandola et al. 2016)."""
    fire = nn.Sequential(
        nn.Conv2d(4, 2, 1), nn.ReLU(True), Branches(nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 3, padding=1)), nn.ReLU(True)
    )
    last = nn.Sequential(nn.Conv2d(8, 5, 1), nn.ReLU(True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(True), nn.MaxPool2d(3, 2, ceil_mode=True), fire, last)


class AttentionUNet(nn.Module):
    """A U-Net whose skip is gated by attention and whose way up is bilinear (Oktay et al. 2018); a score per pixel."""

    def __init__(self, width: int = 4, classes: int = 5) -> None:
        super().__init__()
        self.enter, self.down = block(3, width), block(width, 2 * width, 3, 2)
        self.gate, self.score = nn.Conv2d(2 * width, width, 1), nn.Conv2d(width, 1, 1)
        self.up, self.leave = block(3 * width, width), nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """f[B, 3, H, W] to f[B, classes, H, W]."""
        skip = self.enter(x)
        low = F.interpolate(self.down(skip), scale_factor=2, mode="bilinear", align_corners=False)
        attended = skip * torch.sigmoid(self.score(F.relu(skip + self.gate(low))))
        return self.leave(self.up(torch.cat([attended, low], dim=1)))
