"""Squared norms of outer products of which only some entries count, without forming them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dpcompile.kernels.gram import operand_rounding, rounding_gamma

MORE = 8
"""Roundings beyond those of the two sums: two squares and a product."""


def sqnorm_masked(a: Tensor, g: Tensor, entries: Tensor) -> tuple[Tensor, Tensor]:
    """(f64[B] squared norm of entries * (g^T a) for a: f[B, d], g: f[B, p] and bool entries[p, d], f64[B] S); masked_gamma * S
    bounds the error.

    |M * g a^T|^2 = sum_ij M_ij g_i^2 a_j^2 = <g^2 M, a^2>: one matrix product of squares. Every term is at least zero, so that
    nothing cancels and S is the result itself. In float64 whatever the operands are: squares of small float32 numbers would
    vanish before they meet large ones, and a norm that is too small is a hole. 2 B p d FLOPs; extra memory: squares and M.
    """
    a, g = squares(a), squares(g)
    squared = (torch.mm(g, entries.double()) * a).sum(1)
    return squared, squared


def squares(x: Tensor) -> Tensor:
    """|x|^2 of every entry, in float64."""
    wide = x.to(torch.promote_types(x.dtype, torch.float64))
    return (wide.abs() if wide.is_complex() else wide).square()


def masked_gamma(d: int, p: int, dtype: torch.dtype) -> float:
    """gamma of `sqnorm_masked`: a term goes through p + d roundings of sums and a few of its own. Where torch may round operands
    of this type in the product that the clipped sum is, both of a term's may be larger by as much there."""
    coarse = math.expm1(4 * operand_rounding()) if dtype != torch.float64 else 0.0
    return rounding_gamma(torch.float64, d + p + MORE, 0.0) + coarse
