"""The losses that stand for a loss outside: each example's outputs times their cotangents, added up.

A cotangent is the gradient of the outside loss with respect to an output. The gradient of

    loss_b = sum over example b's own elements of output * cotangent

with respect to a parameter is what the outside loss would send there through example b, for these cotangents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dpcompile.batch import Batch, flatten_batch
from dpcompile.ir.errors import DPCompileError, InvalidInput
from dpcompile.trees import find_tensors

MISMATCH = 0.05  # rounding stays far below it, other dropout masks far above it


def cotangent_losses(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    cotangents: tuple[Tensor, ...],
    dims: tuple[int, ...],
) -> Tensor:
    """Losses f[B]; `dims` are the example axes of the floating-point outputs and their cotangents."""
    outputs = [tensor for tensor in find_tensors(model(*args, **kwargs)) if tensor.is_floating_point()]
    losses = []
    for output, cotangent, dim in zip(outputs, cotangents, dims, strict=True):
        products = (output * cotangent).movedim(dim, 0)
        wide = torch.promote_types(products.dtype, torch.float32)
        losses.append(products.reshape(products.shape[0], -1).sum(1, dtype=wide))
    total = losses[0]
    for other in losses[1:]:
        total = total + other
    return total


def cotangent_batch(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    cotangents: Sequence[Tensor],
    dims: tuple[int, ...],
    batch_dim: Any,
) -> Batch:
    """The batch of `cotangent_losses`; `batch_dim` is that of the model's own arguments.

    Cotangents are made contiguous, so that their strides never cause a new trace.
    """
    inputs, named = batch_dim, batch_dim if isinstance(batch_dim, int) else 0
    if isinstance(batch_dim, tuple) and batch_dim and isinstance(batch_dim[-1], dict):
        inputs, named = batch_dim
    dense = tuple(cotangent.detach().contiguous() for cotangent in cotangents)
    return flatten_batch((args, kwargs, dense, dims), {}, (inputs, named, dims, 0))


def example_axes(outputs: Sequence[Tensor], size: int, output_dim: Any) -> tuple[int, ...]:
    """The example axis of every floating-point output; refuses outputs without one entry per example."""
    if not outputs:
        raise InvalidInput("the model returns no floating-point tensor, so nothing can be differentiated")
    dims = output_dim if isinstance(output_dim, (tuple, list)) else [output_dim] * len(outputs)
    if len(dims) != len(outputs):
        raise InvalidInput(f"output_dim={output_dim!r} but the model returns {len(outputs)} floating-point tensors")
    for tensor, dim in zip(outputs, dims, strict=True):
        if not -tensor.dim() <= dim < tensor.dim() or tensor.shape[dim] != size:
            raise InvalidInput(
                f"an output of shape {list(tensor.shape)} has no example axis of size {size} at dim {dim}. "
                "Return one entry per example and compute the loss outside, or say with output_dim= where "
                "the examples lie"
            )
    return tuple(dim % tensor.dim() for tensor, dim in zip(outputs, dims, strict=True))


def check_same_draws(losses: Tensor, outputs: Sequence[Tensor], cotangents: Sequence[Tensor], dims: Sequence[int]) -> None:
    """Refuse where the compiled step saw other random numbers than forward did.

    losses: f[B] of the step; they must be the inner products of forward's outputs with the cotangents.
    """
    expected = torch.zeros_like(losses, dtype=torch.float64)
    scale = expected.clone()
    for output, cotangent, dim in zip(outputs, cotangents, dims, strict=True):
        products = (output.double() * cotangent.double()).movedim(dim, 0).reshape(len(losses), -1)
        expected = expected + products.sum(1)
        scale = scale + products.abs().sum(1)
    tiny = torch.finfo(losses.dtype).tiny
    if bool(((losses.double() - expected).abs() > MISMATCH * scale + tiny).any()):
        raise DPCompileError(
            "the compiled backward drew other random numbers than forward (a fused kernel draws in its own "
            'order), so its gradient would be of other outputs. Use backend="eager", or give the loss to '
            "dpcompile and call its step"
        )
