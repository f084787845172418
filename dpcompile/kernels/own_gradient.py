"""Per-example gradients of a convolution by the library's own weight gradient, which its training has made fast.

Two ways: one call for a convolution that has a group for every example (the backward half of "multi" in Rochette et al. 2019,
without its forward half and without copies of the weight), and one call for every example. Operands are x: f[B, C, *] and output
gradients g: f[B, D, *], as in `kernels.convolution`.

Measured on a CPU (an AMD EPYC, kernels 5x5, 64 channels): half of what a convolution of one dimension more takes, and no
more than the ordinary weight gradient of the whole batch. Like that, the library adds up positions in float32, one after another;
see `strategies.apart` for what that means for sums that are computed apart from these gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from dpcompile.kernels.geometry import Geometry, with_half_padding
from dpcompile.kernels.recurrent_ops import LIBRARY
from dpcompile.kernels.reduction import sqnorm, widen

Kernel = Callable[[Tensor, Tensor, Geometry], Tensor]


def materialize_grouped_gradient(x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    """f[B, *weight shape], contiguous, float32 or wider: one weight gradient with B*G groups."""
    x, g = widen(x), widen(g)
    batch, shape = x.shape[0], weight_shape(x, g, geometry)
    if batch == 0:
        return x.new_empty(0, *shape)  # a convolution has at least one group
    images, gradients = (operand.reshape(1, batch * operand.shape[1], *operand.shape[2:]) for operand in (x, g))
    of_all = geometry._replace(groups=batch * geometry.groups)
    found = weight_gradient(images, gradients, (batch * shape[0], *shape[1:]), of_all)
    return found.reshape(batch, *shape).contiguous()


def materialize_single(x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    """f[B, *weight shape], contiguous, float32 or wider: the weight gradient of one example after another."""
    return write_single(widen(x[:0]).new_empty(x.shape[0], *weight_shape(x, g, geometry)), x, g, geometry)


def write_single(result: Tensor, x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    """materialize_single into f[B, *weight shape]."""
    shape = tuple(result.shape[1:])
    for index in range(x.shape[0]):
        result[index] = of_example(index, x, g, shape, geometry)
    return result


def of_example(index: int, x: Tensor, g: Tensor, shape: tuple[int, ...], geometry: Geometry) -> Tensor:
    """The weight gradient of one example; no other one is widened."""
    return weight_gradient(widen(x[index : index + 1]), widen(g[index : index + 1]), shape, geometry)


def sqnorm_single(x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    """Squared norms f64[B] of these gradients, of which one at a time is in memory."""
    shape = weight_shape(x, g, geometry)
    found = x.new_empty(x.shape[0], dtype=torch.float64)
    for index in range(x.shape[0]):
        found[index] = sqnorm(of_example(index, x, g, shape, geometry)[None])[0]
    return found


def weight_shape(x: Tensor, g: Tensor, geometry: Geometry) -> tuple[int, ...]:
    """[D, C/G, *K], transposed [C, D/G, *K]."""
    first, second = (x.shape[1], g.shape[1]) if geometry.transposed else (g.shape[1], x.shape[1])
    return first, second // geometry.groups, *geometry.kernel


def weight_gradient(x: Tensor, g: Tensor, shape: tuple[int, ...], geometry: Geometry) -> Tensor:
    """torch's weight gradient f[shape]; only the shape of the weight counts, and one number is all that is allocated here."""
    x, geometry = with_half_padding(x, geometry)
    weight = x.new_empty(1).expand(shape)
    options = geometry.stride, geometry.padding, geometry.dilation, geometry.transposed, geometry.output_padding, geometry.groups
    found: Tensor = torch.ops.aten.convolution_backward(g, x, weight, None, *options, [False, True, False])[1]
    return found


def gradients_like(x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    """What a trace sees of materialised gradients."""
    return x.new_empty(x.shape[0], *weight_shape(x, g, geometry), dtype=torch.promote_types(x.dtype, torch.float32))


def norms_like(x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    """What a trace sees of squared norms."""
    return x.new_empty(x.shape[0], dtype=torch.float64)


def with_numbers(kernel: Kernel) -> Callable[..., Tensor]:
    """A kernel with the entries of the geometry as arguments: operations have no others."""

    def run(x: Tensor, g: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
            dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int) -> Tensor:  # fmt: skip
        both = tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation), transposed, tuple(output_padding), groups
        return kernel(x, g, Geometry(*both))

    return run


def operation(kernel: Kernel, like: Kernel) -> Callable[..., Tensor]:
    """The kernel as an operation of torch's, which inductor calls as it is."""
    name, run = kernel.__name__, with_numbers(kernel)
    LIBRARY.define(name + torch.library.infer_schema(run, mutates_args=()), tags=torch.Tag.pt2_compliant_tag)
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"dpcompile::{name}", with_numbers(like), lib=LIBRARY)
    found = getattr(torch.ops.dpcompile, name)

    def traceable(x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
        result: Tensor = found(x, g, *geometry)
        return result

    return traceable


TRACEABLE: Final[dict[Callable[..., object], Callable[..., object]]] = {
    materialize_grouped_gradient: operation(materialize_grouped_gradient, gradients_like),
    materialize_single: operation(materialize_single, gradients_like),
    sqnorm_single: operation(sqnorm_single, norms_like),
}
"""inductor would fix the batch size in the number of groups, or of calls, if it looked inside."""
