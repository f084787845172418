"""Linear sites: per-example gradient g^T a for inputs a: f[B, T, d] and output gradients g: f[B, T, p].

All functions take strided operands, such as the transpose of a [T, B, d] tensor, and do not copy them.
Results are float32, or float64 for float64 operands; squared norms are float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from dpcompile.kernels.gram import block_sums, gram, gram_gamma, sqnorm_blocks
from dpcompile.kernels.reduction import lengths, sqnorm, widen

__all__ = [
    "TRACEABLE", "contract", "cross_dense", "gram_blocks", "gram_gamma", "materialize", "products", "sqnorm_gram",
    "sqnorm_gram_traceable", "sqnorm_materialized", "sqnorm_materialized_traceable", "sqnorm_outer",
    "workspace_examples",
]  # fmt: skip

WORKSPACE: Final = 2**19
"""Elements of a reused workspace: 2 MiB of float32, about one core's second-level cache."""
FRESH: Final = 2**20
"""Elements up to which a fresh result is as fast as a reused workspace; above, page faults cost up to 3x."""
NARROW: Final = 16
"""Rows or columns of a product below which libraries may add up its terms one after another, and not in blocks."""
FEW: Final = 128
"""Positions that may be added up so: the sum is then low by at most 128 * 2^-24 = 7.6e-6."""
PIECE: Final = 2048
"""Positions of a narrow product that are in float64 at a time."""
TILE: Final = 128
"""Positions per block of a Gram matrix; smaller blocks are slower in matrix products."""


def sqnorm_outer(a: Tensor, g: Tensor) -> Tensor:
    """Squared norms f64[B] of the outer products of a: f[B, d] and g: f[B, p]."""
    return sqnorm(a) * sqnorm(g)


