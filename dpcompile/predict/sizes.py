"""The value of a node at one batch size: shape, strides and bytes in numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from dpcompile.ir.graph import size_expression


@dataclass(frozen=True, slots=True)
class Shape:
    """A tensor in numbers. stored: elements of its memory, which is less than its size where it is expanded."""

    sizes: tuple[int, ...]
    itemsize: int
    dtype: torch.dtype
    stored: int

    @property
    def elements(self) -> int:
        """Product of the sizes."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> int:
        """Bytes of all elements that are stored."""
        return self.stored * self.itemsize


@lru_cache(maxsize=4096)
def compiled(expression: sympy.Expr) -> Callable[[int], int]:
    """An expression in the batch symbol as a Python function."""
    (symbol,) = expression.free_symbols or {sympy.Symbol("unused")}
    function: Callable[[int], int] = sympy.lambdify(symbol, expression, "math")
    return function


def at(expression: sympy.Expr, batch_size: int) -> int:
    """An expression in the batch symbol as a number."""
    return int(compiled(expression)(batch_size))


def number(size: int | torch.SymInt, batch_size: int) -> int:
    """A size as a number."""
    return at(size_expression(size), batch_size) if isinstance(size, torch.SymInt) else int(size)


def shape_of(fake: Tensor, batch_size: int) -> Shape:
    """A fake tensor at this batch size."""
    sizes = tuple(number(size, batch_size) for size in fake.shape)
    stored = math.prod(size for size, stride in zip(sizes, fake.stride(), strict=True) if not is_zero(stride))
    return Shape(sizes, fake.dtype.itemsize, fake.dtype, stored)


def is_zero(stride: Any) -> bool:
    """Whether a dimension is expanded; a stride that is a symbol is positive."""
    return isinstance(stride, int) and stride == 0


def results(node: fx.Node, batch_size: int) -> list[Shape]:
    """All tensors that a node returns."""
    values = node.meta.get("val")
    found = values if isinstance(values, (tuple, list)) else [values]
    return [shape_of(value, batch_size) for value in found if isinstance(value, Tensor)]


def operands(node: fx.Node, batch_size: int) -> list[Shape]:
    """All tensors that a node reads, in the order of its arguments."""
    return [shape for source in node.all_input_nodes for shape in results(source, batch_size)]
