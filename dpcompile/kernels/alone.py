"""One example at a time: the ordinary gradient of a batch of one is that example's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from dpcompile.ir.errors import InvalidInput


def only_example(gradient: Tensor, losses: Tensor) -> Tensor:
    """The summed gradient f[*shape] of a batch of one example as f[B, *shape] with B = 1; losses: f[B].

    Raises InvalidInput for any other B, where the gradient is a sum over examples.
    """
    if isinstance(losses.shape[0], int) and losses.shape[0] != 1:
        raise InvalidInput(f"a step for one example at a time got {losses.shape[0]} examples")
    return only_example_traceable(gradient, losses)


def only_example_traceable(gradient: Tensor, losses: Tensor) -> Tensor:
    """The same where B is not known yet."""
    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    return wide.unsqueeze(0).expand(losses.shape[0], *gradient.shape)


TRACEABLE: Final[dict[Callable[..., object], Callable[..., object]]] = {only_example: only_example_traceable}
