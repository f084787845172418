"""How far rounding can carry a per-example gradient, squared, up to a factor gamma: what |a| and |g| add up to, whatever cancels.

A sum of products a_t g_t in any order of summation is off by at most gamma * sum_t |a_t| |g_t| (Higham, Accuracy and Stability of
Numerical Algorithms, 2002, section 3.1), entry by entry, and so are the norms of whole gradients. Results are float64[B].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from dpcompile.kernels.reduction import sqnorm, widen

TRACEABLE: Final[dict[Callable[..., object], Callable[..., object]]] = {}
"""Every function of this module is its own traceable form."""


def reach_products(a: Tensor, g: Tensor) -> Tensor:
    """(sum over positions of |a_t| |g_t|)^2 for a: f[B, ..., T, d] and g: f[B, ..., T, p]; strided operands are not copied."""
    lengths = torch.linalg.vector_norm(widen(a), dim=-1) * torch.linalg.vector_norm(widen(g), dim=-1)
    return lengths.flatten(1).sum(1, dtype=torch.float64).square()


def reach_images(x: Tensor, g: Tensor, windows: int) -> Tensor:
    """The same for a convolution of x: f[B, ...], each of whose elements is in at most so many windows, by Cauchy-Schwarz."""
    return sqnorm(x) * sqnorm(g) * windows


def reach_total(x: Tensor, count: int) -> Tensor:
    """The same for sums over `count` elements of x: f[B, ...] each, by Cauchy-Schwarz."""
    return sqnorm(x) * count


def reach_scale(g: Tensor, x: Tensor, rstd: Tensor) -> Tensor:
    """The same for sums of g (x - mean) rstd: f[B, ...] each. A mean is no longer than the elements that it is subtracted from,
    hence the factor (1 + 1)^2."""
    largest = widen(rstd).flatten(1).amax(1).double()
    return 4 * sqnorm(g) * sqnorm(x) * largest.square()
