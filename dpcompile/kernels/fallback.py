"""What has no closed form: groups of matrix products, images folded into a batch, and one call per example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dpcompile.kernels.dense import products
from dpcompile.kernels.reduction import widen


def grouped_products(a: Tensor, g: Tensor) -> Tensor:
    """a: f[B, G, T, d], g: f[B, G, T, p] to per-example gradients f[B, G, p, d]."""
    columns, rows = widen(a).flatten(0, 1), widen(g).flatten(0, 1).transpose(1, 2)
    return products(rows, columns).unflatten(0, (-1, a.shape[1]))


def sum_images(images: Tensor, outer: int, inner: int) -> Tensor:
    """f[outer*B*inner, *shape] of images to f[B, *shape], the images of each example added up."""
    return images.unflatten(0, (outer, -1, inner)).sum((0, 2))


class ExampleLoop:
    """Run one ATen operation once per example, with a batch of one, and stack what it returns.

    The universal fallback for an operation that sums over examples and has no rule of its own: right for every
    operation, at the price of one launch per example. Not traceable into one graph for all batch sizes.
    """

    def __init__(self, target: Callable[..., Any], args: Any, kwargs: Any, index: int | None, batched: int,
                 shape: tuple[int, ...]) -> None:  # fmt: skip
        self.target, self.args, self.kwargs, self.index = target, args, kwargs, index
        self.batched, self.shape = batched, shape
        self.__name__, self.__qualname__, self.__module__ = "example_loop", "example_loop", __name__

    def __call__(self, *tensors: Tensor) -> Tensor:
        """f[B, *shape]; the first `batched` tensors have the examples first."""
        size = tensors[0].shape[0]
        if not is_known(size):
            return tensors[0].new_empty((size, *self.shape))
        results = [self.one([*(t[i] for t in tensors[: self.batched]), *tensors[self.batched :]]) for i in range(size)]
        return torch.stack(results)

    def one(self, tensors: list[Tensor]) -> Tensor:
        """One example's gradient."""
        args, kwargs = fill(self.args, tensors), fill(self.kwargs, tensors)
        result = self.target(*args, **kwargs)
        return result if self.index is None else result[self.index]

    def __repr__(self) -> str:
        return f"example_loop({self.target})"

    def key(self) -> tuple[object, ...]:
        """What tells one loop from another: equal ones on equal operands run once."""
        return self.target, repr(self.args), repr(self.kwargs), self.index, self.batched, self.shape

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExampleLoop) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())


def is_known(size: int | torch.SymInt) -> bool:
    """Whether a size is a number, as it is but for a trace."""
    return isinstance(size, int)


class Place(int):
    """The place of a tensor operand in a frozen call."""

    def __repr__(self) -> str:
        return f"Place({int(self)})"


def fill(argument: Any, tensors: list[Tensor]) -> Any:
    """Put tensors into their places in nested arguments."""
    if isinstance(argument, Place):
        return tensors[argument]
    if isinstance(argument, (tuple, list)):
        return type(argument)(fill(item, tensors) for item in argument)
    if isinstance(argument, dict):
        return {key: fill(item, tensors) for key, item in argument.items()}
    return argument
