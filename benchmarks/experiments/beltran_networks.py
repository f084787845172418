"""Networks of Rodriguez Beltran et al. 2024 (arXiv:2406.17298): vision transformers, and BiT-style ResNets with weight-
standardised convolutions (Kolesnikov et al. 2020), which two of the paper's libraries had to replace by plain ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models import Positions, TransformerBlock

CLASSES = 100
TRANSFORMERS = {"ViT-Tiny": (192, 3, 12), "ViT-Small": (384, 6, 12), "ViT-Base": (768, 12, 12), "ViT-Large": (1024, 16, 24)}
"""Width, heads, depth."""
RESNETS = {"BiT-R50x1": ((3, 4, 6, 3), 1), "BiT-R101x1": ((3, 4, 23, 3), 1), "BiT-R50x3": ((3, 4, 6, 3), 3)}
"""Blocks of each stage, and the factor on all widths."""


class VisionTransformer(nn.Module):
    """Images f32[B, 3, side, side] in patches -> f32[B, 100], from the mean over patches."""

    def __init__(self, width: int, heads: int, depth: int, side: int, patch: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.positions = Positions((side // patch) ** 2, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, causal=False) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Patches, blocks, mean, head."""
        x = self.blocks(self.positions(self.patches(images).flatten(2).transpose(1, 2)))
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose weight has mean 0 and variance 1 over each output channel (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        """The convolution with the standardised weight."""
        deviation, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) / torch.sqrt(deviation + 1e-10)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Bottleneck(nn.Module):
    """Pre-activated bottleneck of ResNetV2, f32[B, inputs, H, W] -> f32[B, outputs, H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = outputs // 4
        self.norms = nn.ModuleList([nn.GroupNorm(32, width) for width in (inputs, inner, inner)])
        self.first = StandardisedConv2d(inputs, inner, 1, bias=False)
        self.second = StandardisedConv2d(inner, inner, 3, stride, 1, bias=False)
        self.third = StandardisedConv2d(inner, outputs, 1, bias=False)
        is_same = stride == 1 and inputs == outputs
        self.shortcut = None if is_same else StandardisedConv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, activate, convolve, three times; the shortcut starts behind the first activation."""
        h = F.relu(self.norms[0](x))
        beside = x if self.shortcut is None else self.shortcut(h)
        h = self.second(F.relu(self.norms[1](self.first(h))))
        result: Tensor = beside + self.third(F.relu(self.norms[2](h)))
        return result


def bit_resnet(depths: tuple[int, ...], factor: int) -> nn.Module:
    """f32[B, 3, side, side] -> f32[B, 100]."""
    inputs = 64 * factor
    parts: list[nn.Module] = [StandardisedConv2d(3, inputs, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)]
    for stage, depth in enumerate(depths):
        outputs = 256 * 2**stage * factor
        for block in range(depth):
            parts.append(Bottleneck(inputs, outputs, 2 if stage and not block else 1))
            inputs = outputs
    return nn.Sequential(
        *parts, nn.GroupNorm(32, inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES)
    )


class HalfPrecision(nn.Module):
    """A model under bfloat16 autocast, its outputs in float32."""

    def __init__(self, model: nn.Module, device: str) -> None:
        super().__init__()
        self.model, self.device = model, device

    def forward(self, x: Tensor) -> Tensor:
        """The model's outputs."""
        with torch.autocast(self.device, dtype=torch.bfloat16):
            result: Tensor = self.model(x)
        return result if result.dtype == torch.float64 else result.float()
