"""A custom function for tests: nothing happens to the values, and something to the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Backward(torch.autograd.Function):
    """The identity, with `change` applied to the gradient."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """The same values."""
        ctx.change = change
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The changed gradient."""
        return ctx.change(gradients[0]), None


def changed(h: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The same values, with `change` applied to the gradient."""
    return Backward.apply(h, change)  # type: ignore[no-untyped-call]
