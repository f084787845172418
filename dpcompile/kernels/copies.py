"""A copy of the parameters for every example, and one batched pass through all copies ("multi" in Rochette et al. 2019).

torch.vmap runs the step of one example with the parameters expanded to [B, *shape]: a linear layer becomes a batched matrix
product, a convolution one with a group for every copy. What comes back has not been summed over examples. It stands in a
graph as one call, because torch.vmap would fix the batch size in the number of groups if it were traced.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dpcompile import torch_private
from dpcompile.ir.graph import Input, JointGraph, value


class Copies:
    """Losses f[B] and one gradient f[B, *shape] for every output of the step of one example.

    step: the graph for a batch of one; its outputs are the losses f[1], then gradients f[*shape]. Called with the step's
    inputs, in their order.
    """

    def __init__(self, step: JointGraph) -> None:
        self.step = step
        self.__name__, self.__qualname__, self.__module__ = "copies", "copies", __name__

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """All examples at once."""
        size = batch_size(self.step.inputs, tensors)
        if not isinstance(size, int):
            return self.shapes(tensors[0], size)
        expanded = [
            tensor.expand(size, *tensor.shape) if item.kind == "parameter" else tensor
            for item, tensor in zip(self.step.inputs, tensors, strict=True)
        ]
        with torch_private.vmap_fallback(True):
            results = torch.vmap(self.one, in_dims=tuple(map(vmapped, self.step.inputs)))(*expanded)
        return tuple(result.contiguous() for result in results)

    def one(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The step of one example, whose tensors have no axis of examples."""
        losses, *gradients = self.step.module.forward(*as_batch_of_one(self.step.inputs, tensors))
        return losses.squeeze(0), *gradients

    def shapes(self, like: Tensor, size: torch.SymInt) -> tuple[Tensor, ...]:
        """Empty results for a batch size that is not known yet."""
        outputs: Any = self.step.graph.output_node().args[0]  # parameters that are used alike share one
        losses, *gradients = map(value, outputs)
        return like.new_empty(size, dtype=losses.dtype), *(like.new_empty((size, *g.shape), dtype=g.dtype) for g in gradients)

    def __repr__(self) -> str:
        return "copies"


def vmapped(item: Input) -> int | None:
    """The dimension along which an input differs between copies."""
    return 0 if item.kind == "parameter" else item.dim if item.kind == "batch" else None


def batch_size(inputs: list[Input], tensors: tuple[Tensor, ...]) -> int | torch.SymInt:
    """The number of examples."""
    return next(t.shape[i.dim] for i, t in zip(inputs, tensors, strict=True) if i.kind == "batch" and i.dim is not None)


def as_batch_of_one(inputs: list[Input], tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """One example's tensors with an axis of one example."""
    return [
        tensor.unsqueeze(item.dim) if item.kind == "batch" and item.dim is not None else tensor
        for item, tensor in zip(inputs, tensors, strict=True)
    ]


def size_along(x: Tensor, dim: int) -> int:
    """A size of a tensor as a Python number; torch.vmap has no rule for the operation of that name."""
    return x.shape[dim]
