"""A tail may multiply a gradient by a number; its squared norm then carries the square."""

from __future__ import annotations

import torch
from torch import fx

from dpcompile.strategies.emitter import Emitter


def scaled(emitter: Emitter, squared: fx.Node, scale: float) -> fx.Node:
    """squared * scale^2, without a node when the scale is 1."""
    return squared if abs(scale) == 1.0 else emitter.call(torch.ops.aten.mul.Scalar, squared, scale * scale)
