"""One example at a time: the ordinary gradient of a batch of one is that example's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from dpcompile.ir.errors import InvalidInput
from dpcompile.kernels.reduction import CHUNK, widen

SMALL: Final = 16384
"""Elements of a gradient from which copying it costs more than starting two operations."""


def only_example(gradient: Tensor, losses: Tensor) -> Tensor:
    """The summed gradient f[*shape] of a batch of one example as f[B, *shape] with B = 1, float32 or wider; losses: f[B].

    Raises InvalidInput for any other B, where the gradient is a sum over examples.
    """
    check_alone(losses)
    return widen(gradient).unsqueeze(0)


def check_alone(losses: Tensor) -> None:
    """Refuse a batch of none or several examples."""
    if losses.shape[0] != 1:
        raise InvalidInput(f"a step for one example at a time got {losses.shape[0]} examples")


def only_example_traceable(gradient: Tensor, losses: Tensor) -> Tensor:
    """The same where B is not known yet."""
    return widen(gradient).unsqueeze(0).expand(losses.shape[0], *gradient.shape)


def total_square(gradients: Sequence[Tensor], losses: Tensor) -> Tensor:
    """Squared norm f64[B], B = 1, of all summed gradients f[*shape] of a batch of one example together; losses: f[B].

    Raises InvalidInput for any other B. Rounding is that of `reduction.sqnorm`.
    """
    check_alone(losses)
    return square_of_all(gradients).reshape(1)


def total_square_traceable(gradients: Sequence[Tensor], losses: Tensor) -> Tensor:
    """The same where B is not known yet."""
    return square_of_all(gradients).expand(losses.shape[0])


def square_of_all(gradients: Sequence[Tensor]) -> Tensor:
    """f64[]: the sum of squares of all elements; in float32 over at most CHUNK of them, then in float64."""
    rows = [widen(gradient).reshape(-1) for gradient in gradients]
    small, large = ([row for row in rows if (row.numel() <= SMALL) is few] for few in (True, False))
    lengths = [length for row in (*large, *([torch.cat(small)] if small else [])) for length in chunk_lengths(row)]
    whole: Tensor = torch.linalg.vector_norm(torch.cat(lengths), dtype=torch.float64)
    return whole.square()


def chunk_lengths(row: Tensor) -> list[Tensor]:
    """Norms of the chunks of f[n], and of what is left over."""
    whole = row.numel() // CHUNK * CHUNK
    pieces = [torch.linalg.vector_norm(row[:whole].view(-1, CHUNK), dim=1)] if whole else []
    return pieces if whole == row.numel() and whole else [*pieces, torch.linalg.vector_norm(row[whole:], dim=0, keepdim=True)]


TRACEABLE: Final[dict[Callable[..., object], Callable[..., object]]] = {
    only_example: only_example_traceable,
    total_square: total_square_traceable,
}
