"""What calibration measures: a kernel, its price, and how to draw sizes and make operands for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpcompile.cost.prices import complete
from dpcompile.ir.cost import Work

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Subject:
    """One form of work.

    ranges: {name: (smallest, largest)}, drawn evenly in the logarithm. complete(drawn) -> the symbols of the price; sizes that
    cannot be are None. operands(sizes, device) -> what `run` is called with. price: in place of the formula of `work`.
    share: of the time for calibration, relative to other subjects.
    """

    work: Work
    ranges: Mapping[str, tuple[int, int]]
    operands: Callable[[Sizes, torch.device], tuple[Any, ...]]
    run: Callable[..., Any]
    complete: Callable[[dict[str, int]], dict[str, int] | None] = lambda drawn: drawn
    price: Callable[[Sizes], Work] | None = None
    share: float = 1.0

    def sizes(self, drawn: Mapping[str, int]) -> dict[str, int] | None:
        """All symbols of the price for drawn sizes."""
        names = ("T", "T_in", "d", "p", "G", "K", "V", "w", "n", "S", "P")
        return self.complete({**dict.fromkeys(names, 1), "s": 4, **drawn})

    def priced(self, sizes: Sizes) -> Work:
        """The work in numbers."""
        return self.price(sizes) if self.price is not None else self.work.at(complete({n: float(v) for n, v in sizes.items()}))


def full(device: torch.device, *shape: int) -> Tensor:
    """A float32 operand; its values do not matter for its speed, and must not be denormal."""
    return torch.full(shape, 0.5, device=device)


def indices(device: torch.device, high: int, *shape: int) -> Tensor:
    """Row numbers below `high`."""
    return torch.randint(0, high, shape, device=device)
