"""Operations on the part of a parameter that is trained: take rows or columns of an operand, put a small gradient in its place.

They are operations of a library, with schemas, so that the analyses treat them like torch's own; all three are linear in their
first argument, and `place_kept` keeps norms because no index occurs twice. Where the indices may be fewer than there is room
for, `valid` says which of them count: what is taken at the others is zero, whatever was there (also inf and NaN).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from dpcompile.kernels.recurrent_ops import LIBRARY


def choose_kept(x: Tensor, index: Tensor, valid: Tensor | None, dim: int) -> Tensor:
    """x[..., index, ...] along dim for x: f[...], index: i64[k], valid: bool[k]; zeros where not valid."""
    chosen = x.index_select(dim, index)
    if valid is None:
        return chosen
    sizes = [1] * x.dim()
    sizes[dim] = valid.shape[0]
    return chosen.masked_fill(~valid.view(sizes), 0)


def place_kept(small: Tensor, index: Tensor, dim: int, size: int) -> Tensor:
    """Zeros of `size` at dim with small: f[..., k, ...] at index: i64[k], in which nothing occurs twice."""
    sizes = list(small.shape)
    sizes[dim] = size
    return small.new_zeros(sizes).index_copy(dim, index, small)


def placed(small: Tensor, index: Tensor, dim: int, size: int) -> Tensor:
    """The same in fresh zeros. On a CPU the gradient is added to them, which takes half as long as copying it there."""
    sizes = list(small.shape)
    sizes[dim] = size
    zeros = small.new_zeros(sizes)
    if small.device.type == "cpu":
        return zeros.index_add_(dim, index, small)
    return zeros.index_copy_(dim, index, small)


def keep_entries(x: Tensor, entries: Tensor) -> Tensor:
    """x where bool entries (of its last dimensions) says so, else zero."""
    return torch.where(entries, x, torch.zeros((), dtype=x.dtype, device=x.device))


def _define(function: Callable[..., Tensor], run: Callable[..., Tensor] | None = None) -> Callable[..., Any]:
    """`torch.ops.dpcompile.<name>`, whose fake results are those of the function itself; run: the same by other means."""
    name = function.__name__
    LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()), tags=torch.Tag.pt2_compliant_tag)
    LIBRARY.impl(name, run or function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"dpcompile::{name}", function, lib=LIBRARY)
    overload: Callable[..., Any] = getattr(torch.ops.dpcompile, name).default
    return overload


choose: Final = _define(choose_kept)
place: Final = _define(place_kept, placed)
keep: Final = _define(keep_entries)
TRACEABLE: Final[dict[Callable[..., Any], Callable[..., Any]]] = {choose: choose_kept, place: place_kept, keep: keep_entries}
