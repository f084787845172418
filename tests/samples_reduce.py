"""Samples of reductions and of operations along a dimension."""

from __future__ import annotations

from typing import Any

import torch
from meaning import (  # fmt: skip
    N,
    Sample,
    Size,
    along_every_axis,
    batched,
    call,
    constant,
    every_layout,
    position,
    positive,
    shared,
    summed,
    uniform,
)

aten = torch.ops.aten
LISTS = (aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default, aten.logsumexp.default, aten.var.correction,
         aten.std.correction, aten.var_mean.correction, aten.linalg_vector_norm.default)  # fmt: skip
SINGLE = (aten.max.dim, aten.min.dim, aten.argmax.default, aten.argmin.default, aten.prod.dim_int, aten.median.dim)
WHOLE = (
    aten.sum.default,
    aten.mean.default,
    aten.max.default,
    aten.min.default,
    aten.var.default,
    aten.prod.default,
    aten.median.default,
)
SCANS = (aten.cumsum.default, aten.cumprod.default, aten.logcumsumexp.default, aten.cummax.default, aten.cummin.default)
# Numbers of elements and truth values are often equal for several batches by chance, or are sums.
OFTEN_EQUAL = (aten.count_nonzero.dim_IntList, aten.any.dims, aten.all.dims)


def over(op: Any, *rest: Any, draw: Any = positive, **options: Any) -> list[Sample]:
    """A reduction over one, several and all dimensions, keeping them or not."""
    axes = ([0], [1], [1, 2], [-1, 0])
    samples = [
        s for dims in axes for s in every_layout(op, (3, 5), *rest, draw=draw, dim=dims, cautious=op in OFTEN_EQUAL, **options)
    ]
    keeps = any(argument.name == "keepdim" for argument in op._schema.arguments)
    return samples + [
        s
        for dims in axes
        if keeps
        for s in every_layout(op, (3, 5), *rest, draw=draw, dim=dims, keepdim=True, cautious=op in OFTEN_EQUAL, **options)
    ]


def rarely(generator: torch.Generator, shape: Any) -> torch.Tensor:
    """One True in four."""
    return torch.rand(tuple(shape), generator=generator) < 0.25


def mostly(generator: torch.Generator, shape: Any) -> torch.Tensor:
    """One False in four."""
    return ~rarely(generator, shape)


def rising(generator: torch.Generator, shape: Any) -> torch.Tensor:
    """Sorted boundaries."""
    return positive(generator, shape).cumsum(-1)


REDUCTIONS: tuple[Sample, ...] = (
    *(s for op in LISTS for s in over(op, **({"correction": 0} if "correction" in str(op) else {}))),
    *over(aten.count_nonzero.dim_IntList, draw=rarely),
    call(aten.sum.dim_IntList, summed(5, 3), [0], must=True), call(aten.mean.dim, summed(5, 3), [0], must=True),
    call(aten.sum.default, summed(5), must=True), call(aten.mean.default, summed(5), must=True),
    call(aten.sum.dim_IntList, batched(N, 5), None), call(aten.sum.dim_IntList, constant(1.0, N, 5), [0], must=True),
    call(aten.sum.dim_IntList, uniform(N, 5), [0], must=True), call(aten.sum.dim_IntList, batched(N, 5, inner=3), [0], must=True),
    call(aten.sum.default, batched(5, N), must=True),
    *(s for op in SINGLE for s in along_every_axis(op, 3, draw=positive)),
    *(s for op in SINGLE for s in along_every_axis(op, 2, draw=positive, keepdim=True)),
    call(aten.argmax.default, batched(N, 5)), call(aten.argmin.default, batched(N, 5)),
    *(s for op in WHOLE for s in every_layout(op, (5,), draw=positive)),
    *(s for op, draw in ((aten.any.dim, rarely), (aten.all.dim, mostly)) for s in along_every_axis(op, 3, draw=draw)),
    *(call(op, batched(N, 3, 5, draw=rarely), dim=[-1]) for op in (aten.any.dims, aten.all.dims)),
    *(s for op, draw in ((aten.any.dims, rarely), (aten.all.dims, mostly)) for s in over(op, draw=draw)),
    *(s for op, draw in ((aten.any.default, rarely), (aten.all.default, mostly)) for s in every_layout(op, (5,), draw=draw, cautious=True)),
    *(s for dims in ([0], [1], [1, 2]) for s in every_layout(aten.norm.ScalarOpt_dim, (3, 5), 2, draw=positive, dim=dims)),
    *every_layout(aten.norm.Scalar, (5,), 2.0, draw=positive),
    *along_every_axis(aten.kthvalue.default, 3, 2, draw=positive),
    call(aten.logsumexp.default, constant(0.0, N, 5), [1]), call(aten.prod.dim_int, constant(2.0, N, 5), 0),
    call(aten.linalg_vector_norm.default, constant(0.0, N, 5), 0, [1]), call(aten.linalg_vector_norm.default, constant(1.0, N, 5), 2, [0]),
    call(aten.sum.dim_IntList, position(N), [0]),
)  # fmt: skip


