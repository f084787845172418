"""Sites for `make bench-cost`: one layer each, drawn with another sequence than calibration draws from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor, nn

LARGEST_FLOPS = 1.5e10
LARGEST_ELEMENTS = 6e7
SIZES = (16, 32, 48, 64, 96, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048, 3072, 4096)


@dataclass(frozen=True)
class Layer:
    """One layer, the batch size, and the shape of one example."""

    name: str
    make: nn.Module
    batch_size: int
    shape: tuple[int, ...]
    rows: int = 0

    def batch(self, size: int) -> Tensor:
        """Inputs for so many examples."""
        return torch.randint(0, self.rows, (size, *self.shape)) if self.rows else torch.randn(size, *self.shape)


def draws(low: list[float], high: list[float], seed: int) -> Iterator[np.ndarray]:
    """Points that are even in the logarithm."""
    for point in qmc.Halton(len(low), seed=seed).random(4096):
        yield 2 ** (np.log2(low) + point * (np.log2(high) - np.log2(low)))


def near(number: float) -> int:
    """The width of a real layer next to a number."""
    return min(SIZES, key=lambda size: abs(np.log(size / number)))


def linear(count: int) -> list[Layer]:
    """T from 1 to 2048, widths from 16 to 4096."""
    found: list[Layer] = []
    for B, T, fan_in, fan_out in draws([2, 1, 16, 16], [128, 2048, 4096, 4096], seed=7):
        batch, positions, d, p = round(B), round(T), near(fan_in), near(fan_out)
        if 2 * batch * positions * d * p > LARGEST_FLOPS or batch * p * d > LARGEST_ELEMENTS:
            continue
        found.append(Layer(f"linear {d}-{p}, T={positions}", nn.Linear(d, p, bias=False), batch, (positions, d)))
        if len(found) == count:
            break
    return found


def convolutions(count: int) -> list[Layer]:
    """Kernels from 1 to 7, strides 1 and 2, groups, depthwise among them."""
    found: list[Layer] = []
    for B, side, c, out, kind, size in draws([2, 3, 3, 16, 1, 1], [128, 64, 512, 512, 8, 8], seed=11):
        batch, kernel, stride = round(B), (1, 3, 3, 5, 7, 3, 3)[min(int(np.log2(size) / 3 * 7), 6)], 1 + (int(kind * 10) % 3 == 0)
        groups = {0: near(c), 1: 4}.get(int(np.log2(kind) / 3 * 8), 1)
        channels = near(c) if groups > 1 or c > 8 else 3
        filters = channels if groups == channels else near(out)
        stride, image = (1 if kernel == 1 else stride), round(side)
        layer = nn.Conv2d(channels, filters, kernel, stride, kernel // 2, groups=groups, bias=False)
        positions = ((image - 1) // stride + 1) ** 2
        flops = 2 * batch * positions * layer.weight.numel()
        unfolded = positions * layer.weight[0].numel() * groups
        if flops > LARGEST_FLOPS / 2 or batch * max(layer.weight.numel(), unfolded) > LARGEST_ELEMENTS:
            continue
        name = f"convolution {channels}-{filters}, {kernel}x{kernel}, stride {stride}, groups {groups}, image {image}"
        found.append(Layer(name, layer, batch, (channels, image, image)))
        if len(found) == count:
            break
    return found


def embeddings(count: int) -> list[Layer]:
    """Tables of 16 to 16384 rows."""
    found: list[Layer] = []
    for B, T, w, V in draws([2, 1, 16, 16], [128, 1024, 1024, 16384], seed=13):
        batch, positions, width, rows = round(B), round(T), near(w), round(V)
        if batch * positions * width > LARGEST_ELEMENTS / 4 or batch * rows * width > LARGEST_ELEMENTS:
            continue
        name = f"embedding {rows}x{width}, T={positions}"
        found.append(Layer(name, nn.Embedding(rows, width), batch, (positions,), rows))
        if len(found) == count:
            break
    return found


def grid() -> list[Layer]:
    """All sites of the published figures."""
    return linear(90) + convolutions(70) + embeddings(20)
