"""Samples of diagonals, windows, writes by index, order statistics, complex numbers, draws and margins."""

from __future__ import annotations

from typing import Any

import torch
from meaning import (
    N,
    Operand,
    Sample,
    Size,
    along_every_axis,
    batched,
    call,
    complexes,
    constant,
    every_layout,
    integers,
    positive,
    shared,
    summed,
    uniform,
)
from samples_layers import forward, places
from samples_pointwise import pairs

aten = torch.ops.aten
B, B2 = Size(), Size(lambda b: 2 * b)
MUST: dict[str, Any] = {"must": True}


def ids(*shape: int | None, high: int = 3, **folded: int) -> Operand:
    """Indices that differ from example to example."""
    return batched(*shape, draw=integers(high), **folded)


def same_ids(*shape: int, high: int = 3) -> Operand:
    """Indices that all examples share."""
    return shared(*shape, draw=integers(high))


DIAGONALS: tuple[Sample, ...] = (
    *(call(aten.diagonal_backward.default, g, sizes, 0, *dims, **more) for g, sizes, dims, more in (
        (batched(N, 3), [B, 3, 4], (1, 2), {}), (batched(N, 3), [B, 4, 3], (-1, 1), {}), (batched(5, N, 3), [5, B, 3, 4], (2, 3), {}), (batched(N, 5, 3), [B, 3, 5, 4], (1, 3), {}),
        (batched(N, 3, inner=2), [B2, 3, 4], (1, 2), {}), (batched(N, 3, outer=2), [B2, 3, 4], (1, 2), {}), (uniform(N, 3), [B, 3, 4], (1, 2), {}), (summed(5, 3), [5, 3, 4], (1, 2), MUST),
        (batched(5, N), [5, B, B], (1, 2), {}), (constant(0.0, N, 3), [B, 3, 4], (1, 2), {}), (constant(1.0, N, 3), [B, 3, 4], (1, 2), {}), (batched(5, N, 3), [3, 4, 5, B], (0, 1), {}))),
    *(call(aten.diag_embed.default, g, offset, *dims, **more) for g, offset, dims, more in (
        (batched(N, 3), 0, (-2, -1), {}), (batched(N, 3), 1, (1, 2), {}), (batched(5, N, 3), -1, (0, 1), {}), (batched(N, 3, inner=2), 0, (-2, -1), {}), (batched(N, 3, outer=2), 0, (0, 1), {}),
        (uniform(N, 3), 0, (-2, -1), {}), (summed(5, 3), 0, (-2, -1), MUST), (batched(5, N), 0, (-2, -1), {}), (constant(0.0, N, 3), 0, (-2, -1), {}), (constant(1.0, N, 3), 0, (-2, -1), {}))),
    *(call(aten.diagonal_scatter.default, base, source, 0, *dims, **more) for base, source, dims, more in (
        (batched(N, 3, 4), batched(N, 3), (1, 2), {}), (batched(3, 4, N), batched(N, 3), (0, 1), {}), (constant(0.0, N, 3, 4), batched(N, 3), (1, 2), {}), (batched(N, 3, 4, inner=2), batched(N, 3, inner=2), (1, 2), {}),
        (batched(N, 3, 4, inner=2), batched(N, 3, outer=2), (1, 2), {}), (uniform(N, 3, 4), batched(N, 3), (1, 2), {}), (uniform(N, 3, 4), uniform(N, 3), (-2, -1), {}), (summed(5, 3, 4), summed(5, 3), (1, 2), MUST),
        (summed(5, 3, 4), shared(5, 3), (1, 2), {}), (batched(5, N, N), batched(5, N), (1, 2), {}), (constant(0.0, N, 3, 4), constant(1.0, N, 3), (1, 2), {}), (batched(5, N, 3), batched(5, N), (1, 2), {})) if base.shape.count(N) < 2),
    *(call(aten.unfold_backward.default, g, sizes, dim, 2, 1, **more) for g, sizes, dim, more in (
        (batched(N, 4, 2), [B, 5], 1, {}), (batched(4, N, 2), [5, B], 0, {}), (batched(N, 4, 2, inner=2), [B2, 5], -1, {}), (uniform(N, 4, 2), [B, 5], 1, {}), (summed(4, 2), [5], 0, MUST),
        (batched(N, 4, 2, outer=2), [B2, 5], 1, {}), (batched(4, N, 2), [4, Size(lambda b: b + 1)], 1, {}), (constant(1.0, N, 4, 2), [B, 5], 1, {}), (constant(0.0, N, 4, 2), [B, 5], 1, {}))),
    *(s for dims in ([1, 2], [0, 1], [-1, 1]) for s in every_layout(aten.rot90.default, (3, 3), 2, dims)),
    *every_layout(aten.rot90.default, (3, 5), 1, [1, 2], cautious=True),
    *(call(aten.channel_shuffle.default, x, 2) for x in (batched(N, 4, 3), batched(3, 4, N), batched(N, 4, 3, inner=2), batched(N, 4, 3, outer=2), uniform(N, 4, 3), summed(2, 4, 3))),
    call(aten.channel_shuffle.default, batched(2, N, 3, inner=4), 2),
    call(aten.slice.Tensor, batched(N, 5, outer=2), 0, 0, B, must=True), call(aten.slice.Tensor, batched(N, 5, outer=3, inner=2), 0, B2, Size(lambda b: 6 * b), must=True),
    call(aten.slice.Tensor, batched(N, 5, inner=2), 0, 0, B), call(aten.slice.Tensor, batched(N, 5, outer=2), 0, B, B2, must=True), call(aten.slice.Tensor, uniform(N, 5, outer=2), 0, B, B2),
    call(aten.slice.Tensor, batched(N, 5, outer=2), 0, 0, B2, 2), call(aten.slice.Tensor, batched(5, N, outer=2), 1, 1, Size(lambda b: b + 1)),
    call(aten.slice_backward.default, batched(N, 5), [B2, 5], 0, 0, B, 1, must=True), call(aten.slice_backward.default, batched(N, 5), [B2, 5], 0, B, B2, 1, must=True),
    call(aten.slice_backward.default, batched(N, 5, inner=2), [Size(lambda b: 6 * b), 5], 0, B2, Size(lambda b: 4 * b), 1, must=True),
    call(aten.slice_backward.default, batched(N, 5), [Size(lambda b: b + 2), 5], 0, 0, B, 1), call(aten.slice_backward.default, uniform(N, 5), [B2, 5], 0, 0, B, 1),
    *(call(op, batched(N, 5, outer=2), sizes, **more) for op in (aten.split_with_sizes.default, aten.unsafe_split_with_sizes.default) for sizes, more in (([B, B], MUST), ([B2], {}))),
    *(call(op, batched(N, 5, outer=2), B, must=True) for op in (aten.split.Tensor, aten.unsafe_split.Tensor)),
)  # fmt: skip


