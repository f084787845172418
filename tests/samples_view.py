"""Samples of operations that rearrange: views, permutations, slices, concatenation, padding."""

from __future__ import annotations

from typing import Any

import torch
from meaning import (
    N,
    Sample,
    Size,
    along_every_axis,
    batched,
    call,
    complexes,
    constant,
    every_layout,
    integers,
    position,
    shared,
    summed,
    uniform,
)  # fmt: skip

aten = torch.ops.aten
B6 = Size(lambda b: 6 * b)
B, B2, B3 = Size(), Size(lambda b: 2 * b), Size(lambda b: 3 * b)
RESHAPES = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)


def reshapes(op: Any) -> list[Sample]:
    """Cuts at the same places, folds and unfolds, and cuts across examples."""
    return [
        call(op, batched(N, 6), [B, 2, 3]), call(op, batched(N, 6), [B3, 2]), call(op, batched(N, 6), [B6]),
        call(op, batched(N, 5, inner=6), [B2, 15]), call(op, batched(N, 5, inner=6), [B, 6, 5]),
        call(op, batched(4, N, 3), [2, B2, 3]), call(op, batched(4, N, 3), [4, B3]), call(op, batched(6, N), [B6]),
        call(op, batched(N, 5, outer=6), [6, B, 5]), call(op, batched(N, 5, outer=6), [2, B3, 5]),
        call(op, batched(N, 5, outer=2, inner=3), [2, B, 15]),
        call(op, batched(6, N), [B, 6]), call(op, batched(2, N, 3), [B, 6]), call(op, batched(N, 6), [2, B3]),
        call(op, batched(6, N), [B2, 3]), call(op, batched(N, 5, inner=6), [6, B, 5]), call(op, batched(N, 6), [3, B2]),
        call(op, uniform(N, 6), [B, 2, 3]), call(op, uniform(N, 6), [2, B3]), call(op, constant(1.0, N, 6), [3, B2]),
        call(op, summed(6), [2, 3], must=True), call(op, position(N), [B, 1], must=True), call(op, position(N), [1, B, 1], must=True),
        call(op, position(6, N), [B, 6]), call(op, position(2, N, 3), [B, 6]), call(op, position(6, N), [2, 3, B], must=True),
    ]  # fmt: skip


