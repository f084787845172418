"""Convolution sites with inputs x: f[B, C, *] and output gradients g: f[B, D, *], 1 to 3 spatial dimensions.

Strides, dilation, groups and transposed convolutions are covered. The per-example gradient has the weight's
shape, [D, C/G, *K] or transposed [C, D/G, *K]. An *unfolded* operand is f[B, C*K, T]: for every output
position its window of the input (transposed: of g, with D*K rows), which makes the site a linear one.
Functions called `..._unfolded` take it, so that norm and clipped sum share one unfolding; their second
operand is g (transposed: x). Squared norms are float64, gradients float32 or wider.

Measured on a CPU: unfolding wins for deep layers with few positions and for norms. A grouped convolution over
examples wins for depthwise layers with large kernels (7x7: 12 times faster than torch's weight gradient of
contiguous operands, 4 times faster than that of channels_last ones) and is about equal for 3x3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from dpcompile.kernels.dense import products, workspace_examples
from dpcompile.kernels.dense import sqnorm_gram as dense_gram
from dpcompile.kernels.dense import sqnorm_gram_traceable as dense_gram_traceable
from dpcompile.kernels.geometry import Geometry, roles, windows, with_half_padding
from dpcompile.kernels.reduction import sqnorm, weighted_sum, weighted_sum_traceable, widen

__all__ = [
    "TRACEABLE", "Geometry", "contract", "contract_traceable", "contract_unfolded",
    "contract_unfolded_traceable", "group_operands", "materialize_grouped", "materialize_grouped_traceable",
    "materialize_unfold", "materialize_unfolded", "sqnorm_gram", "sqnorm_gram_traceable",
    "sqnorm_gram_unfolded", "sqnorm_gram_unfolded_traceable", "sqnorm_materialized",
    "sqnorm_materialized_traceable", "unfold", "way_to_contract",
]  # fmt: skip

FEW_POSITIONS: Final = 16
"""Up to this many positions the unfolded operand lies in memory as [B, T, C*K]: sums over (B, T) need no
copy."""
DEEP_POSITIONS: Final = 9
"""Up to this many positions unfolding and one product beat torch's weight gradient (512 channels, T = 4:
2 to 4 times)."""
MANY_POSITIONS: Final = 64
"""From this many positions on a product per example, added up, beats one product of transposed copies."""

Norm = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def unfold(operand: Tensor, geometry: Geometry) -> Tensor:
    """Unfold x (transposed convolution: g): f[B, C, *] to f[B, C*K, T], float32 or wider.

    A view for kernel 1 and stride 1. Otherwise B*C*K*T elements; with few positions the result is the
    transpose of a contiguous [B, T, C*K].
    """
    operand = widen(operand)
    if geometry.is_pointwise:
        return operand.flatten(2)
    view, dims = windows(operand, geometry), len(geometry.kernel)
    spatial, kernel = range(2, 2 + dims), range(2 + dims, 2 + 2 * dims)
    batch, rows = view.shape[0], operand.shape[1] * geometry.taps
    count = _count(view, dims)
    if count <= FEW_POSITIONS:
        return view.permute(0, *spatial, 1, *kernel).reshape(batch, count, rows).transpose(1, 2)
    return view.permute(0, 1, *kernel, *spatial).reshape(batch, rows, count)


def _count(view: Tensor, dims: int) -> int:
    count = 1
    for size in view.shape[2 : 2 + dims]:
        count *= size
    return count


def materialize_grouped(x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    """Per-example gradients by one convolution with B*G groups, stride and dilation exchanged.

    Rochette et al. 2020 without their extra dimension, so that it also covers three: channels of the operand
    become the batch, examples become groups, and the other operand is the kernel. Best for depthwise layers. The
    result is contiguous: norm and weighted sum would each copy it otherwise.
    """
    x, g = roles(widen(x), widen(g), geometry)
    batch, C, D, G = x.shape[0], x.shape[1], g.shape[1], geometry.groups
    images = x.reshape(batch * G, C // G, *x.shape[2:]).transpose(0, 1)
    kernels = g.reshape(batch * D, 1, *g.shape[2:])
    zeros = [0] * len(geometry.kernel)
    swapped = (geometry.dilation, geometry.padding, geometry.stride)
    out = torch.ops.aten.convolution(images, kernels, None, *swapped, False, zeros, batch * G)
    for dim, size in enumerate(geometry.kernel):  # a stride that does not divide leaves positions over
        out = out.narrow(2 + dim, 0, size)
    result: Tensor = out.reshape(C // G, batch, D, *geometry.kernel).movedim(0, 2).contiguous()
    return result


def materialize_grouped_traceable(x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    """materialize_grouped for inductor, which specialises a batch size in the number of groups.

    One channel per group: a product with the windows, summed over positions, which inductor fuses into one
    loop without unfolding. Otherwise materialize_unfold.
    """
    windowed, other = roles(widen(x), widen(g), geometry)
    if windowed.shape[1] != geometry.groups:
        return materialize_unfold(x, g, geometry)
    view, dims = windows(windowed, geometry), len(geometry.kernel)
    outputs = other.shape[1] // geometry.groups
    gradients = other.reshape(other.shape[0], geometry.groups, outputs, *other.shape[2:], *[1] * dims)
    products = view.unsqueeze(2) * gradients
    sums = products.sum(list(range(3, 3 + dims)))
    return sums.reshape(other.shape[0], other.shape[1], 1, *geometry.kernel)


def materialize_unfold(x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    """Per-example gradients by unfolding and one batched matrix product over B*G."""
    x, g = roles(x, g, geometry)
    return materialize_unfolded(unfold(x, geometry), g, geometry)


def materialize_unfolded(unfolded: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    """materialize_unfold from the unfolded operand."""
    rows, columns = group_operands(unfolded, g, geometry)
    return products(rows, columns).view(g.shape[0], g.shape[1], -1, *geometry.kernel)


def group_operands(unfolded: Tensor, g: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """f[B*G, D/G, T] and f[B*G, T, C/G*K], whose products are the per-example gradients."""
    return _per_group(widen(g).flatten(2), geometry), _per_group(unfolded, geometry).transpose(1, 2)


def _per_group(x: Tensor, geometry: Geometry) -> Tensor:
    """f[B, rows, T] to f[B*G, rows/G, T]."""
    G = geometry.groups
    return x if G == 1 else x.reshape(x.shape[0] * G, x.shape[1] // G, x.shape[2])


def sqnorm_materialized(x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    """Squared norms f64[B], materialised a few examples at a time into one workspace.

    Extra memory: about dense.WORKSPACE elements, or one example's gradient, and as much of the unfolded
    operand.
    """
    x, g = roles(widen(x), widen(g), geometry)
    G, taps, T = geometry.groups, geometry.taps, g.shape[2:].numel()
    p, d = g.shape[1], x.shape[1] // G * taps
    step = workspace_examples(max(p * d, x.shape[1] * taps * T))
    workspace = x.new_empty(min(step, x.shape[0]) * G, p // G, d)
    parts = []
    for start in range(0, x.shape[0], step):
        columns = _per_group(unfold(x[start : start + step], geometry), geometry)
        rows = _per_group(g[start : start + step].flatten(2), geometry)
        product = products(rows, columns.transpose(1, 2), out=workspace[: rows.shape[0]])
        parts.append(sqnorm(product.view(rows.shape[0] // G, -1)))
    return torch.cat(parts)


def sqnorm_materialized_traceable(x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    """sqnorm_materialized with all per-example gradients in memory at once."""
    return sqnorm(materialize_unfold(x, g, geometry))


def sqnorm_gram(x: Tensor, g: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """(f64[B] squared norm, f64[B] S) by Gram matrices of the unfolded operand, per group.

    The rounding bound is gram_gamma(dtype, T, C/G * K, D/G) * S (transposed: D/G * K and C/G).
    """
    x, g = roles(x, g, geometry)
    return sqnorm_gram_unfolded(unfold(x, geometry), g, geometry)


def sqnorm_gram_traceable(x: Tensor, g: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """sqnorm_gram without loops over examples."""
    x, g = roles(x, g, geometry)
    return sqnorm_gram_unfolded_traceable(unfold(x, geometry), g, geometry)


def sqnorm_gram_unfolded(unfolded: Tensor, g: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """sqnorm_gram from the unfolded operand."""
    return _gram(unfolded, g, geometry, dense_gram)


def sqnorm_gram_unfolded_traceable(unfolded: Tensor, g: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """sqnorm_gram_unfolded without loops over examples."""
    return _gram(unfolded, g, geometry, dense_gram_traceable)


def _gram(unfolded: Tensor, g: Tensor, geometry: Geometry, norm: Norm) -> tuple[Tensor, Tensor]:
    """Groups have separate weights: their squared norms and bounds are added."""
    columns, rows = _per_group(unfolded, geometry), _per_group(widen(g).flatten(2), geometry)
    squared, bound = norm(columns.transpose(1, 2), rows.transpose(1, 2))
    if geometry.groups == 1:
        return squared, bound
    G = geometry.groups
    return squared.view(-1, G).sum(1), bound.view(-1, G).sum(1)


def contract_unfolded(unfolded: Tensor, g: Tensor, factor: Tensor, geometry: Geometry) -> Tensor:
    """Clipped sum f[weight shape] from the unfolded operand."""
    if geometry.groups > 1:
        return weighted_sum(materialize_unfolded(unfolded, widen(g), geometry), factor)
    if unfolded.stride(1) != 1 and unfolded.shape[2] >= MANY_POSITIONS:
        g = widen(g)
        if g.shape[1] <= unfolded.shape[1]:
            g = g * _weights(factor, g)
        else:
            unfolded = unfolded * _weights(factor, unfolded)
        zero = g.new_zeros(())
        product = torch.addbmm(zero, g.flatten(2), unfolded.transpose(1, 2), beta=0)
        return product.view(g.shape[1], -1, *geometry.kernel)
    return contract_unfolded_traceable(unfolded, g, factor, geometry)


def contract_unfolded_traceable(unfolded: Tensor, g: Tensor, factor: Tensor, geometry: Geometry) -> Tensor:
    """contract_unfolded as one product over B*T rows; groups by a weighted sum of materialised gradients."""
    g = widen(g)
    if geometry.groups > 1:
        return weighted_sum_traceable(materialize_unfolded(unfolded, g, geometry), factor)
    if g.shape[1] <= unfolded.shape[1]:
        g = g * _weights(factor, g)
    else:
        unfolded = unfolded * _weights(factor, unfolded)
    rows = g.flatten(2).transpose(1, 2).flatten(0, 1)
    product = torch.mm(rows.t(), unfolded.transpose(1, 2).flatten(0, 1))
    return product.view(g.shape[1], -1, *geometry.kernel)


def _weights(factor: Tensor, like: Tensor) -> Tensor:
    return factor.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


def contract(x: Tensor, g: Tensor, factor: Tensor, geometry: Geometry) -> Tensor:
    """Clipped sum f[weight shape] of factor[B] * gradient, in the fastest way for the sizes.

    Depthwise: materialised by a grouped convolution, then a weighted sum. Few positions: unfolded. Else
    torch's weight gradient of the scaled operand, in channels_last for groups, where it is 2 to 4 times
    faster.
    """
    shape = (x.shape[1], g.shape[1]) if geometry.transposed else (g.shape[1], x.shape[1])
    positions = x.shape[2:].numel() if geometry.transposed else g.shape[2:].numel()
    way = way_to_contract(geometry, (shape[0], shape[1] // geometry.groups), positions)
    if way == "depthwise":
        return weighted_sum(materialize_grouped(x, g, geometry), factor)
    if way == "unfold":
        windowed, other = roles(x, g, geometry)
        return contract_unfolded(unfold(windowed, geometry), other, factor, geometry)
    x, geometry = with_half_padding(x, geometry)
    if geometry.groups > 1 and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
        g = g.contiguous(memory_format=torch.channels_last)
    return contract_traceable(x, g, factor, geometry)


def way_to_contract(geometry: Geometry, weight_shape: tuple[int, ...], positions: int) -> str:
    """depthwise, unfold or weight gradient: what `contract` does for a weight of this shape, [first, second per group, ...],
    and this many positions per image."""
    if geometry.groups > 1:
        return "depthwise" if weight_shape[0] == geometry.groups and weight_shape[1] == 1 else "weight gradient"
    return "unfold" if positions <= (FEW_POSITIONS if geometry.is_pointwise else DEEP_POSITIONS) else "weight gradient"


def contract_traceable(x: Tensor, g: Tensor, factor: Tensor, geometry: Geometry) -> Tensor:
    """Clipped sum by torch's own weight gradient of the smaller operand scaled; depthwise as in contract.

    Contiguous whatever the operands' memory format: the tail was traced for contiguous gradients, and torch's backward of weight
    norm reads any other memory wrongly.
    """
    if geometry.groups > 1 and x.shape[1] == g.shape[1] == geometry.groups:
        return weighted_sum_traceable(materialize_grouped_traceable(x, g, geometry), factor)
    x, g = widen(x), widen(g)
    if g.shape[1:].numel() <= x.shape[1:].numel():
        g = g * _weights(factor, g)
    else:
        x = x * _weights(factor, x)
    first, second = (x.shape[1], g.shape[1]) if geometry.transposed else (g.shape[1], x.shape[1])
    weight = x.new_empty(first, second // geometry.groups, *geometry.kernel)
    gradients = torch.ops.aten.convolution_backward(
        g, x, weight, None, geometry.stride, geometry.padding, geometry.dilation, geometry.transposed,
        geometry.output_padding, geometry.groups, [False, True, False],
    )  # fmt: skip
    result: Tensor = gradients[1].contiguous()
    return result


TRACEABLE: Final[dict[Callable[..., object], Callable[..., object]]] = {
    materialize_grouped: materialize_grouped_traceable,
    sqnorm_gram: sqnorm_gram_traceable,
    sqnorm_gram_unfolded: sqnorm_gram_unfolded_traceable,
    sqnorm_materialized: sqnorm_materialized_traceable,
    contract: contract_traceable,
    contract_unfolded: contract_unfolded_traceable,
}
