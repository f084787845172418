"""Materialise, or compute the logits of many classes, into memory that is kept between steps.

Large results come from the operating system page by page, and go back to it when a step ends: on two cores half of the
time of materialising 200 MB of per-example gradients. A workspace belongs to one node of one graph, grows to the largest
batch it has seen, and has one piece of memory per thread, so that a step may run in several threads at once.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from dpcompile.kernels import convolution, dense, own_gradient
from dpcompile.kernels.geometry import Geometry, roles
from dpcompile.kernels.reduction import widen

UNFOLDED: Final = 2**20
"""Elements of an unfolded operand in memory at a time: 4 MiB of float32."""


class Workspace:
    """One kernel with the memory of its result; reads like the kernel in a printed graph."""

    def __init__(self, kernel: Callable[..., Tensor]) -> None:
        self.kernel = kernel
        self.__name__ = self.__qualname__ = kernel.__name__.removesuffix(".default")
        self.memory = threading.local()

    def __call__(self, *operands: object) -> Tensor:
        """The kernel's result, valid until the next call in this thread."""
        return INTO[self.kernel](self, *operands)

    def __reduce__(self) -> tuple[type[Workspace], tuple[Callable[..., Tensor]]]:
        """A copy starts without memory."""
        return Workspace, (self.kernel,)

    def empty(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """The kept memory in this shape, with the dtype and device of `like`; grown if it is too small."""
        size = math.prod(shape)
        held: Tensor | None = getattr(self.memory, "held", None)
        if held is None or held.numel() < size or held.dtype != like.dtype or held.device != like.device:
            with torch.inference_mode(False):  # memory made inside inference mode could not be written outside of it
                held = self.memory.held = torch.empty(size, dtype=like.dtype, device=like.device)
        return held[:size].view(shape)


def materialize(workspace: Workspace, a: Tensor, g: Tensor) -> Tensor:
    """dense.materialize."""
    a, g = widen(a), widen(g)
    return dense.products(g.transpose(1, 2), a, out=workspace.empty((g.shape[0], g.shape[2], a.shape[2]), a))


def materialize_unfold(workspace: Workspace, x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    """convolution.materialize_unfold, a few examples at a time, so that the unfolded operand stays in the cache."""
    x, g = roles(widen(x), widen(g), geometry)
    rows, taps, T, G = g.shape[1], geometry.taps, g.shape[2:].numel(), geometry.groups
    gradients = workspace.empty((g.shape[0], G, rows // G, x.shape[1] // G * taps), x)
    step = max(1, UNFOLDED // max(1, x.shape[1] * taps * T))
    for start in range(0, g.shape[0], step):
        unfolded = convolution.unfold(x[start : start + step], geometry)
        pair = convolution.group_operands(unfolded, g[start : start + step], geometry)
        dense.products(*pair, out=gradients[start : start + step].flatten(0, 1))
    return gradients.view(g.shape[0], rows, -1, *geometry.kernel)


def materialize_single(workspace: Workspace, x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    """own_gradient.materialize_single."""
    result = workspace.empty((x.shape[0], *own_gradient.weight_shape(x, g, geometry)), widen(x[:0]))
    return own_gradient.write_single(result, x, g, geometry)


def mm(workspace: Workspace, left: Tensor, right: Tensor) -> Tensor:
    """aten.mm."""
    return torch.mm(left, right, out=workspace.empty((left.shape[0], right.shape[1]), left))


def addmm(workspace: Workspace, bias: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """aten.addmm with its factors at one."""
    return torch.addmm(bias, left, right, out=workspace.empty((left.shape[0], right.shape[1]), left))


INTO: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    torch.ops.aten.mm.default: mm,
    torch.ops.aten.addmm.default: addmm,
    dense.materialize: materialize,
    convolution.materialize_unfold: materialize_unfold,
    own_gradient.materialize_single: materialize_single,
}
"""The kernels that can write into a workspace."""

MATERIALIZED: Final = (dense.materialize, convolution.materialize_unfold, own_gradient.materialize_single)
"""Those of per-example gradients."""
