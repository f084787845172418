"""Embedding sites: row ids[t] of a table f[V, d] receives g[t], for ids: int[B, T] and g: f[B, T, d].

Rows looked up twice by one example receive the sum of both gradients, so its norm needs sums per distinct id,
not norms per position. Positions with `padding_idx` have no gradient; -1 means that there is none. Norms and
inner products are float64[B], gradients float32 or wider.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from dpcompile.kernels.reduction import lengths, widen

ROWS: Final = 256
"""Positions of the first site per block of a matrix of products between the positions of two sites."""

MOST_ROWS: Final = 128
"""That are added up in float32 one after another: the sum is then low by at most 128 * 2^-24 = 7.6e-6."""

TRACEABLE: Final[dict[Callable[..., object], Callable[..., object]]] = {}
"""Every function of this module is its own traceable form."""


def sqnorm_rows(ids: Tensor, g: Tensor, padding_idx: int = -1) -> Tensor:
    """Squared norms f64[B]: sort ids per example, add up equal ones, sum squares. O(B T d) and a sort.

    Faster than sqnorm_rows_match from T of about 16 on (T = 512: 8 times).
    """
    g = widen(g)
    batch, positions, width = g.shape
    rows, segment, target = _segments(ids)
    kept = torch.zeros_like(rows, dtype=torch.bool).scatter(1, segment, rows.gather(1, segment) != padding_idx)
    sums = _added_rows(batch * positions, target, g)
    return _sum_of_kept(sums.view(batch, positions, width), kept)


def _segments(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct ids of every example, in front of zeros; the place there of every sorted id; and the place of every id among
    those of all examples: int[B, T] each."""
    ordered, order = ids.sort(dim=1)
    changes = (ordered[:, 1:] != ordered[:, :-1]).long()
    segment = F.pad(changes, (1, 0)).cumsum(1)
    own = torch.arange(ids.shape[0], device=ids.device).unsqueeze(1) * ids.shape[1]
    rows = torch.zeros_like(ordered).scatter(1, segment, ordered)
    return rows, segment, torch.zeros_like(segment).scatter(1, order, segment) + own


def _added_rows(count: int, target: Tensor, g: Tensor) -> Tensor:
    """Rows of g: f[B, T, d] added to rows target: int[B, T] of `count` zeros; in float64 where many might be added to one, in
    pieces so that g is not copied as a whole: 6,000 equal rows, one after another in float32, came out low by 5e-5."""
    if g.shape[1] <= MOST_ROWS:
        return g.new_zeros(count, g.shape[2]).index_add_(0, target.flatten(), g.flatten(0, 1))
    wide = g.new_zeros(count, g.shape[2], dtype=torch.promote_types(g.dtype, torch.float64))
    for places, rows in zip(target.split(MOST_ROWS, 1), g.split(MOST_ROWS, 1), strict=True):
        wide.index_add_(0, places.flatten(), rows.flatten(0, 1).to(wide.dtype))
    return wide


def sqnorm_rows_match(ids: Tensor, g: Tensor, padding_idx: int = -1) -> Tensor:
    """Squared norms f64[B] for few positions: equal ids are found by comparing all pairs. 2 B T^2 d FLOPs.

    A sum of squares like sqnorm_rows, not a Gram sum: it cannot cancel. The first position of each id holds
    its row.
    """
    g = widen(g)
    equal = ids.unsqueeze(2) == ids.unsqueeze(1)
    is_repeat = equal.tril(-1).any(2)
    return _sum_of_kept(torch.bmm(equal.to(g.dtype), g), ~is_repeat & (ids != padding_idx))


def _sum_of_kept(rows: Tensor, kept: Tensor) -> Tensor:
    squares = torch.linalg.vector_norm(rows, dim=2).double().square()
    return torch.where(kept, squares, 0.0).sum(1)


def materialize_rows(ids: Tensor, g: Tensor, V: int, padding_idx: int = -1) -> Tensor:
    """Per-example gradients f[B, V, d] of the table; where there are many positions, equal rows are added up in float64 first."""
    g = _without_padding(ids, widen(g), padding_idx)
    batch, width = g.shape[0], g.shape[2]
    if g.shape[1] > MOST_ROWS:
        ids, _, places = _segments(ids)
        g = _added_rows(batch * g.shape[1], places, g).to(g.dtype).view_as(g)
    target = ids + torch.arange(batch, device=ids.device).unsqueeze(1) * V
    table = g.new_zeros(batch * V, width).index_add_(0, target.flatten(), g.flatten(0, 1))
    return table.view(batch, V, width)