def writes(op: Any, *after: Any) -> list[Sample]:
    """Writes of rows at shared indices: base and rows in every layout, and across examples."""
    rows = ((batched(N, 3), 1, same_ids(2), batched(N, 2)), (batched(3, N), 0, same_ids(2), batched(2, N)), (batched(N, 3, inner=2), -1, same_ids(2), batched(N, 2, inner=2)),
            (batched(N, 3, inner=2), 1, same_ids(2), batched(N, 2, outer=2)), (constant(0.0, N, 3), 1, same_ids(2), batched(N, 2)), (uniform(N, 3), 1, same_ids(2), uniform(N, 2)),
            (batched(N, 3), 0, same_ids(1, high=1), shared(1, 3)), (summed(3, 5), 0, same_ids(2), shared(2, 5)), (summed(3, 5), 0, same_ids(2), summed(2, 5)),
            (shared(3, 5), 0, ids(N), batched(N, 5)), (uniform(N, 3), 1, same_ids(2), batched(N, 2)), (constant(0.0, N, 3), 1, same_ids(2), constant(1.0, N, 2)))  # fmt: skip
    return [call(op, base, dim, index, source, *after) for base, dim, index, source in rows]


def scattered(reduce: str) -> list[Sample]:
    """Values reduced into places of each example."""
    return [call(aten.scatter_reduce.two, base, dim, index, source, reduce) for base, dim, index, source in (
        (batched(N, 3), 1, ids(N, 2), batched(N, 2)), (batched(3, N), 0, ids(2, N), batched(2, N)), (constant(0.0, N, 3), 1, ids(N, 2), batched(N, 2)), (batched(N, 3, inner=2), 1, ids(N, 2, outer=2), batched(N, 2, inner=2)),
        (batched(N, 3, inner=2), 1, ids(N, 2, inner=2), batched(N, 2, inner=2)), (constant(0.0, 3), 0, ids(N), batched(N)), (batched(N, 3), 0, ids(N, 3, high=1), batched(N, 3)), (summed(3), 0, same_ids(2), summed(2)),
        (uniform(N, 3), 1, uniform(N, 2, draw=integers(3)), uniform(N, 2)))]  # fmt: skip


