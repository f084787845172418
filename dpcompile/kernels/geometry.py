"""What a convolution does with positions, and the views of its input that this implies."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dpcompile.kernels.reduction import widen


class Geometry(NamedTuple):
    """Sizes of a convolution, one entry per spatial dimension (1 to 3 of them), zero padding on both sides.

    A NamedTuple, because it is an argument of nodes: torch.fx prints named tuples as constructors that run
    and dataclasses as text that does not. A transposed convolution is described by its own arguments; its
    weight is [C, D/G, *K].
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    @property
    def taps(self) -> int:
        """Number of kernel positions."""
        return math.prod(self.kernel)

    @property
    def is_pointwise(self) -> bool:
        """Whether unfolding changes nothing: kernel 1, stride 1, no padding."""
        is_dense = set(self.stride) == {1} and not any(self.padding) and not any(self.output_padding)
        return is_dense and self.taps == 1

    def spread(self, dim: int) -> int:
        """Input positions that one kernel covers."""
        return self.dilation[dim] * (self.kernel[dim] - 1) + 1

    def positions(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Kernel placements on a (windowed) operand of these spatial sizes; a transposed one is `g`."""
        return tuple(
            (size + 2 * self.padding[dim] - self.spread(dim) - self.output_padding[dim]) // self.stride[dim] + 1
            for dim, size in enumerate(sizes)
        )

    def beyond_half(self) -> tuple[int, ...]:
        """By how much the padding is wider than half a kernel, per dimension; none where it is transposed."""
        excess = (max(pad - self.spread(dim) // 2, 0) for dim, pad in enumerate(self.padding))
        return (0,) * len(self.padding) if self.transposed else tuple(excess)


def with_half_padding(x: Tensor, geometry: Geometry) -> tuple[Tensor, Geometry]:
    """The same convolution with at most half a kernel of padding, the rest of which is put around x; on a CPU.

    oneDNN's fast weight gradients take no more: of 3x3 kernels with a padding of 2 they took 1.6 to 1.8 times as long (an AMD
    EPYC, two threads; the ordinary contraction of 25 and 75 channels takes 1.2 times longer this way). oneDNN knows no float64.
    """
    over = geometry.beyond_half()
    if not any(over) or x.device.type != "cpu" or x.dtype != torch.float32 or not torch.backends.mkldnn.enabled:
        return x, geometry
    within = tuple(pad - more for pad, more in zip(geometry.padding, over, strict=True))
    return F.pad(x, [side for more in reversed(over) for side in (more, more)]), geometry._replace(padding=within)


def roles(x: Tensor, g: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """(windowed operand, other operand) in float32 or wider: a transposed convolution slides its kernel over
    g."""
    x, g = widen(x), widen(g)
    return (g, x) if geometry.transposed else (x, g)


def windows(operand: Tensor, geometry: Geometry) -> Tensor:
    """A view [B, C, *positions, *kernel] of the zero-padded operand: f[B, C, *].

    Padding and slices, not im2col, whose fake kernel specialises the batch size. Copied out, they are 2 to 4
    times faster than im2col from about 64 positions on, and up to 2 times slower below 16. `Tensor.unfold`
    follows the operand's strides, so memory formats do not matter.
    """
    dims = len(geometry.kernel)
    counts = geometry.positions(tuple(operand.shape[2:]))
    operand = operand.contiguous()
    if any(geometry.padding):
        operand = F.pad(operand, [side for pad in reversed(geometry.padding) for side in (pad, pad)])
    for dim in range(dims):
        placed = operand.unfold(2 + dim, geometry.spread(dim), geometry.stride[dim])
        operand = placed.narrow(2 + dim, 0, counts[dim])[..., :: geometry.dilation[dim]]
    return operand
