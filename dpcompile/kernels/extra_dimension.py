"""Per-example gradients of a convolution as Rochette et al. (2019) write them: a convolution of one dimension more.

    delta_w[b, d, c, k] = sum over t of x[b, c, stride t + dilation k - padding] delta_y[b, d, t]

is a correlation of every input channel with every output channel's gradient. With the channels of an image as one more
spatial dimension, over which a kernel of size 1 slides, all of them are one convolution with a group for every example:
a Conv1d becomes a conv2d, a Conv2d a conv3d. A Conv3d would need a conv4d, which no library has; `materialize_grouped`
takes the channels as the batch instead, and covers it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from dpcompile.kernels.convolution import materialize_grouped_traceable
from dpcompile.kernels.geometry import Geometry, roles

MOST_DIMENSIONS: Final = 2
"""Spatial dimensions of the convolution itself; libraries stop at one more."""


def materialize_extra_dimension(x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    """x: f[B, C, *], g: f[B, D, *] with one or two spatial dimensions to f[B, *weight shape], float32 or wider.

    Stride and dilation exchange their roles; a stride that does not divide leaves positions over, which are cut off.
    """
    x, g = roles(x, g, geometry)
    batch, C, D, G = x.shape[0], x.shape[1], g.shape[1], geometry.groups
    images = x.reshape(1, batch * G, C // G, *x.shape[2:])
    kernels = g.reshape(batch * D, 1, 1, *g.shape[2:])
    swapped = (1, *geometry.dilation), (0, *geometry.padding), (1, *geometry.stride)
    zeros = [0] * (len(geometry.kernel) + 1)
    out = torch.ops.aten.convolution(images, kernels, None, *swapped, False, zeros, batch * G)
    for dim, size in enumerate(geometry.kernel):
        out = out.narrow(3 + dim, 0, size)
    return out.reshape(batch, D, C // G, *geometry.kernel).contiguous()


TRACEABLE: Final[dict[Callable[..., object], Callable[..., object]]] = {
    materialize_extra_dimension: materialize_grouped_traceable,
}
"""inductor would fix the batch size in the number of groups."""
