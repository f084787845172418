"""Layers with several options each, with a way to draw inputs for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

MODELS: dict[str, tuple[nn.Module, Callable[[int], Tensor]]] = {
    "linear": (nn.Linear(5, 3, bias=False), lambda size: torch.randn(size, 7, 5)),
    "convolution": (nn.Conv2d(3, 5, 3, stride=2, bias=False), lambda size: torch.randn(size, 3, 7, 11)),
    "depthwise": (nn.Conv2d(3, 3, 3, groups=3, bias=False), lambda size: torch.randn(size, 3, 7, 11)),
    "embedding": (nn.Embedding(11, 3), lambda size: torch.randint(0, 11, (size, 7))),
}
