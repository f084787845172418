"""Gram matrices tile by tile: the arithmetic that linear, convolution and tied sites share, and its rounding
bound.

||g^T a||^2 = sum_{t,s} <a_t, a_s> <g_t, g_s> (Goodfellow 2015 for T = 1; Li et al. 2021 for T > 1, "ghost
norm"). The [T, T] matrices are symmetric, so they are split into n x n blocks and only the n (n + 1) / 2 on
and below the diagonal are formed: up to half of the work, and blocks that stay in the cache (T = 1024: 36 ms
instead of 107).
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

CONFIDENCE: Final = 7.0
"""Lambda of Higham & Mary: the bound fails with probability 2 exp(-lambda^2 / 2) = 5e-11."""


def block_product(a1: Tensor, g1: Tensor, a2: Tensor, g2: Tensor) -> Tensor:
    """f64[B]: sum_{t,s} <a1_t, a2_s> <g1_t, g2_s> for a1, g1: f[B, T, *] and a2, g2: f[B, S, *]."""
    products = torch.bmm(a1, a2.transpose(1, 2)) * torch.bmm(g1, g2.transpose(1, 2))
    return products.sum(2).sum(1, dtype=torch.float64)


def diagonal_block(a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The block of one range of positions: f64[B] sum of products, f64[B] sum_t |a_t| |g_t| from its
    diagonal."""
    gram_a, gram_g = torch.bmm(a, a.transpose(1, 2)), torch.bmm(g, g.transpose(1, 2))
    squares = gram_a.diagonal(dim1=1, dim2=2).double() * gram_g.diagonal(dim1=1, dim2=2).double()
    return (gram_a * gram_g).sum(2).sum(1, dtype=torch.float64), squares.sqrt().sum(1)


def sqnorm_blocks(a: Tensor, g: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """(f64[B] squared norm, f64[B] S = (sum_t |a_t| |g_t|)^2) for a: f[B, T, d], g: f[B, T, p] in float32 or
    wider."""
    left, right = a.tensor_split(blocks, 1), g.tensor_split(blocks, 1)
    total, lengths = diagonal_block(left[0], right[0])
    for row in range(1, blocks):
        squared, length = diagonal_block(left[row], right[row])
        total, lengths = total + squared, lengths + length
        for column in range(row):
            total = total + 2 * block_product(left[row], right[row], left[column], right[column])
    return total.clamp(min=0), lengths.square()


def gram_gamma(dtype: torch.dtype, T: int, d: int, p: int) -> float:
    """gamma with |n^2 - true n^2| <= gamma * S for the functions called sqnorm_gram; operands of type
    `dtype`.

    With u the unit roundoff of the accumulation (2^-24, or 2^-53 for float64 operands; bfloat16 and float16
    operands are converted to float32 exactly), every product <a_t, a_s> <g_t, g_s> has gone through at most n
    = d + p + T + 1 roundings: d and p in the two inner products, one product, T in the float32 row sum; the
    rest is float64.

    Deterministic (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1): in any order of
    summation the error of that product is at most gamma_n |a_t| |a_s| |g_t| |g_s| with gamma_n = n u / (1 - n
    u) (Cauchy-Schwarz on each inner product), and these bounds sum to gamma_n * S.

    Probabilistic (Higham & Mary, SIAM J. Sci. Comput. 41(5), 2019): if rounding errors have mean zero given
    the earlier ones, n u becomes lambda sqrt(n) u, except with probability 2 exp(-lambda^2 / 2): the total is
    one martingale whose steps are weighted by |a_t| |a_s| |g_t| |g_s|, at worst all correlated, so S stays.

    Returned is the smaller one: a theorem below n = 49, and above it a bound under that model of rounding. S
    is itself computed, low by at most a relative gamma_n, which is added. Where torch may round operands of
    float32 products first (`torch.set_float32_matmul_precision`), four such roundings are added,
    deterministically.
    """
    unit = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    length = d + p + T + 1
    rounding = min(float(length), CONFIDENCE * math.sqrt(length)) * unit
    coarse = 4 * operand_rounding() if dtype != torch.float64 else 0.0
    return (math.expm1(rounding) + math.expm1(coarse)) * (1 + 2 * length * unit)


def operand_rounding() -> float:
    """Unit roundoff with which torch may round operands of float32 matrix products: 0, TensorFloat-32 or
    bfloat16."""
    return {"highest": 0.0, "high": 2.0**-11, "medium": 2.0**-8}[torch.get_float32_matmul_precision()]
