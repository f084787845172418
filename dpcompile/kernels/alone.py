"""One example at a time: the ordinary gradient of a batch of one is that example's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import Tensor

from dpcompile.ir.errors import InvalidInput
from dpcompile.kernels.reduction import widen


def only_example(gradient: Tensor, losses: Tensor) -> Tensor:
    """The summed gradient f[*shape] of a batch of one example as f[B, *shape] with B = 1, float32 or wider; losses: f[B].

    Raises InvalidInput for any other B, where the gradient is a sum over examples.
    """
    size = losses.shape[0]
    if size != 1:
        raise InvalidInput(f"a step for one example at a time got {size} examples")
    return widen(gradient).unsqueeze(0)


def only_example_traceable(gradient: Tensor, losses: Tensor) -> Tensor:
    """The same where B is not known yet."""
    return widen(gradient).unsqueeze(0).expand(losses.shape[0], *gradient.shape)


TRACEABLE: Final[dict[Callable[..., object], Callable[..., object]]] = {only_example: only_example_traceable}