TABLE = shared(3, 5)
PLACED: tuple[Sample, ...] = (
    *writes(aten.index_copy.default), call(aten.index_copy.default, summed(3, 5), 0, shared(2, draw=lambda g, n: torch.tensor([2, 0])), summed(2, 5), must=True),
    *(call(op, x, dim, index, value) for op, value in ((aten.index_fill.int_Scalar, 2.0), (aten.index_fill.int_Tensor, shared())) for x, dim, index in (
        (batched(N, 3), 1, same_ids(2)), (batched(3, N), 0, same_ids(2)), (batched(N, 3, inner=2), -1, same_ids(2)), (batched(N, 3, outer=2), 1, same_ids(2)), (uniform(N, 3), 1, same_ids(2)),
        (batched(N, 3), 0, same_ids(1, high=1)), (summed(3, 5), 0, same_ids(2)), (constant(1.0, N, 3), 1, same_ids(2)))),
    call(aten.index_fill.int_Scalar, summed(3, 5), 0, same_ids(2), 0.0, must=True), call(aten.index_fill.int_Tensor, summed(3, 5), 0, same_ids(2), constant(0.0), must=True),
    call(aten.index_fill.int_Tensor, batched(N, 3), 1, same_ids(2), summed()),
    *(s for reduce in ("prod", "amax") for s in writes(aten.index_reduce.default, reduce)),
    *(s for reduce in ("sum", "prod", "mean", "amax") for s in scattered(reduce)),
    *(call(aten.take.default, table, index, **more) for table, index, more in (
        (TABLE, ids(N, 4), {}), (TABLE, ids(4, N), {}), (TABLE, ids(N, inner=2), {}), (TABLE, uniform(N, draw=integers(3)), {}), (batched(N, 3), ids(N, 1), {}), (summed(3, 5), same_ids(4), MUST),
        (TABLE, constant(0.0, N, draw=integers(1)), {}), (batched(N, 3), same_ids(2), {}), (summed(3, 5), ids(N), {}))),
    *(call(aten.put.default, base, index, source, add, **more) for base, index, source, add, more in (
        (constant(0.0, 3, 5), ids(N), batched(N), True, MUST), (constant(0.0, 3, 5), ids(N, 4), batched(N, 4), True, {}), (constant(0.0, 3, 5), ids(N, inner=2), batched(N, outer=2), True, {}),
        (constant(0.0, 3, 5), ids(N), batched(N), False, {}), (constant(1.0, 3, 5), ids(N), batched(N), True, {}), (batched(N, 3), ids(N), batched(N), True, {}), (constant(0.0, 3, 5), ids(N), constant(1.0, N), True, {}),
        (constant(0.0, 3, 5), ids(N), uniform(N), True, {}), (constant(0.0, 3, 5), ids(N, inner=2), batched(N, inner=2), True, {}))),
    *(call(op, x, [mask], value) for op in (aten.index_put.default, aten._unsafe_index_put.default) for x, mask, value in (
        (batched(N, 5), batched(N, 5, draw=lambda g, n: torch.rand(tuple(n), generator=g) < 0.5), shared()), (batched(N, 5), batched(N, draw=lambda g, n: torch.rand(tuple(n), generator=g) < 0.5), shared()),
        (batched(N, 5, inner=2), batched(N, 5, outer=2, draw=lambda g, n: torch.rand(tuple(n), generator=g) < 0.5), shared()))),
)  # fmt: skip