def gram_blocks(positions: int) -> int:
    """Into how many blocks sqnorm_gram splits the positions."""
    return min(8, -(-positions // TILE))


def sqnorm_gram(a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """(f64[B] squared norm, f64[B] S) through Gram matrices; gram_gamma * S bounds the error.

    Extra memory: three tiles of at most max(2 * WORKSPACE, one example's) elements. 2 B T^2 (d + p) FLOPs
    times (n + 1) / (2 n) for n blocks.
    """
    batch, positions = a.shape[:2]
    blocks = gram_blocks(positions)
    step = max(1, 2 * WORKSPACE // (-(-positions // blocks)) ** 2)
    if step >= batch:
        return sqnorm_blocks(widen(a), widen(g), blocks)
    chunks = [slice(start, start + step) for start in range(0, batch, step)]
    parts = [sqnorm_blocks(widen(a[chunk]), widen(g[chunk]), blocks) for chunk in chunks]
    return torch.cat([squared for squared, _ in parts]), torch.cat([bound for _, bound in parts])


def sqnorm_gram_traceable(a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """sqnorm_gram on the whole batch, in at most 4 blocks because every block adds nodes to the graph."""
    blocks = min(4, -(-a.shape[1] // (2 * TILE)))
    return sqnorm_blocks(widen(a), widen(g), blocks)


def products(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """f[N, p, T] times f[N, T, d] as f[N, p, d], in `out` if it is given.

    Narrow ones over many positions in float64, a piece at a time: libraries add up these positions one after another, so that in
    float32 the sum of 16,384 equal terms was low by 1.4e-4, and that of a large one and 511 small ones by 3e-5 (MKL). Wide ones
    are added up in blocks; 1.3e-5 was the most that they lost.
    """
    positions, wide = left.shape[2], torch.promote_types(left.dtype, torch.float64)
    if positions <= FEW or min(left.shape[1], right.shape[2]) >= NARROW or left.dtype == wide:
        return torch.bmm(left, right, out=out)
    pieces = zip(left.split(PIECE, 2), right.split(PIECE, 1), strict=True)
    total = sum((torch.bmm(rows.to(wide), columns.to(wide)) for rows, columns in pieces), torch.zeros((), dtype=wide))
    return total.to(left.dtype) if out is None else out.copy_(total)


def materialize(a: Tensor, g: Tensor) -> Tensor:
    """Per-example gradients f[B, p, d], one batched matrix product."""
    return products(widen(g).transpose(1, 2), widen(a))


def workspace_examples(size: int) -> int:
    """How many per-example gradients of `size` elements a workspace holds."""
    return max(1, WORKSPACE // size)


def sqnorm_materialized(a: Tensor, g: Tensor) -> Tensor:
    """Squared norms f64[B] of g^T a, materialised a few examples at a time into one workspace.

    Extra memory: max(WORKSPACE, p * d) elements. 2 to 5 times faster than materialize and sqnorm where the
    fresh result of B * p * d elements would be above 32 MiB.
    """
    batch, p, d = a.shape[0], g.shape[2], a.shape[2]
    if batch * p * d <= FRESH:
        return sqnorm_materialized_traceable(a, g)
    step = workspace_examples(p * d)
    workspace = widen(a[:0]).new_empty(min(step, batch), p, d)
    parts = []
    for start in range(0, batch, step):
        x, y = widen(a[start : start + step]), widen(g[start : start + step])
        parts.append(sqnorm(products(y.transpose(1, 2), x, out=workspace[: x.shape[0]])))
    return torch.cat(parts)


def sqnorm_materialized_traceable(a: Tensor, g: Tensor) -> Tensor:
    """sqnorm_materialized with all per-example gradients in memory at once."""
    return sqnorm(materialize(a, g))


def contract(a: Tensor, g: Tensor, factor: Tensor) -> Tensor:
    """Clipped sum f[p, d] of factor[B] * g^T a by book-keeping (Bu et al. 2022), one product over B * T rows.

    The narrower operand is scaled, out of place: both may be needed elsewhere, and scaling the wider one
    costs as much as the product itself when it has to be written to fresh memory. Where every example has one position,
    a: f[B, d] and g: f[B, p] will do.
    """
    a, g = widen(a), widen(g)
    if a.dim() == 2:
        scale = factor.to(a.dtype)[:, None]
        return torch.mm((g * scale).t(), a) if g.shape[1] <= a.shape[1] else torch.mm(g.t(), a * scale)
    weight = factor.to(a.dtype)[:, None, None]
    if g.shape[2] <= a.shape[2]:
        g = g * weight
        inner = batch_is_inner(a)
    else:
        a = a * weight
        inner = batch_is_inner(g)
    if inner:
        a, g = a.transpose(0, 1), g.transpose(0, 1)
    return torch.mm(g.flatten(0, 1).t(), a.flatten(0, 1))


def batch_is_inner(x: Tensor) -> bool:
    """Whether x: [B, T, w] lies in memory as [T, B, w], so that this order is flattened without a copy.

    A stride that is a symbol contains the batch size. (Comparing it with a number would restrict the size.)
    """
    return isinstance(x.stride(1), torch.SymInt) or x.stride(1) > x.stride(0) > 0


def cross_dense(a1: Tensor, g1: Tensor, a2: Tensor, g2: Tensor) -> tuple[Tensor, Tensor]:
    """Inner products f64[B] of g1^T a1 and g2^T a2, with a1, g1: f[B, T, *] and a2, g2: f[B, S, *], and f64[B] S.

    Through Gram matrices, with T split so that a block has few rows. At S = T = 1 this is <a1, a2> <g1, g2>.
    |error| <= gram_gamma(dtype, max(T, S), d, p) * S, first and second order of rounding as in `sqnorm_blocks`.
    """
    a1, g1, a2, g2 = widen(a1), widen(g1), widen(a2), widen(g2)
    blocks = min(4, -(-a1.shape[1] // (2 * TILE)))
    columns = lengths(a2), lengths(g2)
    parts, crude = [], []
    for a, g in zip(a1.tensor_split(blocks, 1), g1.tensor_split(blocks, 1), strict=True):
        rows = lengths(a), lengths(g)
        parts.append(block_sums((gram(a, a2), gram(g, g2)), rows, columns))
        crude.append((rows[0] * rows[1]).sum(1, dtype=torch.float64))
    totals, reaches = (torch.stack(list(sums)).sum(0) for sums in zip(*parts, strict=True))
    gamma = gram_gamma(a1.dtype, max(a1.shape[1], a2.shape[1]), a1.shape[2], g1.shape[2])
    second = torch.stack(crude).sum(0) * (columns[0] * columns[1]).sum(1, dtype=torch.float64)
    return totals, reaches + 2 * gamma * second


TRACEABLE: Final[dict[Callable[..., object], Callable[..., object]]] = {
    sqnorm_gram: sqnorm_gram_traceable,
    sqnorm_materialized: sqnorm_materialized_traceable,
}
