"""Squared norms of outer products of which only some entries count, without forming them."""

from __future__ import annotations

import torch
from torch import Tensor

from dpcompile.kernels.gram import operand_rounding, rounding_gamma
from dpcompile.kernels.reduction import widen

MORE = 8
"""Roundings beyond those of the two sums: two squares, a product, the conversion of the result."""


def sqnorm_masked(a: Tensor, g: Tensor, entries: Tensor) -> tuple[Tensor, Tensor]:
    """(f64[B] squared norm of entries * (g^T a) for a: f[B, d], g: f[B, p] and bool entries[p, d], f64[B] S); masked_gamma * S
    bounds the error.

    |M * g a^T|^2 = sum_ij M_ij g_i^2 a_j^2 = <g^2 M, a^2>: one matrix product of squares. Every term is at least zero, so that
    nothing cancels and S is the result itself. 2 B p d FLOPs; extra memory: the squares, and M in their type.
    """
    a, g = widen(a).square(), widen(g).square()
    reached = torch.mm(g, entries.to(g.dtype))
    squared = (reached * a).sum(1, dtype=torch.float64)
    return squared, squared


def masked_gamma(dtype: torch.dtype, d: int, p: int) -> float:
    """gamma of `sqnorm_masked`: a term goes through p + d roundings of sums and a few of its own; TensorFloat32 rounds the two
    factors of the product once more."""
    return rounding_gamma(dtype, d + p + MORE, 4 * operand_rounding())
