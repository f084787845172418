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

from dpcompile.kernels.gram import operand_rounding
from dpcompile.kernels.reduction import widen

MOST_POSITIONS: Final = 512
"""Of an example for which a product adds up one after another in float32: 65,536 equal ones came out low by 2.8e-4, while torch's
own sums go by halves."""


def layer_scale(g: Tensor, x: Tensor, mean: Tensor | None, rstd: Tensor) -> Tensor:
    """f[B, T, n], f[B, T, n], f[B, T, 1], f[B, T, 1] to the scale's per-example gradient f[B, n], float32 or wider."""
    if x.shape[1] > MOST_POSITIONS or operand_rounding() > 0:  # of products, which torch then rounds
        return layer_scale_traceable(g, x, mean, rstd)
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
    positions = x.shape[2:].numel()  # one for vectors f[B, C]
    rows_g, rows_x = g.reshape(batch, channels, positions), x.reshape(batch, channels, positions)
    repeats = channels // mean.shape[1]
    mean, rstd = (s.unsqueeze(2).expand(-1, -1, repeats).reshape(batch, channels) for s in (mean, rstd))
    return ((rows_g * rows_x).sum(2) - mean * rows_g.sum(2)) * rstd


def group_norm_backward(g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, groups: int) -> tuple[Tensor, ...]:
    """(gradient of the input like x, per-example gradients of scale and of shift, f[B, C] each) in one pass.

    Group normalisation of B examples with C channels is that of one example with B*C channels and B*groups groups, whose
    scale and shift belong to one example each; torch's own backward then sums over nothing else.
    """
    batch, channels, positions = x.shape[0], x.shape[1], x.shape[2:].numel()
    dense = x.is_contiguous() and g.is_contiguous() and batch * positions > 0
    if not dense or not x.dtype == g.dtype == weight.dtype == widen(x).dtype:
        return group_norm_backward_traceable(g, x, mean, rstd, weight, groups)
    whole = [t.reshape(1, -1, *t.shape[2:]) for t in (g, x, mean, rstd)]
    sizes = 1, batch * channels, positions, batch * groups
    dx, scale, shift = torch.ops.aten.native_group_norm_backward(*whole, weight.repeat(batch), *sizes, [True, True, True])
    return dx.view_as(x), scale.view(batch, channels), shift.view(batch, channels)


def group_norm_backward_traceable(
    g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, groups: int
) -> tuple[Tensor, ...]:
    """The three results one by one."""
    sizes = x.shape[0], x.shape[1], x.shape[2:].numel(), groups
    dx = torch.ops.aten.native_group_norm_backward(g, x, mean, rstd, weight, *sizes, [True, False, False])[0]
    shift = widen(g).reshape(g.shape[0], g.shape[1], sizes[2]).sum(2)
    return dx, channel_scale(g, x, mean, rstd), shift


TRACEABLE: Final[dict[Callable[..., object], Callable[..., object]]] = {
    layer_scale: layer_scale_traceable,
    group_norm_backward: group_norm_backward_traceable,
}
