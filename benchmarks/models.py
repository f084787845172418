"""The models that are measured: ordinary PyTorch, written so that every peer library can run them.

Concessions to the peers, which cost nothing: positions come from an nn.Embedding over contiguous indices
[B, T] (hook libraries need the batch axis there), no parameter stands outside a leaf module, nothing is in
place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp() -> nn.Module:
    """f32[B, 784] -> f32[B, 10]."""
    return nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))


def group_norm_cnn() -> nn.Module:
    """Three convolution blocks, f32[B, 3, 32, 32] -> f32[B, 10]."""
    blocks: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 128)):
        blocks += [
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.GroupNorm(8, outputs),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(128 * 4 * 4, 10))


class Attention(nn.Module):
    """Multi-head self-attention by the fused kernel, f32[B, T, width] -> f32[B, T, width]."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the positions of each example."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        result: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return result


class TransformerBlock(nn.Module):
    """Pre-norm block: attention and a network four times as wide, each added to its input."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """f32[B, T, width] -> f32[B, T, width]."""
        x = x + self.attention(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class Positions(nn.Module):
    """Add a learned vector per position, f32[B, T, width] -> f32[B, T, width]."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(length, width)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """The same table for every example."""
        indices = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], x.shape[1]).contiguous()
        result: Tensor = x + self.embedding(indices)
        return result


class VisionTransformer(nn.Module):
    """Images f32[B, 3, 32, 32] as 64 patches -> f32[B, 10]."""

    def __init__(self, width: int = 192, depth: int = 6, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.positions = Positions(64, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, causal=False) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Patches, blocks, the mean over patches, a linear head."""
        x = self.blocks(self.positions(self.patches(images).flatten(2).transpose(1, 2)))
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


class GPT(nn.Module):
    """Tokens i64[B, T] -> logits f32[B, T, vocabulary]."""

    def __init__(self, tied: bool, vocabulary: int = 8192, width: int = 256, depth: int = 4, length: int = 128) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.positions = Positions(length, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, 4, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of the next token at every position."""
        logits: Tensor = self.head(self.norm(self.blocks(self.positions(self.tokens(ids)))))
        return logits


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm, and a 1x1 convolution beside them where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(32, outputs), nn.GroupNorm(32, outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(32, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """f32[B, inputs, H, W] -> f32[B, outputs, H / stride, W / stride]."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def resnet18() -> nn.Module:
    """ResNet-18 (He et al. 2016) with GroupNorm for BatchNorm, f32[B, 3, 64, 64] -> f32[B, 10]."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.GroupNorm(32, 64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks, inputs = [], 64
    for outputs, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        blocks.append(ResidualBlock(inputs, outputs, stride))
        inputs = outputs
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class LSTMClassifier(nn.Module):
    """Sequences f32[B, T, 64] -> f32[B, 10], from the output at the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(64, 128, batch_first=True)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """One layer over all steps, then a linear head."""
        logits: Tensor = self.head(self.lstm(x)[0][:, -1])
        return logits
