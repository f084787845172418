"""From squared norms of all sites to norms, clip factors and the non-finite flags.

Contract: factor * n <= C for every kind of clipping (`dpcompile.clip`), so that every example contributes at most C.
A Gram norm may be low by rounding: its strategy declares gamma with |n^2 - true| <= gamma * S (see
`dpcompile.kernels.dense.gram_gamma`). Where gamma * S exceeds twice SLACK relative to n^2, the factor is computed
from the upper end u of the interval, so a contribution never exceeds C * (1 + SLACK) beyond rounding of the sum: the true
norm is at most u * (1 + SLACK), and every kind has factor(u) * u <= C.

Factors that grow without limit as norms vanish are taken from u^2 + underflow: squares that a float32 cannot hold are
missing in n^2, and C / n would multiply by as much as is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

SLACK = 1e-5
UNDERFLOW: Final = {False: 1e-24, True: 1e-280}
"""By how much a squared norm may be low because squares vanished; True where all of the step is in float64."""


def total_squares(squares: Sequence[Tensor]) -> Tensor:
    """Sum of f64[B] squared norms."""
    return squares[0] if len(squares) == 1 else torch.stack(list(squares)).sum(0)


def no_squares(losses: Tensor) -> Tensor:
    """f64[B] zeros: the squared norms where no parameter has a gradient path."""
    return torch.zeros_like(losses, dtype=torch.float64)


def reached(squared: Tensor, uncertainty: Tensor | None, reach: Tensor) -> Tensor:
    """f64[B]: what a squared norm n^2 may be low by where it is uncertain and norms of parts of the gradient may be low, too,
    together by the root r of `reach`: (m + r)^2 - n^2 with m^2 = n^2 + uncertainty, for the norm of a sum is at most the sum of
    norms."""
    if uncertainty is None:
        return reach + 2 * (squared * reach).sqrt()
    return uncertainty + reach + 2 * ((squared + uncertainty) * reach).sqrt()


def norms_of(squared: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Per-example norms f[B]; masked examples have norm 0."""
    return torch.where(mask, squared.sqrt(), 0.0).to(dtype)


def upper_end(squared: Tensor, uncertainty: Tensor | None, underflow: float = 0.0) -> Tensor:
    """The largest norm that rounding leaves possible, up to SLACK: f64[B]."""
    upper = squared
    if uncertainty is not None:
        upper = torch.maximum(squared, squared * (1 - 2 * SLACK) + uncertainty)
    return (upper + underflow).sqrt() if underflow else upper.sqrt()


def counted(factors: Tensor, upper: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The factors as f[B]; 0 for masked examples and where the norm is not finite."""
    return torch.where(mask & upper.isfinite(), factors, 0.0).to(dtype)


def flat_factors(squared: Tensor, uncertainty: Tensor | None, max_grad_norm: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """min(1, C / n) (Abadi et al. 2016)."""
    upper = upper_end(squared, uncertainty)
    return counted((max_grad_norm / upper).clamp(max=1.0), upper, mask, dtype)  # C / 0 is inf, clamped to 1


def group_factors(squared: Tensor, uncertainty: Tensor | None, max_grad_norm: Tensor, mask: Tensor, share: float,
                  dtype: torch.dtype) -> Tensor:  # fmt: skip
    """min(1, C_k / n_k) for one group of parameters, with C_k = share * C."""
    return flat_factors(squared, uncertainty, share * max_grad_norm, mask, dtype)


def automatic_factors(squared: Tensor, uncertainty: Tensor | None, max_grad_norm: Tensor, mask: Tensor, underflow: float,
                      stability: float, dtype: torch.dtype) -> Tensor:  # fmt: skip
    """C / (n + stability) (Bu et al. 2023, AUTO-S)."""
    upper = upper_end(squared, uncertainty, underflow)
    return counted(max_grad_norm / (upper + stability), upper, mask, dtype)


def normalized_factors(squared: Tensor, uncertainty: Tensor | None, max_grad_norm: Tensor, mask: Tensor, underflow: float,
                       dtype: torch.dtype) -> Tensor:  # fmt: skip
    """C / n, and 0 where n = 0 (Bu et al. 2023, AUTO-V)."""
    upper = upper_end(squared, uncertainty, underflow)
    return counted(max_grad_norm / upper, upper, mask & (squared > 0), dtype)


def psac_factors(squared: Tensor, uncertainty: Tensor | None, max_grad_norm: Tensor, mask: Tensor, underflow: float,
                 r: float, dtype: torch.dtype) -> Tensor:  # fmt: skip
    """C / (n + r / (n + r)) (Xia et al. 2023)."""
    upper = upper_end(squared, uncertainty, underflow)
    return counted(max_grad_norm / (upper + r / (upper + r)), upper, mask, dtype)


def global_factors(squared: Tensor, uncertainty: Tensor | None, max_grad_norm: Tensor, mask: Tensor, threshold: float | None,
                   dtype: torch.dtype) -> Tensor:  # fmt: skip
    """C / Z where n <= Z, else 0; without a threshold Z is C."""
    upper = upper_end(squared, uncertainty)
    limit = max_grad_norm if threshold is None else threshold
    return counted(max_grad_norm / limit, upper, mask & (upper <= limit), dtype)


FACTORS: Final = (flat_factors, group_factors, automatic_factors, normalized_factors, psac_factors, global_factors)
"""All kernels from squared norms to clip factors."""


def nonfinite_examples(squared: Tensor) -> Tensor:
    """bool[B]: examples whose norm is not finite, masked ones too: the runtime must keep them out of the sums."""
    return ~squared.isfinite()


def masked_losses(losses: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """f[B] with masked examples at 0."""
    return torch.where(mask, losses, 0.0).to(dtype)