def contract_rows(ids: Tensor, g: Tensor, factor: Tensor, V: int, padding_idx: int = -1) -> Tensor:
    """Clipped sum f[V, d] of factor[B] * gradient; in float64 where an example has many positions. index_add, never a one-hot
    [B, T, V]."""
    g = widen(g)
    scaled = _without_padding(ids, g * factor.to(g.dtype)[:, None, None], padding_idx)
    return _added_rows(V, ids, scaled).to(g.dtype)


def _without_padding(ids: Tensor, g: Tensor, padding_idx: int) -> Tensor:
    return g if padding_idx < 0 else torch.where((ids == padding_idx).unsqueeze(2), 0.0, g)


def reach_rows(ids: Tensor, g: Tensor, padding_idx: int = -1) -> Tensor:
    """f64[B]: S with |error| <= gamma * S for sqnorm_rows, gamma = gram_gamma(dtype, T, T, d).

    A row's sum is off by at most T u sum |g_t|, and its square by twice that times the sum, to first order.
    """
    return sqnorm_rows(ids, lengths(g).unsqueeze(2), padding_idx)


def cross_rows(
    ids1: Tensor, g1: Tensor, ids2: Tensor, g2: Tensor, padding_idx1: int = -1, padding_idx2: int = -1
) -> tuple[Tensor, Tensor]:
    """Inner products f64[B] of two uses of one table, and f64[B] S: |error| <= gram_gamma(dtype, S, 0, d) * S.

    The sum over pairs with equal ids of <g1_t, g2_s>, S of |g1_t| |g2_s|. ids1: int[B, T], g1: f[B, T, d],
    ids2: int[B, S], g2: f[B, S, d].
    """
    g2 = widen(g2)
    columns, sizes = g2.transpose(1, 2), lengths(g2).unsqueeze(1)
    ids1, ids2 = ids1.unsqueeze(2), ids2.unsqueeze(1)
    blocks = min(4, -(-ids1.shape[1] // ROWS))
    parts: list[Tensor] = []
    reaches: list[Tensor] = []
    for ids, g in zip(ids1.tensor_split(blocks, 1), widen(g1).tensor_split(blocks, 1), strict=True):
        kept = (ids == ids2) & (ids != padding_idx1) & (ids2 != padding_idx2)
        for products, sums in ((torch.bmm(g, columns), parts), (lengths(g).unsqueeze(2) * sizes, reaches)):
            sums.append(torch.where(kept, products, 0.0).sum(2).sum(1, dtype=torch.float64))
    return torch.stack(parts).sum(0), torch.stack(reaches).sum(0)


def cross_rows_dense(ids: Tensor, b: Tensor, a: Tensor, g: Tensor, padding_idx: int = -1) -> tuple[Tensor, Tensor]:
    """Inner products f64[B] of a table's gradients as an embedding and as a tied linear head's weight, and f64[B] S.

    The embedding looked up ids: int[B, S] and received b: f[B, S, d]; the head has inputs a: f[B, T, d] and
    output gradients g: f[B, T, V]. The result is sum_{t,s} g[t, ids_s] <a_t, b_s>: exact, without any [V, d]
    tensor. Rounding: |error| <= gram_gamma(dtype, S, 0, d) * S with S = sum_{t,s} |g[t, ids_s]| |a_t| |b_s|.
    """
    a, g, b = widen(a), widen(g), widen(b)
    kept, columns = (ids != padding_idx).unsqueeze(1), ids.unsqueeze(1)
    sizes = torch.where(kept, lengths(b).unsqueeze(1), 0.0).transpose(1, 2)
    blocks = min(4, -(-a.shape[1] // ROWS))
    parts, reaches = [], []
    for rows, gradients in zip(a.tensor_split(blocks, 1), g.tensor_split(blocks, 1), strict=True):
        picked = gradients.gather(2, columns.expand(-1, rows.shape[1], -1))
        products = torch.where(kept, picked * torch.bmm(rows, b.transpose(1, 2)), 0.0)
        parts.append(products.sum(2).sum(1, dtype=torch.float64))
        reaches.append((torch.bmm(picked.abs(), sizes).squeeze(2) * lengths(rows)).sum(1, dtype=torch.float64))
    return torch.stack(parts).sum(0), torch.stack(reaches).sum(0)
