"""Samples of lookups by index: embedding, gather, scatter, advanced indexing."""

from __future__ import annotations

import torch
from meaning import (
    N,
    Operand,
    Sample,
    Size,
    batched,
    booleans,
    call,
    constant,
    integers,
    position,
    shared,
    summed,
    uniform,
)

from dpcompile.ir.axis import Position

aten = torch.ops.aten


def ids(*shape: int | None, high: int = 3, **folded: int) -> Operand:
    """Indices that differ from example to example."""
    return batched(*shape, draw=integers(high), **folded)


def same_ids(*shape: int, high: int = 3) -> Operand:
    """Indices that all examples share."""
    return shared(*shape, draw=integers(high))


def counted(*shape: int | None) -> Operand:
    """The index of the example as a floating-point number."""
    return Operand(Position(shape.index(N)), shape)


def zeros(*shape: int | None) -> Operand:
    """Indices that are all zero."""
    return constant(0.0, *shape, draw=integers(1))


TABLE = shared(3, 5)

LOOKUPS: tuple[Sample, ...] = (
    *(call(aten.embedding.default, table, index) for table, index in (
        (TABLE, ids(N, 4)), (TABLE, ids(N)), (TABLE, ids(4, N)), (TABLE, ids(N, inner=2)), (TABLE, uniform(N, 4, draw=integers(3))), (TABLE, zeros(N, 4)),
        (TABLE, position(N)), (TABLE, position(N, 1)), (summed(3, 5), ids(N)), (summed(3, 5), same_ids(4)), (constant(1.0, 3, 5), ids(N)), (TABLE, zeros(4)),
        (batched(N, 5), ids(N, high=1)))),
    *(call(aten.embedding_dense_backward.default, g, index, 3, -1, scaled) for scaled in (False, True) for g, index in (
        (batched(N, 4, 5), ids(N, 4)), (batched(4, N, 5), ids(4, N)), (batched(N, 5, inner=2), ids(N, inner=2)), (batched(N, 5, inner=2), ids(N, outer=2)),
        (summed(4, 5), same_ids(4)), (uniform(N, 5), ids(N)), (constant(1.0, N, 5), ids(N)), (batched(N, 5), zeros(N)), (constant(1.0, 4, 5), same_ids(4)),
        (batched(N, 4, 5), uniform(N, 4, draw=integers(3))), (constant(1.0, N, 5), zeros(N)))),
    call(aten.embedding_dense_backward.default, summed(4, 5), same_ids(4), 3, -1, False, must=True),
    call(aten.embedding_dense_backward.default, batched(N, 5), ids(N), 43, Size(), False),
    *(call(op, TABLE, ids(N, inner=4), shared(2, draw=lambda g, n: torch.tensor([0, 2])), False, 0, False) for op in (aten._embedding_bag.default, aten._embedding_bag_forward_only.default)),
    *(call(op, TABLE, ids(N, inner=2), uniform(N, draw=integers(1)), False, 0, False) for op in (aten._embedding_bag.default, aten._embedding_bag_forward_only.default)),
    *(call(aten.gather.default, source, dim, index) for source, dim, index in (
        (batched(N, 3), 1, ids(N, 4)), (batched(3, N), 0, ids(4, N)), (batched(N, 3, inner=2), -1, ids(N, 4, inner=2)), (batched(N, 3, inner=2), -1, ids(N, 4, outer=2)),
        (batched(N, 4), 0, ids(N, 4, high=1)), (shared(3, 5), 0, ids(N, 5)), (shared(3, 5), 0, ids(N, 4)), (uniform(N, 3), 1, ids(N, 4)), (batched(N, 3), 1, uniform(N, 4, draw=integers(3))),
        (constant(1.0, N, 3), 1, ids(N, 4)), (shared(3, 5), 0, zeros(N, 5)), (shared(3, 5), 0, position(N, 5)), (summed(3, 5), 0, same_ids(4, 5)), (batched(N, 3), 1, zeros(N, 4)),
        (batched(N, 5), 0, same_ids(2, 5, high=1)), (batched(N, 3), 1, same_ids(1, 4)), (shared(5, 3), 1, ids(N, 4)), (shared(3, 5), 0, ids(4, N)), (shared(5, 3), 1, zeros(N, 4)), (uniform(N, 3), 1, uniform(N, 2, draw=integers(3))))),
    call(aten.scatter.src, constant(0.0, 5), 0, same_ids(4, high=5), summed(4)),
    call(aten.scatter.src, constant(1.0, 5), 0, same_ids(4, high=5), summed(4)),
    *(s for op, values in ((aten.scatter.src, True), (aten.scatter_add.default, True), (aten.scatter.value, False)) for s in (
        call(op, base, dim, index, source if values else 2.0) for base, dim, index, source in (
            (batched(N, 3), 1, ids(N, 1), batched(N, 1)), (batched(3, N), 0, ids(1, N), batched(1, N)), (constant(0.0, N, 3), 1, ids(N, 1), batched(N, 1)),
            (constant(0.0, N, 3), 1, ids(N, 1), constant(1.0, N, 1)), (constant(0.0, N, 3), 1, zeros(N, 1), constant(1.0, N, 1)), (constant(0.0, 3), 0, zeros(1), constant(1.0, 1)),
            (constant(0.0, 3), 0, ids(N), batched(N)), (constant(1.0, 3), 0, ids(N), batched(N)), (constant(0.0, 3, 5), 0, ids(N, 5), batched(N, 5)), (constant(0.0, 3), 0, ids(N, inner=2), batched(N, outer=2)),
            (constant(0.0, 3), 0, ids(N), constant(1.0, N)), (batched(N, 3), 0, ids(N, 3, high=1), batched(N, 3)), (batched(N, 3, inner=2), 1, ids(N, 1, outer=2), batched(N, 1, inner=2)),
            (summed(3), 0, same_ids(2), summed(2)), (summed(3), 0, same_ids(2), shared(2)), (uniform(N, 3), 1, uniform(N, 1, draw=integers(3)), uniform(N, 1)), (summed(3), 0, ids(N), batched(N)),
            (constant(0.0, 3), 0, position(N), batched(N)), (batched(N, 3), 1, same_ids(1, 1), batched(N, 1)), (batched(3, N), 0, ids(1, N), shared(1, 5)), (shared(5, 3), 1, ids(N, 1), batched(N, 1)),
            (constant(0.0, 3), 0, ids(N), shared(5)), (constant(0.0, 3), 0, same_ids(1), batched(N)), (constant(0.0, N, 3), 1, zeros(N, 1), shared(5, 1))))),
    call(aten.scatter_add.default, summed(3), 0, same_ids(2), summed(2), must=True), call(aten.scatter_add.default, constant(0.0, 3), 0, ids(N), batched(N), must=True),
    call(aten.scatter_add.default, constant(0.0, 3), 0, ids(N, inner=2), batched(N, inner=2), must=True), call(aten.scatter.value, batched(N, 3), 1, ids(N, 1), Size()),
    *(call(aten.index_select.default, source, dim, index) for source, dim, index in (
        (batched(N, 3), 1, same_ids(4)), (batched(3, N), 0, same_ids(4)), (batched(N, 3), 0, same_ids(2, high=1)), (TABLE, 0, ids(N)), (TABLE, 1, ids(N)), (TABLE, 0, ids(N, inner=2)),
        (batched(N, 3, inner=2), -1, same_ids(2)), (TABLE, 0, position(N)), (summed(3, 5), 0, same_ids(4)), (summed(3, 5), 0, ids(N)), (batched(N, 5), 0, position(N)), (uniform(N, 3), 1, same_ids(4)))),
    call(aten.index_select.default, summed(3, 5), 0, same_ids(4), must=True),
    *(call(aten.index_add.default, base, dim, index, source) for base, dim, index, source in (
        (constant(0.0, 3, 5), 0, ids(N), batched(N, 5)), (constant(1.0, 3, 5), 0, ids(N), batched(N, 5)), (constant(0.0, 3, 5), 0, ids(N, inner=2), batched(N, 5, inner=2)),
        (constant(0.0, 3, 5), 0, ids(N, inner=2), batched(N, 5, outer=2)), (batched(N, 3), 1, same_ids(2), batched(N, 2)), (constant(0.0, N, 3), 1, same_ids(2), batched(N, 2)),
        (batched(3, N), 0, same_ids(2), batched(2, N)), (summed(3, 5), 0, same_ids(2), summed(2, 5)), (summed(3, 5), 0, same_ids(2), shared(2, 5)), (shared(3, 5), 0, ids(N), batched(N, 5)),
        (batched(N, 3), 0, same_ids(2, high=1), shared(2, 3)), (batched(N, 3, inner=2), 1, same_ids(2), batched(N, 2, outer=2)), (constant(0.0, 3, 5), 0, position(N), batched(N, 5)),
        (uniform(N, 3), 1, same_ids(2), uniform(N, 2)))),
    call(aten.index_add.default, summed(3, 5), 0, same_ids(2), summed(2, 5), must=True), call(aten.index_add.default, constant(0.0, 3, 5), 0, ids(N), batched(N, 5), must=True),
    call(aten.index_add.default, batched(N, 3), 1, same_ids(2), batched(N, 2), alpha=Size()),
    *(call(op, source, indices) for op in (aten.index.Tensor, aten._unsafe_index.Tensor) for source, indices in (
        (TABLE, [ids(N)]), (TABLE, [ids(N, 4)]), (TABLE, [None, ids(N, 4)]), (TABLE, [ids(N, 4), ids(N, 1)]), (TABLE, [ids(N, inner=2)]),
        (shared(3, 4, 5), [ids(N), None, ids(N)]), (shared(3, 4, 5), [None, ids(N), same_ids(1)]), (TABLE, [ids(N, 1), ids(1, N)]), (TABLE, [ids(N, inner=2), ids(N, outer=2)]),
        (batched(N, 3), [None, same_ids(4)]), (batched(N, 3, 4), [None, same_ids(2), same_ids(2)]), (batched(3, N, 4), [same_ids(2), None, same_ids(2)]), (batched(3, 4, N), [same_ids(2, 2)]),
        (batched(N, 3, inner=2), [None, same_ids(4)]), (batched(N, 3), [position(N)]), (batched(N, 3), [position(N), ids(N)]), (batched(N, 3), [position(N, 1), ids(N, 4)]), (batched(N, 3), [position(N, 1), same_ids(4)]),
        (batched(3, N), [ids(N), position(N)]), (batched(N, 3, 4), [position(N), None, ids(N)]), (batched(N, 3, inner=2), [position(N)]), (batched(N, 43), [position(N), position(N)]), (batched(N, 3), [None, position(N)]),
        (batched(N, 3), [same_ids(2, high=1)]), (batched(N, 3), [ids(N, high=1)]), (batched(N, 3), [None, ids(N)]), (TABLE, [position(N)]), (shared(43, 5), [position(N)]), (summed(3, 5), [same_ids(4)]), (summed(3, 5), [ids(N)]),
        (uniform(N, 3), [None, same_ids(4)]), (constant(1.0, N, 3), [None, same_ids(4)]), (TABLE, [zeros(N)]), (TABLE, [uniform(N, draw=integers(3))]), (batched(N, 3), [zeros(N)]), (batched(N, 3), [position(N), zeros(N)]),
        (position(N), [same_ids(2, high=1)]), (position(N), [ids(N, high=1)]), (uniform(N, 3), [position(N), ids(N)]), (constant(2.0, N, 3), [position(N), ids(N)]))),
    *(call(op, summed(3, 5), [same_ids(4)], must=True) for op in (aten.index.Tensor, aten._unsafe_index.Tensor)),
    *(call(op, constant(1.0, N, 3), [position(N), same_ids(1)], must=True) for op in (aten.index.Tensor, aten._unsafe_index.Tensor)),
    *(call(op, batched(N, 3), [position(N), ids(N)], must=True) for op in (aten.index.Tensor, aten._unsafe_index.Tensor)),
    *(call(op, base, indices, values, add) for op in (aten.index_put.default, aten._unsafe_index_put.default) for add in (True, False) for base, indices, values in (
        (constant(0.0, 3, 5), [ids(N)], batched(N, 5)), (constant(1.0, 3, 5), [ids(N)], batched(N, 5)), (constant(0.0, 3, 5), [ids(N, 4)], batched(N, 4, 5)), (constant(0.0, 3, 5), [ids(N, inner=2)], batched(N, 5, inner=2)),
        (constant(0.0, 3, 5), [ids(N, inner=2)], batched(N, 5, outer=2)), (constant(0.0, 43, 5), [position(N)], batched(N, 5)), (constant(0.0, 5, 3), [None, ids(N)], batched(5, N)), (constant(0.0, 3, 5), [ids(N)], constant(1.0, N, 5)),
        (batched(N, 3), [None, same_ids(1)], batched(N, 1)), (batched(N, 3), [None, same_ids(1)], shared(1)), (batched(3, N), [same_ids(1)], batched(1, N)), (batched(N, 3, inner=2), [None, same_ids(1)], batched(N, 1, outer=2)),
        (batched(N, 3), [same_ids(1, high=1)], shared(1, 3)), (batched(N, 3), [same_ids(1, high=1)], shared()), (constant(0.0, N, 3), [same_ids(1, high=1)], shared()), (constant(0.0, N, 3), [None, same_ids(1)], constant(1.0, N, 1)),
        (constant(0.0, N, 3), [None, same_ids(1)], batched(N, 1)), (constant(0.0, 3), [same_ids(1)], shared(1)), (batched(N, 3), [position(N), ids(N)], batched(N)), (constant(0.0, N, 3), [position(N), ids(N)], batched(N)),
        (constant(0.0, N, 3), [position(N), ids(N)], shared()), (constant(0.0, N, 43), [ids(N, high=1), position(N)], batched(N)), (constant(0.0, N, 43), [position(N), position(N)], batched(N)), (batched(N, 43), [position(N), position(N)], batched(N)),
        (constant(0.0, N, 3, 4), [position(N), None, ids(N)], batched(N, 3)), (batched(N, 3), [position(N)], batched(N, 3)), (uniform(N, 3), [position(N), ids(N)], batched(N)), (uniform(N, 3), [None, same_ids(1)], uniform(N, 1)),
        (summed(3, 5), [same_ids(1)], summed(1, 5)), (summed(3, 5), [ids(N)], batched(N, 5)), (batched(N, 3), [None, ids(N)], shared()), (constant(0.0, 3, 5), [same_ids(2)], summed(2, 5)), (batched(N, 3), [position(N), ids(N)], shared()),
        (batched(N, 3), [None, same_ids(1)], counted(N, 1)), (counted(N, 3), [None, same_ids(1)], batched(N, 1)), (constant(0.0, N, 3), [None, same_ids(1)], counted(N, 1)), (batched(N, 3), [position(N), ids(N)], counted(N)))),
    *(call(op, constant(0.0, 3, 5), [ids(N)], batched(N, 5), True, must=True) for op in (aten.index_put.default, aten._unsafe_index_put.default)),
    *(call(op, constant(0.0, 3, 5), [same_ids(2)], summed(2, 5), True, must=True) for op in (aten.index_put.default, aten._unsafe_index_put.default)),
    *(call(op, base, [mask], value, must=must) for op in (aten.index_put.default, aten._unsafe_index_put.default) for base, mask, value, must in (
        (batched(N, 3), batched(N, 3, draw=booleans), shared(), True), (batched(3, N, inner=2), batched(3, N, inner=2, draw=booleans), shared(), True),
        (batched(N, 3), uniform(N, 3, draw=booleans), shared(), True), (constant(0.0, N, 3), batched(N, 3, draw=booleans), shared(), True),
        (uniform(N, 3), batched(N, 3, draw=booleans), constant(2.0), True), (batched(N, 3), batched(N, 3, draw=booleans), summed(), False),
        (batched(3, N), batched(3, N, draw=booleans), shared(), True),
        (position(N, 3), batched(N, 3, draw=booleans), shared(), False))),
    *(call(op, batched(N, 3), [batched(N, draw=booleans)], shared(), cautious=True) for op in (aten.index_put.default, aten._unsafe_index_put.default)),
    *(call(op, batched(N, 3), [batched(N, 3, draw=booleans)], shared(), True, cautious=True) for op in (aten.index_put.default, aten._unsafe_index_put.default)),
    *(call(op, batched(N, 3), [None, shared(3, draw=lambda g, n: torch.tensor([True, False, True]))], shared(), cautious=True) for op in (aten.index_put.default, aten._unsafe_index_put.default)),
)  # fmt: skip
