"""How far rounding can carry a per-example gradient, squared, up to a factor gamma: what |a| and |g| add up to, whatever cancels.

A sum of products a_t g_t in any order of summation is off by at most gamma * sum_t |a_t| |g_t| (Higham, Accuracy and Stability of
Numerical Algorithms, 2002, section 3.1), entry by entry, and so are the norms of whole gradients. Results are float64[B].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from dpcompile.kernels.reduction import sqnorm, widen

TRACEABLE: Final[dict[Callable[..., object], Callable[..., object]]] = {}
"""Every function of this module is its own traceable form."""


def reach_products(a: Tensor, g: Tensor) -> Tensor:
    """(sum over positions of |a_t| |g_t|)^2 for a: f[B, ..., T, d] and g: f[B, ..., T, p]; strided operands are not copied."""
    last = a.dim() - 1  # torch 2.11's stand-in for -1 keeps a dimension of one
    lengths = torch.linalg.vector_norm(widen(a), dim=last) * torch.linalg.vector_norm(widen(g), dim=last)
    return lengths.flatten(1).sum(1, dtype=torch.float64).square()


def reach_images(x: Tensor, g: Tensor, windows: int) -> Tensor:
    """The same for a convolution of x: f[B, ...], each of whose elements is in at most so many windows, by Cauchy-Schwarz."""
    return sqnorm(x) * sqnorm(g) * windows


def reach_total(x: Tensor, count: int) -> Tensor:
    """The same for sums over `count` elements of x: f[B, ...] each, by Cauchy-Schwarz."""
    return sqnorm(x) * count


def reach_layer_scale(g: Tensor, x: Tensor, rstd: Tensor) -> Tensor:
    """The same for sums over T of g (x - mean) rstd: f[B, T, n...], f[B, T, n...], f[B, T, 1...]. No mean is larger than the
    largest of its elements, hence the factor 1 + 1."""
    largest = torch.linalg.vector_norm(widen(x).flatten(2), ord=math.inf, dim=2)
    lengths = torch.linalg.vector_norm(widen(g).flatten(2), dim=2) * largest * widen(rstd).flatten(1)
    return 4 * lengths.sum(1, dtype=torch.float64).square()


def reach_channel_scale(g: Tensor, x: Tensor, rstd: Tensor) -> Tensor:
    """The same for sums over an image per channel: g, x: f[B, C, *], rstd: f[B, groups]. The mean of a group is no longer than
    its elements."""
    groups = g.shape[0], rstd.shape[1], g.shape[1:].numel() // max(rstd.shape[1], 1)
    lengths = [torch.linalg.vector_norm(widen(t).reshape(groups), dim=2) for t in (g, x)]
    return 4 * (lengths[0] * lengths[1] * widen(rstd)).double().square().sum(1)
