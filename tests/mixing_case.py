"""What a row of the tables of mixing functions is: how it is called, and why it must be refused."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from zoo_case import Draw, floats, inputs, seeded, squares
from zoo_layers import Using

Call = Callable[..., Any]
OVER = r"reduction runs over the examples"
MEAN = r"mean over the batch"
SUM = r"sum over the batch"
ALONG = r"holds the examples"
PAIRS = r"every example of one operand meets every example of the other|every example meets every other"
FIXED = r"batch size became a fixed number"
OTHER = r"takes another path when the batch size"
"""Reasons that several tables expect."""


@dataclass(frozen=True)
class Mixing:
    """A model and loss to be refused.

    why: a regular expression that the culprit or the reason must match; the user's line does not count. lines: the functions
    of which one must be named by the message as `file:line`; without any, no line is asked for.
    """

    name: str
    why: str
    make: Callable[[], nn.Module]
    batch: Callable[[int, torch.dtype], tuple[Any, ...]]
    loss: Callable[..., Tensor] | nn.Module | None = squares
    lines: tuple[Call, ...] = ()
    batch_dim: Any = 0

    def __str__(self) -> str:
        return self.name

    def named_lines(self) -> set[str]:
        """The lines of the functions that mix, as messages write them."""
        return {line for call in self.lines for line in lines_of(call)}


def lines_of(call: Call) -> set[str]:
    """`file:line` for every line of a function, the functions inside it included."""
    found: set[str] = set()
    codes = [call.__code__]
    while codes:
        code = codes.pop()
        found |= {f"{code.co_filename}:{number}" for _, _, number in code.co_lines() if number is not None}
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return found


def hidden(name: str, why: str, combine: Callable[[Tensor], Tensor], *shape: int) -> Mixing:
    """A linear layer, then a function of its output f[B, *shape, 5] that mixes the examples."""
    make = seeded(lambda: Using(lambda m, x: combine(m.a(x)), a=nn.Linear(3, 5)))
    return Mixing(name, why, make, inputs(floats(*shape, 3)), lines=(combine,))


def flat(rows: dict[str, tuple[str, Callable[[Tensor], Tensor]]]) -> tuple[Mixing, ...]:
    """Functions of f[B, 5], as {name: (reason, function)}."""
    return tuple(hidden(name, why, combine) for name, (why, combine) in rows.items())


def sequences(rows: dict[str, tuple[str, Callable[[Tensor], Tensor]]]) -> tuple[Mixing, ...]:
    """Functions of f[B, 7, 5]."""
    return tuple(hidden(name, why, combine, 7) for name, (why, combine) in rows.items())


def with_targets(name: str, why: str, call: Callable[..., Tensor], *draws: Draw) -> Mixing:
    """A function of the output f[B, 5] of a linear layer and of further tensors of the batch."""
    make = seeded(lambda: Using(lambda m, x, *more: call(m.a(x), *more), a=nn.Linear(3, 5)))
    return Mixing(name, why, make, inputs(floats(3), *draws), lines=(call,))


def with_loss(name: str, why: str, loss: Callable[..., Tensor], *draws: Draw) -> Mixing:
    """A linear layer f[B, 3] -> f[B, 5] and a loss that looks at several examples."""
    return Mixing(name, why, seeded(lambda: nn.Linear(3, 5)), inputs(floats(3), *draws), loss, (loss,))


def module(name: str, why: str, make: Callable[[], nn.Module], *draws: Draw, call: Call | None = None) -> Mixing:
    """A whole module on the batch; `call` is the function whose line the message must name."""
    return Mixing(name, why, seeded(make), inputs(*draws), lines=(call,) if call is not None else ())