ORDER: tuple[Sample, ...] = (
    *(s for op in (aten.nanmedian.dim, aten.mode.default) for s in along_every_axis(op, 3, draw=positive)), *every_layout(aten.nanmedian.default, (5,), draw=positive),
    *(s for dims in ([0], [1], [1, 2], [-1, 0]) for op in (aten.std_mean.correction, aten.nansum.default) for s in every_layout(op, (3, 5), draw=positive, dim=dims, cautious="nansum" in str(op), **({"correction": 0} if "std" in str(op) else {}))),
    *along_every_axis(aten.aminmax.default, 3, draw=positive), *along_every_axis(aten.aminmax.default, 2, draw=positive, keepdim=True),
    *along_every_axis(aten.count_nonzero.default, 3, draw=lambda g, n: torch.rand(tuple(n), generator=g) < 0.25, cautious=True),
    *(call(aten.bucketize.Tensor, x, bounds) for bounds in (shared(7, draw=lambda g, n: positive(g, n).cumsum(-1)),) for x in (
        batched(N, 5), batched(3, N), batched(N, 5, inner=2), uniform(N, 5), constant(1.0, N, 5), constant(3.0, 5), summed(5))),
    call(aten.bucketize.Tensor, batched(N, 5), summed(7, draw=lambda g, n: positive(g, n).cumsum(-1))),
)  # fmt: skip


def drawn_like(op: Any, *rest: Any, draw: Any = positive) -> list[Sample]:
    """Draws in the shape of an operand."""
    return [call(op, x, *rest, drawn=True, cautious=True) for x in (batched(N, 5, draw=draw), batched(5, N, draw=draw), batched(N, 5, inner=2, draw=draw), batched(N, 5, outer=3, draw=draw), uniform(N, 5, draw=draw),
                                                     constant(0.5, N, 5, draw=draw))] + [call(op, summed(5, draw=draw), *rest, drawn=True), call(op, batched(N, 5, draw=draw), *rest, drawn=True, must=True)]  # fmt: skip


POSITIVE: dict[str, Any] = {"draw": positive}
DRAWS: tuple[Sample, ...] = (
    *(s for op in (aten.poisson.default, aten._standard_gamma.default, aten.exponential.default, aten.uniform.default, aten.normal_functional.default, aten.cauchy.default,
                   aten.log_normal.default, aten.random.default, aten._sample_dirichlet.default) for s in drawn_like(op)),
    *drawn_like(aten.geometric.default, 0.4), *drawn_like(aten.random.to, 7), *drawn_like(aten.multinomial.default, 2), *drawn_like(aten.multinomial.default, 7, True),
    *(call(op, *row, drawn=True, cautious=True) for op in (aten.bernoulli.Tensor, aten.binomial.default) for row in (
        [batched(N, 5, **POSITIVE), batched(N, 5, **POSITIVE)], [batched(N, 5, inner=2, **POSITIVE), batched(N, 5, outer=2, **POSITIVE)], [uniform(N, 5, **POSITIVE), uniform(N, 5, **POSITIVE)],
        [batched(5, N, **POSITIVE), batched(5, N, **POSITIVE)], [batched(N, 5, inner=3, **POSITIVE), batched(N, 5, inner=3, **POSITIVE)], [summed(5, **POSITIVE), shared(5, **POSITIVE)])),
)  # fmt: skip


def rows_of_scores(op: Any) -> list[Sample]:
    """Scores and classes in every layout; the gradient of the losses comes first in the backward."""
    back = len(op._schema.arguments) == 7
    found = []
    for g, x, y, w in (
        (batched(N), batched(N, 4), ids(N), shared(4)), (batched(N, inner=2), batched(N, 4, inner=2), ids(N, inner=2), None), (batched(N, inner=2), batched(N, 4, inner=2), ids(N, outer=2), None),
        (uniform(N), uniform(N, 4), uniform(N, draw=integers(3)), None), (batched(N), batched(N, 4), ids(N), summed(4)), (batched(N, outer=2), batched(N, 4, outer=2), ids(N, outer=2), None),
        (constant(1.0, N), batched(N, 4), ids(N), None), (summed(3), summed(3, 4), same_ids(3), None)):  # fmt: skip
        found.append(call(op, *([g] if back else []), x, y, 1, 1.0, w, 0))
    x, y = batched(N, 4), ids(N)
    return [*found, *([] if back else [call(op, x, y, 1, 1.0, None, 1)])]


