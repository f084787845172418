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
FEW: Final = 4096
"""Elements up to which a norm in float64 takes less time than two in float32: 6 against 15 microseconds for 3,000."""


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
    wide = [as_real(widen(gradient)) for gradient in gradients]
    lengths = [length for gradient in wide if gradient.numel() > SMALL for length in chunk_lengths(gradient)]
    small = [gradient.reshape(-1) for gradient in wide if gradient.numel() <= SMALL]
    if small:
        lengths += lengths_of_few(torch.cat(small))
    whole: Tensor = torch.linalg.vector_norm(torch.cat(lengths), dtype=torch.float64)
    return whole.square()


def as_real(gradient: Tensor) -> Tensor:
    """Real and imaginary parts side by side: norms in float64 are of real numbers."""
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient


def lengths_of_few(row: Tensor) -> list[Tensor]:
    """The norm of f[n] as one operation in float64 where the conversion costs less than starting more of them, or its chunks'."""
    if row.numel() > FEW:
        return chunk_lengths(row)
    return [torch.linalg.vector_norm(row, dim=0, keepdim=True, dtype=torch.float64)]


def chunk_lengths(x: Tensor) -> list[Tensor]:
    """Norms of the chunks of the elements of x, and of what is left over."""
    rest = x.numel() % CHUNK
    if not rest:
        return [torch.linalg.vector_norm(x.reshape(-1, CHUNK), dim=1)]
    row = x.reshape(-1)
    whole, left = row[:-rest], torch.linalg.vector_norm(row[-rest:], dim=0, keepdim=True)
    return [torch.linalg.vector_norm(whole.view(-1, CHUNK), dim=1), left] if len(whole) else [left]


TRACEABLE: Final[dict[Callable[..., object], Callable[..., object]]] = {
    only_example: only_example_traceable,
    total_square: total_square_traceable,
}
