"""From squared norms of all sites to norms, clip factors and the non-finite flags.

Contract (flat clipping, Abadi et al. 2016): factor = min(1, C / n), so that every example contributes at most C.
A Gram norm may be low by rounding: its strategy declares gamma with |n^2 - true| <= gamma * S (see
`dpcompile.kernels.dense.gram_gamma`). Where gamma * S exceeds twice SLACK relative to n^2, the factor is computed
from the upper end of the interval, so a contribution never exceeds C * (1 + SLACK) beyond rounding of the sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SLACK = 1e-5


def total_squares(squares: Sequence[Tensor]) -> Tensor:
    """Sum of f64[B] squared norms."""
    return squares[0] if len(squares) == 1 else torch.stack(list(squares)).sum(0)


def no_squares(losses: Tensor) -> Tensor:
    """f64[B] zeros: the squared norms where no parameter has a gradient path."""
    return torch.zeros_like(losses, dtype=torch.float64)


def norms_of(squared: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Per-example norms f[B]; masked examples have norm 0."""
    return torch.where(mask, squared.sqrt(), 0.0).to(dtype)


def flat_factors(squared: Tensor, uncertainty: Tensor | None, max_grad_norm: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """min(1, C / n) as f[B]; 0 for masked examples and where the squared norm is not finite."""
    upper = squared
    if uncertainty is not None:
        upper = torch.maximum(squared, squared * (1 - 2 * SLACK) + uncertainty)
    factors = (max_grad_norm / upper.sqrt()).clamp(max=1.0)  # C / 0 is inf, clamped to 1
    return torch.where(mask & upper.isfinite(), factors, 0.0).to(dtype)


def nonfinite_examples(squared: Tensor) -> Tensor:
    """bool[B]: examples whose norm is not finite, masked ones too: the runtime must keep them out of the sums."""
    return ~squared.isfinite()


def masked_losses(losses: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """f[B] with masked examples at 0."""
    return torch.where(mask, losses, 0.0).to(dtype)