ALONG: tuple[Sample, ...] = (
    *(s for op in (aten._softmax.default, aten._log_softmax.default) for s in along_every_axis(op, 3, half_to_float=False)),
    *along_every_axis(aten._safe_softmax.default, 3),
    *(s for op in SCANS for s in along_every_axis(op, 2, draw=positive)),
    call(aten.cumsum.default, summed(5, 3), 0, must=True),
    call(aten.cumsum.default, constant(1.0, N, 5), 0), call(aten.cumsum.default, constant(1.0, N, 5), 1),
    call(aten.cumsum.default, constant(1.0, 5), 0),
    *along_every_axis(aten.sort.default, 3), *along_every_axis(aten.argsort.default, 2),
    *(s for dim in (0, 1, -1) for s in every_layout(aten.sort.stable, (3, 5), stable=True, dim=dim)),
    *along_every_axis(aten.topk.default, 3, 2), call(aten.topk.default, batched(N, 35), Size(), 1),
    *(s for dim in (1, -1) for s in every_layout(aten.glu.default, (4, 6), dim) if s.args[0].shape[dim] is not N),
    call(aten.glu.default, batched(N, 5, inner=2), 0), call(aten.glu.default, batched(5, N, inner=2), -1), call(aten.glu.default, batched(4, N), 0),
    *(call(aten.glu_backward.default, g, x, dim) for g, x, dim in (
        (batched(N, 2), batched(N, 4), 1), (batched(2, N), batched(4, N), 0), (batched(N, 2, inner=3), batched(N, 4, inner=3), -1),
        (batched(N, 2, outer=3), batched(N, 4, inner=3), -1), (uniform(N, 2), uniform(N, 4), 1), (batched(N, 4), batched(N, 4, inner=2), 0),
        (summed(2), shared(4), 0))),
    *(s for op, more in ((aten._softmax_backward_data.default, positive), (aten._log_softmax_backward_data.default, positive)) for s in (
        call(op, batched(N, 5), batched(N, 5, draw=more), 1, torch.float64), call(op, batched(N, 5), batched(N, 5, draw=more), 0, torch.float64),
        call(op, batched(3, N), batched(3, N, draw=more), 0, torch.float64), call(op, batched(3, N), batched(3, N, draw=more), -1, torch.float64),
        call(op, uniform(N, 5), batched(N, 5, draw=more), -1, torch.float64), call(op, batched(N, 5), uniform(N, 5, draw=more), 0, torch.float64),
        call(op, batched(N, 5, inner=2), batched(N, 5, outer=2, draw=more), 1, torch.float64), call(op, summed(5), shared(5, draw=more), 0, torch.float64, must=True),
        call(op, summed(5), summed(5, draw=more), 0, torch.float64), call(op, constant(1.0, N, 5), batched(N, 5, draw=more), 1, torch.float64))),
    *(s for dim in (0, 1, 2) for s in every_layout(aten.renorm.default, (5, 3), 2, dim, 1.0)),
    call(aten.renorm.default, batched(N, 5), 2, 0, Size()),
    *(call(aten.searchsorted.Tensor, shared(7, draw=rising), values) for values in (
        batched(N, 5), batched(3, N), batched(N, 5, inner=2), uniform(N, 5), constant(1.0, N, 5), constant(3.0, 5), summed(5), position(N))),
    call(aten.searchsorted.Tensor, batched(N, 7, draw=rising), batched(N, 5), cautious=True),
    call(aten.searchsorted.Tensor, summed(7, draw=rising), batched(N, 5)),
)  # fmt: skip