OTHERS: tuple[Sample, ...] = (
    *(s for op in (aten._conj.default, aten._conj_physical.default, aten.resolve_conj.default) for s in every_layout(op, (5,), draw=complexes)), *every_layout(aten._neg_view.default, (5,)),
    *(call(op, summed(5, draw=complexes), must=True) for op in (aten._conj.default, aten._conj_physical.default, aten.resolve_conj.default)), call(aten._neg_view.default, summed(5), must=True),
    *pairs(aten.rsub.Tensor), call(aten.rsub.Tensor, summed(5), summed(5), must=True), *every_layout(aten.hardswish.default, (5,)),
    *(call(op, x, y) for op in (aten.complex.default, aten.polar.default) for x, y in (
        (batched(N, 5), batched(N, 5)), (batched(3, N), batched(3, N)), (batched(N, 5), shared(5)), (batched(N, 5, inner=2), batched(N, 5, outer=2)), (uniform(N, 5), uniform(N, 5)),
        (batched(N, 5, inner=2), batched(N, 5, inner=2)), (summed(5), summed(5)), (summed(5), shared(5)), (constant(1.0, N, 5), constant(2.0, N, 5)), (batched(N, 5), uniform(N, 5)))),
    call(aten.complex.default, summed(5), summed(5), must=True),
    *(call(op, *row) for op, count in ((aten._standard_gamma_grad.default, 2), (aten._dirichlet_grad.default, 3)) for row in (
        [batched(N, 5, **POSITIVE) for _ in range(count)], [batched(3, N, **POSITIVE) for _ in range(count)], [batched(N, 5, inner=2, **POSITIVE) for _ in range(count)], [uniform(N, 5, **POSITIVE) for _ in range(count)],
        [batched(N, 5, inner=2, **POSITIVE), *(batched(N, 5, outer=2, **POSITIVE) for _ in range(count - 1))], [summed(5, **POSITIVE), *(shared(5, **POSITIVE) for _ in range(count - 1))])),
    *(call(aten.rrelu_with_noise_backward.default, g, x, noise, 0.1, 0.3, training, False, **more) for training in (True, False) for g, x, noise, more in (
        (batched(N, 5), batched(N, 5), batched(N, 5), {}), (batched(3, N), batched(3, N), batched(3, N), {}), (batched(N, 5, inner=2), batched(N, 5, inner=2), batched(N, 5, inner=2), {}),
        (batched(N, 5, inner=2), batched(N, 5, outer=2), batched(N, 5, outer=2), {}), (uniform(N, 5), uniform(N, 5), uniform(N, 5), {}), (summed(5), shared(5), shared(5), MUST), (summed(5), summed(5), shared(5), {}))),
    *forward("adaptive_max_pool3d", (3, 5, 2), [2, 2, 1]), *places("adaptive_max_pool3d_backward", (2, 2, 1), (3, 5, 2)),
    *(call(aten.max_unpool3d.default, x, index, [4, 6, 2], [2, 2, 1], [0, 0, 0]) for x, index in (
        (batched(N, 4, 2, 3, 2), ids(N, 4, 2, 3, 2, high=48)), (batched(N, 4, 2, 3, 2, inner=2), ids(N, 4, 2, 3, 2, inner=2, high=48)), (uniform(N, 4, 2, 3, 2), uniform(N, 4, 2, 3, 2, draw=integers(48))),
        (batched(N, 4, 2, 3, 2, inner=2), ids(N, 4, 2, 3, 2, outer=2, high=48)))),
    *rows_of_scores(aten.multi_margin_loss.default), *rows_of_scores(aten.multi_margin_loss_backward.default),
)  # fmt: skip
WITHIN = (*DIAGONALS, *PLACED, *ORDER, *DRAWS, *OTHERS)
