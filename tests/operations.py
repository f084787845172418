"""The operations that must compile, or be refused with a reason: one row each, every one between two parameters.

The operand is x * scale + shift, with parameters of its own, and the result is multiplied by a third one, so that
gradients flow into and out of the operation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from zoo_case import Draw
from zoo_layers import Using

__all__ = ["Row", "Using", "around", "norms", "row"]


@dataclass(frozen=True)
class Row:
    """An operation (a function, or a factory of a module) with draws of its operands.

    refused: a regular expression of the reason, empty if the operation must compile. built: `make` builds a module.
    """

    name: str
    make: Callable[..., Any]
    draws: tuple[Draw, ...]
    refused: str = ""
    built: bool = False

    def __str__(self) -> str:
        return self.name


def row(name: str, function: Callable[..., Any], *draws: Draw, refused: str = "") -> Row:
    """A row of a function of x and further operands."""
    return Row(name, function, draws, refused)


def layer(name: str, make: Callable[[], nn.Module], *draws: Draw, refused: str = "") -> Row:
    """A row of a module."""
    return Row(name, make, draws, refused, True)


class Around(nn.Module):
    """An operation between two parameters."""

    def __init__(self, inner: Any, first: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.is_scaled = first.is_floating_point() or first.is_complex()
        if self.is_scaled:
            self.scale = nn.Parameter(torch.randn(first.shape[-1:] if first.dim() > 1 else (), dtype=first.dtype) * 0.3 + 1)
            self.shift = nn.Parameter(torch.randn(first.shape[1:], dtype=first.dtype) * 0.1)
        self.gain = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

    def forward(self, x: Tensor, *rest: Tensor) -> list[Tensor]:
        """The results that are no integers."""
        found = self.inner(x * self.scale + self.shift if self.is_scaled else x, *rest)
        results = found if isinstance(found, (tuple, list)) else [found]
        return [y * self.gain for y in results if y is not None and (y.is_floating_point() or y.is_complex())]


def around(case: Row, size: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model of a row and a batch, in float64 and from fixed seeds."""
    generator = torch.Generator().manual_seed(11)
    batch = tuple(draw(size, torch.float64, generator) for draw in case.draws)
    torch.manual_seed(5)
    inner = case.make().double() if case.built else case.make
    return Around(inner, batch[0]), batch


def norms(model: nn.Module, *batch: Tensor) -> Tensor:
    """The sum of each example's squared results."""
    squares = [y.abs().square() if y.is_complex() else y.square() for y in model(*batch)]
    return torch.stack([s.reshape(s.shape[0], -1).sum(1) for s in squares]).sum(0)