VIEWS: tuple[Sample, ...] = (
    *(s for op in RESHAPES for s in reshapes(op)),
    *(call(aten._reshape_alias.default, batched(N, 6), [B, 2, 3], [6, 3, 1]) for _ in range(1)),
    call(aten._reshape_alias.default, batched(N, 6), [B6], [1]),
    call(aten._reshape_alias.default, batched(6, N), [B6], [1]),
    call(aten._reshape_alias.default, batched(6, N), [B, 6], [6, 1]),
    call(aten._reshape_alias.default, summed(6), [2, 3], [3, 1], must=True),
    call(aten._reshape_alias.default, uniform(N, 6), [B3, 2], [2, 1]),
    *every_layout(aten.view_as_real.default, (5, 3), draw=complexes),
    *(s for s in every_layout(aten.view_as_complex.default, (5, 2)) if s.args[0].shape[-1] == 2),
    *(s for op in (aten.t.default, aten.numpy_T.default) for s in every_layout(op, (5,))),
    *every_layout(aten.numpy_T.default, (5, 3, 2)),
    *every_layout(aten.permute.default, (5, 3), [2, 0, -2]),
    *every_layout(aten.permute.default, (5, 3), [1, 0, 2]),
    *every_layout(aten.transpose.int, (5, 3), 0, -1),
    *every_layout(aten.transpose.int, (5, 3), 1, 2),
    *(s for dim in (0, 1, 2, -1) for s in every_layout(aten.unsqueeze.default, (5,), dim)),
    call(aten.unsqueeze.default, position(N), 0, must=True), call(aten.unsqueeze.default, position(N), -1, must=True),
    call(aten.permute.default, position(1, N, 1), [1, 0, 2], must=True), call(aten.transpose.int, position(1, N), 0, 1, must=True),
    *(s for dim in (0, 1, -1) for s in every_layout(aten.squeeze.dim, (1, 5), dim, cautious=dim < 2)),
    *(call(aten.squeeze.dim, x, dim) for x, dim in ((batched(N, 1), 0), (batched(N, 1, 5), 1), (batched(1, N), 1), (batched(1, N), 0), (batched(1, N), -2), (batched(N, 1, inner=2), -1))),
    *(s for dims in ([1], [1, 2], [0, 1]) for s in every_layout(aten.squeeze.dims, (1, 5), dims, cautious=True)),
    *(call(aten.squeeze.dims, x, dims) for x, dims in ((batched(N, 1, 5), [1, 2]), (batched(1, N, 1), [0, 2]), (batched(N, 1), [0, 1]))),
    *every_layout(aten.squeeze.default, (1, 5), cautious=True),
    *(call(aten.expand.default, x, sizes) for x, sizes in (
        (batched(N, 5), [B, 5]), (batched(N, 1), [B, 5]), (batched(N, 1), [3, B, 5]), (shared(5), [B, 5]), (shared(1, 5), [B, -1]),
        (shared(1, 5), [B3, 5]), (shared(5), [B, 3, 5]), (batched(1, N), [B, B]), (batched(N), [B, B]), (summed(5), [3, 5]),
        (summed(1), [B]), (uniform(N, 1), [B, 7]), (batched(N, 1, inner=3), [B3, 5]), (constant(2.0), [B, 5]), (constant(2.0, N), [5, B]),
        (position(N, 1), [B, 5]), (shared(1, 1), [B, B]))),
    call(aten.expand.default, summed(5), [3, 5], must=True),
    call(aten.expand.default, shared(5), [B, 5], must=True), call(aten.expand.default, shared(1, 5), [B2, 5], must=True),
    *(call(aten.repeat.default, x, sizes) for x, sizes in (
        (batched(N, 5), [1, 3]), (batched(N, 5), [2, 1]), (batched(N, 5), [3, 1, 1]), (batched(N, 5, inner=2), [3, 1]),
        (batched(N, 5, outer=2), [3, 1]), (batched(5, N), [2, 3]), (batched(N, 5), [B, 1]), (batched(N, 5), [1, B]), (shared(5), [B]),
        (shared(5), [B, 1]), (shared(3, 5), [B2, 1]), (shared(5), [2]), (summed(5), [3]), (summed(5), [B]), (uniform(N, 5), [2, 2]),
        (constant(1.0, N, 5), [2, 1]), (position(N), [2]), (shared(5, 3), [1, B]))),
    call(aten.repeat.default, shared(5), [B], must=True),
    *(s for dim in (0, 1, -1) for s in every_layout(aten.slice.Tensor, (5, 3), dim, 1, 3)),
    *every_layout(aten.slice.Tensor, (5,), 1, 0, 5, 2, cautious=True),
    call(aten.slice.Tensor, batched(N, 5), 1, 0, 5, 2),
    call(aten.slice.Tensor, batched(N, 5), 0, 0, B, must=True),
    call(aten.slice.Tensor, batched(N, 5, inner=3), 0, 0, B3, must=True),
    call(aten.slice.Tensor, batched(N, 5, inner=3), 0, 0, B),
    *(call(aten.slice.Tensor, batched(N, 5, outer=3), 0, start, stop, must=True) for start, stop in ((0, B), (B, B2), (B, B3), (B, None), (0, B2))),
    *(call(aten.slice.Tensor, batched(N, 5, outer=3), 0, start, stop) for start, stop in ((1, B), (B, -1), (0, Size(lambda b: b + 1)))),
    call(aten.slice.Tensor, batched(N, 5, outer=2, inner=3), 0, B3, Size(lambda b: 6 * b), must=True), call(aten.slice.Tensor, batched(N, 5, outer=2, inner=3), 0, B, B2),
    call(aten.slice.Tensor, uniform(N, 5, outer=3), 0, B, B2, must=True), call(aten.slice.Tensor, batched(N, 5, outer=3), 0, B, B3, 2),
    call(aten.slice.Tensor, position(N), 0, 0, 2**63 - 1, must=True),
    call(aten.slice.Tensor, batched(N, 5), 0, 0, None, 2),
    call(aten.slice.Tensor, uniform(N, 5), 0, 0, 1, must=True), call(aten.slice.Tensor, uniform(N, 5), 0, 1, 2),
    call(aten.slice.Tensor, uniform(N, 5, inner=3), 0, 0, 1), call(aten.slice.Tensor, batched(N, 5), 0, 0, 1),
    call(aten.select.int, uniform(N, 5), 0, 0, must=True), call(aten.select.int, uniform(N, 5, inner=3), 0, 0),
    call(aten.slice.Tensor, batched(N, 5), 0, 1), call(aten.slice.Tensor, batched(N, 5), 0, 0, -1),
    call(aten.slice.Tensor, batched(N, 35), 1, B, Size(lambda b: b + 3)),
    call(aten.slice.Tensor, shared(35), 0, B, Size(lambda b: b + 3)),
    *(s for dim in (0, 1, -1) for s in every_layout(aten.select.int, (5, 3), dim, 1)),
    call(aten.select.int, batched(N, 35), 1, B), call(aten.select.int, shared(35), 0, B), call(aten.select.int, summed(35), 0, B),
    *(call(aten.select_backward.default, g, sizes, dim, 2) for g, sizes, dim in (
        (batched(N, 5), [B, 7, 5], 1), (batched(N, 5), [B, 5, 7], -1), (batched(5, N), [7, 5, B], 0), (batched(N, 5, inner=2), [B2, 7, 5], 1),
        (summed(5), [7, 5], 0), (uniform(N, 5), [B, 7, 5], 1), (constant(1.0, N, 5), [B, 7, 5], 1),
        (constant(0.0, N, 5), [B, 7, 5], 1), (constant(1.0, 5), [7, 5], 0))),
    call(aten.select_backward.default, summed(5), [7, 5], 0, 2, must=True),
    call(aten.select_backward.default, batched(N, 5), [B, 35, 5], 1, B),
    call(aten.select_backward.default, summed(5), [35, 5], 0, B),
    *(call(aten.slice_backward.default, g, sizes, dim, 1, 4, 1) for g, sizes, dim in (
        (batched(N, 3), [B, 7], 1), (batched(3, N), [7, B], -2), (batched(N, 3, inner=2), [B2, 7], -1), (summed(3, 5), [7, 5], 0),
        (uniform(N, 3), [B, 7], 1), (constant(1.0, N, 3), [B, 7], 1), (constant(0.0, N, 3), [B, 7], 1))),
    call(aten.slice_backward.default, summed(3, 5), [7, 5], 0, 1, 4, 1, must=True),
    *(call(aten.slice_backward.default, constant(1.0, N, 5), [B3, 5], 0, *ends, 1, must=True) for ends in ((B, B2), (0, B), (B2, B3))),
    call(aten.slice_backward.default, batched(N, 3), [B, 35], 1, B, Size(lambda b: b + 3), 1),
    call(aten.slice_backward.default, summed(3), [35], 0, B, Size(lambda b: b + 3), 1),
    call(aten.slice_backward.default, batched(N, 5), [B3, 5], 0, B, B2, 1, must=True), call(aten.slice_backward.default, batched(N, 5), [B3, 5], 0, 0, B, 1, must=True),
    call(aten.slice_backward.default, batched(N, 5, outer=2), [B3, 5], 0, B, B3, 1, must=True), call(aten.slice_backward.default, batched(N, 5, inner=2), [B3, 5], 0, 0, B2, 1),
    *(s for dim in (0, 1, -1) for s in every_layout(aten.unbind.int, (2, 3), dim) if s.args[0].shape[dim] is not N),
    *(s for op, size in ((aten.split.Tensor, 2), (aten.unsafe_split.Tensor, 2), (aten.split_with_sizes.default, [2, 4]),
                         (aten.unsafe_split_with_sizes.default, [2, 4]))
      for s in (call(op, batched(N, 6), size, 1), call(op, batched(6, N), size), call(op, batched(6, N, 5, inner=2), size, -3),
                call(op, uniform(N, 6), size, -1), call(op, summed(6, 5), size, must=True), call(op, constant(1.0, N, 6), size, 1),
                call(op, position(N, 6), size, 1))),
    *(call(op, batched(N, 5, inner=2), sizes) for op in (aten.split_with_sizes.default, aten.unsafe_split_with_sizes.default)
      for sizes in ([B, B], [B2])),
    *(call(op, batched(N, 5, inner=2), B) for op in (aten.split.Tensor, aten.unsafe_split.Tensor)),
    *(call(op, batched(N, 5, outer=2), B, must=True) for op in (aten.split.Tensor, aten.unsafe_split.Tensor)),
    *(call(op, batched(N, 5, outer=3), [B, B2], must=True) for op in (aten.split_with_sizes.default, aten.unsafe_split_with_sizes.default)),
    *(s for amounts in ([1, 2], [0, 0, 1, 2], [1, 0, 0, 0, 2, 1]) for s in every_layout(aten.constant_pad_nd.default, (5, 3), amounts, 0.0)),
    *every_layout(aten.constant_pad_nd.default, (5,), [1, 2], 3.0),
    call(aten.constant_pad_nd.default, summed(5), [1, 2], 0.0, must=True),
    call(aten.constant_pad_nd.default, batched(N, 5), [1, 2], B), call(aten.constant_pad_nd.default, shared(5), [1, 2], B),
    *(s for dims in ([0], [1], [-1, 1]) for s in every_layout(aten.flip.default, (5, 3), dims)),
    *(s for shifts, dims in (([1], [0]), ([1], [1]), ([2, 1], [-1, 1]), ([1], [])) for s in every_layout(aten.roll.default, (5, 3), shifts, dims)),
    call(aten.roll.default, batched(N, 5), [B], [1]), call(aten.roll.default, shared(5), [B], [0]), call(aten.roll.default, summed(5), [B], [0]),
    *(call(aten.as_strided.default, x, *rest) for x, *rest in (
        (batched(N, 6), [B, 2, 3], [6, 3, 1]), (batched(N, 6), [B, 5, 2], [6, 1, 1]), (batched(N, 6), [5, B], [1, 6]),
        (batched(N, 6), [B, 3, 3], [5, 1, 1]), (batched(N, 6), [B, 4], [3, 1]), (batched(N, 6), [B, 2], [6, 0]), (batched(N, 6), [B, 6], [1, B]),
        (batched(N, 6), [B, 5], [6, 1], 1), (batched(6, N), [6, B], [B, 1]), (summed(6), [2, 3], [3, 1], 0), (uniform(N, 6), [B, 3], [6, 2]))),
    *(s for dims in ((0, 1), (1, 2), (0, -1)) for s in every_layout(aten.diagonal.default, (5, 3), 0, *dims)),
    call(aten.diagonal.default, batched(N, 35, 35), Size(lambda b: b - 9), 1, 2, run=lambda x, offset, *dims: x[:, :5, offset + 9 : offset + 14].diagonal(0, 1, 2)),
    call(aten.diagonal.default, shared(35, 35), Size(lambda b: b - 9), run=lambda x, offset: x[:5, offset + 9 : offset + 14].diagonal()),
    *along_every_axis(aten.unfold.default, 3, axis="dimension", size=2, step=1),
)  # fmt: skip


