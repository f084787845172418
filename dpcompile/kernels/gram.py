"""Gram matrices tile by tile, for linear, convolution and tied sites, and their rounding bound.

||g^T a||^2 = sum_{t,s} <a_t, a_s> <g_t, g_s> (Goodfellow 2015 for T = 1; Li et al. 2021 for T > 1, "ghost
norm"). The [T, T] matrices are symmetric, so they are split into n x n blocks and only the n (n + 1) / 2 on
and below the diagonal are formed: up to half of the work, and blocks that stay in the cache (T = 1024: 36 ms
instead of 107).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

CONFIDENCE: Final = 7.0
"""Lambda of Higham & Mary: the bound fails with probability 2 exp(-lambda^2 / 2) = 5e-11."""


def block_sums(
    grams: tuple[Tensor, Tensor], rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """One block: f64[B] sum of products, and f64[B] X + Y, how far its rounding can carry (see `gram_gamma`).

    rows: |a1_t|, |g1_t|, columns: |a2_s|, |g2_s|, each f[B, T]. X = sum |a1_t| |a2_s| |<g1_t, g2_s>|, Y with a and g
    exchanged.
    """
    gram_a, gram_g = grams
    squared = (gram_a * gram_g).sum(2).sum(1, dtype=torch.float64)
    x = torch.bmm(gram_g.abs(), columns[0].unsqueeze(2)).squeeze(2) * rows[0]
    y = torch.bmm(gram_a.abs(), columns[1].unsqueeze(2)).squeeze(2) * rows[1]
    return squared, (x + y).sum(1, dtype=torch.float64)


def sqnorm_blocks(a: Tensor, g: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """(f64[B] squared norm, f64[B] S with |error| <= gamma * S) for a: f[B, T, d] and g: f[B, T, p].

    The operands are float32 or float64. S = X + Y + 2 gamma (sum_t |a_t| |g_t|)^2: first and second order of rounding.
    The lengths of the rows are the diagonals of the Gram matrices.
    """
    left, right = a.tensor_split(blocks, 1), g.tensor_split(blocks, 1)
    lengths: list[tuple[Tensor, Tensor]] = []
    sums: list[tuple[Tensor, Tensor]] = []
    for row in range(blocks):
        grams = gram(left[row], left[row]), gram(right[row], right[row])
        lengths.append((diagonal_roots(grams[0]), diagonal_roots(grams[1])))
        sums.append(block_sums(grams, lengths[row], lengths[row]))
        for column in range(row):
            grams = gram(left[row], left[column]), gram(right[row], right[column])
            squared, reach = block_sums(grams, lengths[row], lengths[column])
            sums.append((2 * squared, 2 * reach))
    crude = sum_of([(m * n).sum(1, dtype=torch.float64) for m, n in lengths]).square()
    gamma = gram_gamma(a.dtype, a.shape[1], a.shape[2], g.shape[2])
    total, reach = (sum_of(parts) for parts in zip(*sums, strict=True))
    return total.clamp(min=0), reach + 2 * gamma * crude


def gram(rows: Tensor, columns: Tensor) -> Tensor:
    """<x_t, y_s> as f[B, T, S] for f[B, T, w] and f[B, S, w]."""
    return torch.bmm(rows, columns.transpose(1, 2))


def diagonal_roots(matrix: Tensor) -> Tensor:
    """|x_t| as f[B, T] from the Gram matrices of x."""
    return matrix.diagonal(dim1=1, dim2=2).sqrt()


def sum_of(parts: Sequence[Tensor]) -> Tensor:
    """The sum of one or more tensors."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def gram_gamma(dtype: torch.dtype, T: int, d: int, p: int) -> float:
    """gamma with |n^2 - true n^2| <= gamma * S for the functions called sqnorm_gram, S being their second result.

    Let u be the unit roundoff of the accumulation: 2^-53 for float64 operands, else 2^-24 (bfloat16 and
    float16 operands are converted exactly). Every product <a_t, a_s> <g_t, g_s> goes through at most n = d +
    p + T + 1 roundings: d and p in the inner products, one product, T in the float32 row sum. What follows is
    float64.

    Deterministic (Higham, Accuracy and Stability of Numerical Algorithms, 2002, sections 3.1 and 4.2): in any
    order of summation the error of that product is at most ((1 + u)^n - 1) |a_t| |a_s| |g_t| |g_s|, by
    Cauchy-Schwarz on each inner product, and to first order at most u (d |a_t| |a_s| |<g_t, g_s>| + p |<a_t, a_s>|
    |g_t| |g_s| + (T + 1) |<a_t, a_s> <g_t, g_s>|). Added up over t and s that is n u (X + Y), where X = sum |a_t| |a_s|
    |<g_t, g_s>| and Y likewise; what is of second order, and the rounding of X and Y themselves, is covered by 2 gamma
    (sum_t |a_t| |g_t|)^2. X + Y is far below that square where the g_t point in different directions, as they do
    behind a softmax.

    Probabilistic (Higham & Mary, SIAM J. Sci. Comput. 41(5), 2019): if every rounding error has mean zero
    given the earlier ones, lambda sqrt(n) u takes the place of n u except with probability 2 exp(-lambda^2 /
    2). The whole sum is one martingale whose steps have the weights above; S stays, because equal rows have
    equal errors.

    Returned is the smaller one: a theorem for n <= 49; above, a bound under that model of rounding, and not a
    proof. Equal entries reached 0.44 of the bound, random ones 0.01. What violates the model most is a
    large entry in front of many small ones, in operands of fewer than 16 positions, whose inner products libraries add up one
    after another: at a width of 65,536 such a norm was 1.4e-4 too small. S itself is
    computed, from lengths that are low by at most a relative d u / 2 and p u / 2 each, and low by at most a relative
    2 n u, which is added. Where torch may round the operands of float32
    products (`torch.set_float32_matmul_precision`), four such roundings are added, deterministically.
    """
    return rounding_gamma(dtype, d + p + T + 1, 4 * operand_rounding())


