"""Bring per-example operands into one layout: examples first, positions second."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def positions(x: Tensor, dim: int, outer: int, inner: int) -> Tensor:
    """f[.., outer*B*inner, ..] of rank 2 to f[B, T, w] with T = outer * inner; a view unless both are folded."""
    rows = x if dim == 0 else x.transpose(0, 1)
    split = rows.unflatten(0, (outer, -1, inner))
    if outer == 1:
        return split.squeeze(0)
    if inner == 1:
        return split.squeeze(2).transpose(0, 1)
    return split.transpose(0, 1).flatten(1, 2)


def group_positions(x: Tensor, dim: int, outer: int, inner: int) -> Tensor:
    """f[G, .., outer*B*inner, ..] of rank 3 to f[B, G, T, w]."""
    rows = x if dim == 1 else x.transpose(1, 2)
    return rows.unflatten(1, (outer, -1, inner)).movedim(2, 0).flatten(2, 3)


def examples_first(x: Tensor, dim: int, outer: int, inner: int) -> Tensor:
    """f[*before, outer*B*inner, *after] to f[B, *before, outer*inner, *after]."""
    first = x.unflatten(dim, (outer, -1, inner)).movedim(dim + 1, 0)
    return first.flatten(dim + 1, dim + 2)


def sequence(x: Tensor, dim: int, outer: int, inner: int, trailing: int) -> Tensor:
    """Examples first and everything else but the last `trailing` dimensions as positions: f[B, T, *last]."""
    first = examples_first(x, dim, outer, inner)
    return first.flatten(1, first.dim() - trailing - 1)


def index_sequence(ids: Tensor, dim: int, outer: int, inner: int) -> Tensor:
    """Indices of any rank to int[B, T]."""
    return examples_first(ids, dim, outer, inner).flatten(1)


def row_sequence(g: Tensor, dim: int, outer: int, inner: int, index_rank: int) -> Tensor:
    """Gradients of looked-up rows, f[*index shape, *row shape], to f[B, T, width]."""
    rows = examples_first(g, dim, outer, inner).flatten(1, index_rank)
    return rows.flatten(2) if rows.dim() > 2 else rows.unsqueeze(2)


def shaped(gradients: Tensor, shape: tuple[int, ...]) -> Tensor:
    """f[B, ...] to f[B, *shape]."""
    return gradients.view(gradients.shape[0], *shape)


def total_per_example(x: Tensor, dim: int, outer: int, inner: int, dims: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """A sum over `dims` (the examples' among them) without the examples: f[B, *shape], half types summed to float32.

    Dimensions before the examples' move one to the right; what is folded into the examples' dimension is summed.
    """
    if outer * inner == 1 and len(dims) == 1:
        return x.movedim(dim, 0).reshape(-1, *shape)
    first = examples_first(x, dim, outer, inner)
    reduced = [d + 1 for d in dims]
    sizes = math.prod(first.shape[d] for d in reduced)
    summed = first.sum(reduced, dtype=torch.promote_types(x.dtype, torch.float32)) if sizes != 1 else first
    return summed.reshape(first.shape[0], *shape)


def scaled_examples(x: Tensor, factors: Tensor, dim: int, outer: int, inner: int) -> Tensor:
    """x with every example multiplied by its factor; x: f[.., outer*B*inner, ..], factors: f[B]."""
    along = factors.to(x.dtype).view(1, -1, 1).expand(outer, -1, inner).reshape(-1)
    return x * along.view(-1, *(1,) * (x.dim() - dim - 1))
