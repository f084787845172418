"""Per-example gradients of the scale of normalisation layers, from what the forward pass saved.

The normalised input is (x - mean) * rstd, so the sums below need x and g once and no normalised copy in memory where
the statistics are constant over what is summed (group normalisation): sum g*(x-mean)*rstd = rstd*(sum g*x - mean*sum g).
Rounding of that difference does no harm to the clip bound: norm and sum are taken from the same materialised gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from dpcompile.kernels.reduction import widen


def layer_scale(g: Tensor, x: Tensor, mean: Tensor | None, rstd: Tensor) -> Tensor:
    """f[B, T, n], f[B, T, n], f[B, T, 1], f[B, T, 1] to the scale's per-example gradient f[B, n], float32 or wider."""
    g, x, rstd = widen(g), widen(x), widen(rstd)
    shape, batch, positions = x.shape[2:], x.shape[0], x.shape[1]
    weights = rstd.reshape(batch, positions, -1).transpose(1, 2)
    rows = (g * x).flatten(2)
    scaled = torch.bmm(weights, rows)
    if mean is not None:
        centres = weights * widen(mean).reshape(batch, positions, -1).transpose(1, 2)
        scaled = scaled - torch.bmm(centres, g.flatten(2))
    return scaled.reshape(batch, *shape)


def layer_scale_traceable(g: Tensor, x: Tensor, mean: Tensor | None, rstd: Tensor) -> Tensor:
    """The same as one reduction, which inductor fuses."""
    g, x, rstd = widen(g), widen(x), widen(rstd)
    centred = x if mean is None else x - widen(mean)
    return (centred * rstd * g).sum(1)


def channel_scale(g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """g, x: f[B, C, *], mean, rstd: f[B, groups] to the scale's per-example gradient f[B, C], float32 or wider."""
    g, x, mean, rstd = widen(g), widen(x), widen(mean), widen(rstd)
    batch, channels = x.shape[:2]
    rows_g, rows_x = g.reshape(batch, channels, -1), x.reshape(batch, channels, -1)
    repeats = channels // mean.shape[1]
    mean, rstd = (s.unsqueeze(2).expand(-1, -1, repeats).reshape(batch, channels) for s in (mean, rstd))
    return ((rows_g * rows_x).sum(2) - mean * rows_g.sum(2)) * rstd


TRACEABLE: Final[dict[Callable[..., object], Callable[..., object]]] = {layer_scale: layer_scale_traceable}