def rounding_gamma(dtype: torch.dtype, length: int, coarse: float) -> float:
    """The smaller one of both bounds for sums whose terms go through this many roundings, and `coarse` more where operands
    of float32 products are rounded."""
    unit = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    rounding = min(float(length), CONFIDENCE * math.sqrt(length)) * unit
    narrowed = coarse if dtype != torch.float64 else 0.0
    return (math.expm1(rounding) + math.expm1(narrowed)) * (1 + 4 * length * unit)


def operand_rounding() -> float:
    """Unit roundoff with which torch may round operands of float32 products: 0, TensorFloat-32, bfloat16."""
    return max(ROUNDING.get(name, 0.0) for name in product_precisions())


def product_precisions() -> tuple[str, ...]:
    """torch's settings for float32 products; the older call refuses to answer once a newer setting was made."""
    try:
        return (torch.get_float32_matmul_precision(),)
    except RuntimeError:
        places = ("fp32_precision", "cuda.matmul.fp32_precision", "mkldnn.matmul.fp32_precision")
        return tuple(str(operator.attrgetter(place)(torch.backends)) for place in places)


def convolution_rounding(device: torch.device) -> float:
    """The same for convolutions, which have settings of their own: cuDNN uses TensorFloat-32 unless it is told not to."""
    places = ("fp32_precision", *(CUDA_CONVOLUTIONS if device.type == "cuda" else CPU_CONVOLUTIONS))
    return max(operand_rounding(), *(ROUNDING.get(setting(place), 0.0) for place in places))


def setting(place: str) -> str:
    """One of torch's settings for the precision of float32; versions without it have the older switch for cuDNN."""
    try:
        return str(operator.attrgetter(place)(torch.backends))
    except AttributeError:
        return "tf32" if place.startswith("cudnn") and torch.backends.cudnn.allow_tf32 else ""


CUDA_CONVOLUTIONS: Final = ("cudnn.fp32_precision", "cudnn.conv.fp32_precision")
CPU_CONVOLUTIONS: Final = ("mkldnn.fp32_precision", "mkldnn.conv.fp32_precision")
ROUNDING: Final = {"high": 2.0**-10, "tf32": 2.0**-10, "medium": 2.0**-8, "bf16": 2.0**-8}
"""What the names of those settings allow; every other name means float32. Some kernels hand TensorFloat-32's ten bits over by
dropping the rest, which is off by up to a whole unit in the last place; to bfloat16 they round."""