def joins(op: Any, *rest: Any) -> list[Sample]:
    """Concatenations of two tensors of equal shape."""
    pairs = ((batched(N, 5), batched(N, 5)), (batched(N, 5, inner=2), batched(N, 5, inner=2)), (batched(N, 5, outer=2), batched(N, 5, outer=2)),
             (batched(5, N), batched(5, N)), (uniform(N, 5), uniform(N, 5)), (batched(N, 5), uniform(N, 5)), (batched(N, 5), constant(1.0, N, 5)),
             (batched(N, 5, inner=2), batched(N, 5, outer=2)), (constant(1.0, N, 5), constant(1.0, N, 5)), (constant(1.0, N, 5), constant(2.0, N, 5)),
             (summed(5, 3), summed(5, 3)), (summed(5, 3), constant(0.0, 5, 3)), (summed(5, 3), shared(5, 3)), (constant(1.0, 3, 5), shared(3, 5)),
             (uniform(N, 5), constant(1.0, N, 5)), (position(N, 5), position(N, 5)), (position(N, 5), batched(N, 5, draw=integers(3))))  # fmt: skip
    return [call(op, list(pair), dim, *rest) for pair in pairs for dim in (0, 1, -1)]


UNKNOWN = constant(float("nan"), N, 5)
JOINS: tuple[Sample, ...] = (
    *joins(aten.cat.default), *joins(aten.stack.default),
    call(aten.cat.default, [batched(N, 5), shared(1, 5)], 0), call(aten.cat.default, [batched(N, 5), batched(N, 3), constant(1.0, N, 2)], 1),
    call(aten.cat.default, [batched(N, 5), batched(N, 5), batched(N, 5)], 0), call(aten.cat.default, [shared(2, 5), summed(3, 5)], 0),
    call(aten.cat.default, [batched(N, 5), constant(0.0, N, 5)], 0, must=True), call(aten.cat.default, [constant(1.0, N, 5), batched(N, 5, outer=2)], 0, must=True),
    call(aten.cat.default, [batched(N, 5, outer=2), batched(N, 5)], 0, must=True), call(aten.cat.default, [batched(N, 5, inner=2), batched(N, 5)], 0),
    call(aten.cat.default, [batched(N, 5), constant(1.0, 1, 5)], 0), call(aten.cat.default, [batched(N, 5, inner=2), constant(1.0, N, 5)], 0),
    call(aten.cat.default, [summed(2, 5), summed(3, 5)], 0, must=True), call(aten.stack.default, [summed(2), summed(2)], 0, must=True),
    *(call(aten.slice_scatter.default, base, source, dim, 1, 4) for base, source, dim in (
        (batched(N, 5), batched(N, 3), 1), (constant(0.0, N, 5), batched(N, 3), 1),
        (constant(0.0, N, 5), constant(1.0, N, 3), 1), (shared(5), summed(3), 0), (summed(5), summed(3), 0), (constant(0.0, 5), shared(3), 0),
        (constant(0.0, 5, N), constant(1.0, 3, N), 0), (batched(5, N), batched(3, N), 0), (uniform(N, 5), batched(N, 3), 1),
        (uniform(N, 5), uniform(N, 3), 1), (batched(N, 5, inner=2), batched(N, 3, outer=2), 1), (batched(N, 5), constant(2.0, N, 3), 1),)),
    call(aten.slice_scatter.default, batched(N, 5), batched(N, 5), 0, 0, B, must=True),
    call(aten.slice_scatter.default, summed(5), summed(3), 0, 1, 4, must=True),
    call(aten.slice_scatter.default, summed(5), constant(0.0, 3), 0, 1, 4, must=True),
    call(aten.slice_scatter.default, batched(N, 5), shared(1, 5), 0, 0, 1),
    call(aten.slice_scatter.default, constant(0.0, N, 5), shared(1, 5), 0, 0, 1),
    call(aten.slice_scatter.default, constant(0.0, N, 5), constant(2.0, 1, 5), 0, 0, 1),
    call(aten.slice_scatter.default, batched(N, 35), batched(N, 3), 1, B, Size(lambda b: b + 3)),
    *(call(aten.select_scatter.default, base, source, dim, 2) for base, source, dim in (
        (batched(N, 5), batched(N), 1), (batched(5, N), batched(N), 0), (constant(0.0, N, 5), batched(N), -1), (batched(N, 5, 3), batched(N, 3), 1),
        (summed(5, 3), summed(3), 0), (constant(0.0, 5, 3), shared(3), 0), (constant(0.0, 5), constant(1.0), 0), (shared(5, 3), summed(3), 0),
        (uniform(N, 5), uniform(N), 1), (uniform(N, 5), batched(N), 1), (constant(0.0, N, 5), constant(1.0, N), 1),
        (batched(N, 5, inner=2), batched(N, outer=2), 1), (batched(N, 5, inner=2), batched(N, inner=2), 1))),
    call(aten.select_scatter.default, batched(N, 5), shared(5), 0, 0), call(aten.select_scatter.default, constant(0.0, N, 5), shared(5), 0, 0),
    call(aten.select_scatter.default, summed(5, 3), summed(3), 0, 2, must=True),
    call(aten.select_scatter.default, batched(N, 35), batched(N), 1, B),
)  # fmt: skip
