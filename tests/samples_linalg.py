"""Samples of matrix functions, distances and Fourier transforms."""

from __future__ import annotations

from typing import Any

import torch
from meaning import (
    Draw,
    N,
    Operand,
    Sample,
    Size,
    batched,
    call,
    complexes,
    constant,
    normal,
    shared,
    summed,
    uniform,
)

aten = torch.ops.aten


def regular(generator: torch.Generator, shape: Any) -> torch.Tensor:
    """Square matrices far from singular."""
    return normal(generator, shape) + 5 * torch.eye(shape[-1], dtype=torch.float64)


def definite(generator: torch.Generator, shape: Any) -> torch.Tensor:
    """Symmetric positive definite matrices."""
    x = normal(generator, shape)
    if len(shape) < 2:
        return x
    return x @ x.transpose(-1, -2) + torch.eye(shape[-1], dtype=torch.float64)


def pivots(generator: torch.Generator, shape: Any) -> torch.Tensor:
    """Row exchanges as LAPACK counts them."""
    last = shape[-1]
    return torch.maximum(torch.randint(1, last + 1, tuple(shape), generator=generator), torch.arange(1, last + 1)).int()


Core = tuple[tuple[int, ...], Draw]


def over(
    op: Any,
    *cores: Core,
    linear: int | None = None,
    rest: tuple[Any, ...] = (),
    sums: bool = True,
    spreads: bool = True,
    **options: Any,
) -> list[Sample]:
    """Calls with the examples in every place before the matrices, folded, folded in different orders, and summed.

    linear: the operand in which the operation is linear with the others shared. sums: whether all operands may be sums.
    spreads: whether leading dimensions broadcast.
    """

    def of(kind: Any, *lead: int | None, first: int = 0, **folded: int) -> list[Operand]:
        return [kind(*lead, *shape, draw=draw, **folded) for shape, draw in cores[first:]]

    rows = [of(batched, N), of(batched, N, 2), of(batched, 2, N), of(batched, N, inner=2), of(batched, N, outer=2), of(uniform, N),
            *([of(summed, 2)] if sums else []), [constant(3.0, N, *shape, draw=draw) if draw is normal else batched(N, *shape, draw=draw) for shape, draw in cores]]  # fmt: skip
    if len(cores) > 1:
        rows += [[*of(batched, N, inner=2)[:1], *of(batched, N, outer=2, first=1)]]
        rows += [[shared(*cores[0][0], draw=cores[0][1]), *of(batched, N, first=1)]] if spreads else []
        rows += [[*of(batched, N)[:1], *of(uniform, N, first=1)]]
    samples = [call(op, *row, *rest, **options) for row in rows]
    if linear is not None:
        row = [(summed if place == linear else shared)(*shape, draw=draw) for place, (shape, draw) in enumerate(cores)]
        samples.append(call(op, *row, *rest, must=True, **options))
        samples += [call(op, *(summed(*shape, draw=draw) for shape, draw in cores), *rest, **options)] if sums else []
    return samples


SQUARE, DEFINITE, RIGHT, TALL = ((3, 3), regular), ((3, 3), definite), ((3, 2), normal), ((4, 3), normal)
PIVOTS = ((3,), pivots)
MUST: dict[str, Any] = {"must": True}
TRANSFORMS = (aten._fft_c2c.default, aten._fft_r2c.default, aten._fft_c2r.default)


def transforms(op: Any) -> list[Sample]:
    """Fourier transforms along every dimension, and along two."""
    draw = normal if op is aten._fft_r2c.default else complexes
    last = {aten._fft_c2c.default: True, aten._fft_r2c.default: False, aten._fft_c2r.default: 5}[op]
    across: Any = Size(lambda b: 2 * b - 1) if op is aten._fft_c2r.default else last
    operands = [batched(N, 5, 3, draw=draw), batched(5, N, 3, draw=draw), batched(N, 5, 3, inner=2, draw=draw),
                batched(N, 5, 3, outer=2, draw=draw), uniform(N, 5, 3, draw=draw), summed(2, 5, 3, draw=draw)]  # fmt: skip
    return [*(call(op, x, [2], 0, last, must=not isinstance(x.state, type(uniform(N).state))) for x in operands),
            call(op, operands[0], [1, 2], 0, last), call(op, operands[0], [0], 0, across), call(op, operands[1], [1], 0, across)]  # fmt: skip


LINALG: tuple[Sample, ...] = (
    *(s for op in TRANSFORMS for s in transforms(op)),
    *(s for op in (aten._linalg_det.default, aten._linalg_slogdet.default, aten.linalg_inv_ex.default, aten.linalg_lu_factor_ex.default,
                   aten.linalg_lu.default, aten._linalg_eigvals.default, aten.linalg_eig.default, aten.linalg_matrix_exp.default) for s in over(op, SQUARE)),
    *over(aten.linalg_cholesky_ex.default, DEFINITE), *over(aten._linalg_eigh.default, DEFINITE), *over(aten.cholesky_inverse.default, DEFINITE),
    *over(aten._linalg_svd.default, TALL), *over(aten.linalg_qr.default, TALL),
    *(call(op, batched(3, N)) for op in (aten._linalg_svd.default, aten.linalg_qr.default)),
    *over(aten._linalg_svd.default, TALL, rest=(False, False)), *over(aten._linalg_eigh.default, DEFINITE, rest=("L", False)),
    *over(aten._linalg_solve_ex.default, SQUARE, RIGHT, linear=1), *over(aten._linalg_solve_ex.default, SQUARE, ((3,), normal), spreads=False),
    call(aten._linalg_solve_ex.default, shared(3, 3, draw=regular), batched(3, N), cautious=True),
    call(aten._linalg_solve_ex.default, shared(3, 3, draw=regular), batched(N, 3, 2)), call(aten._linalg_solve_ex.default, batched(N, 3, 3, draw=regular), shared(3, 2)),
    *over(aten.linalg_lu_solve.default, SQUARE, PIVOTS, RIGHT, linear=2, sums=False, spreads=False), *over(aten.lu_unpack.default, SQUARE, PIVOTS, sums=False, spreads=False, cautious=True),
    *over(aten.linalg_solve_triangular.default, SQUARE, RIGHT, linear=1, upper=True),
    *over(aten.triangular_solve.default, RIGHT, SQUARE, linear=0), *over(aten.cholesky_solve.default, RIGHT, DEFINITE, linear=0),
    *over(aten.linalg_householder_product.default, TALL, ((2,), normal), spreads=False),
    *over(aten.ormqr.default, TALL, ((3,), normal), ((4, 2), normal), linear=2, spreads=False),
    *over(torch.ops.dpcompile.matrix_exp_backward.default, SQUARE, SQUARE, linear=0),
    *over(aten.linalg_pinv.atol_rtol_float, TALL, rtol=1e-9),
    *(call(aten.linalg_pinv.atol_rtol_tensor, *args, rtol=shared(draw=lambda g, n: torch.tensor(1e-9, dtype=torch.float64))) for args in (
        [batched(N, 4, 3)], [batched(2, N, 4, 3)], [batched(N, 4, 3, inner=2)], [batched(N, 4, 3, outer=2)], [uniform(N, 4, 3)], [summed(4, 3)])),
    *over(aten._cdist_forward.default, TALL, ((2, 3), normal), rest=(2.0, None)), *over(aten._euclidean_dist.default, TALL, ((2, 3), normal)),
    *over(aten._cdist_forward.default, TALL, ((2, 3), normal), rest=(1.0, None)),
    *(call(aten._cdist_backward.default, *operands, 1.0, cdist, must=more is MUST) for *operands, cdist, more in (
        (batched(N, 4, 2), batched(N, 4, 3), batched(N, 2, 3), batched(N, 4, 2), {}), (batched(N, 4, 2, inner=2), batched(N, 4, 3, inner=2), batched(N, 2, 3, inner=2), batched(N, 4, 2, inner=2), {}),
        (batched(N, 4, 2, inner=2), batched(N, 4, 3, outer=2), batched(N, 2, 3, outer=2), batched(N, 4, 2, outer=2), {}), (uniform(N, 4, 2), uniform(N, 4, 3), uniform(N, 2, 3), uniform(N, 4, 2), {}),
        (batched(2, N, 4, 2), batched(2, N, 4, 3), batched(2, N, 2, 3), batched(2, N, 4, 2), {}), (summed(1, 4, 2), shared(1, 4, 3), shared(1, 2, 3), shared(1, 4, 2), MUST),
        (summed(1, 4, 2), summed(1, 4, 3), shared(1, 2, 3), shared(1, 4, 2), {}))),
    *(call(aten.linalg_cross.default, x, y, dim=dim) for x, y, dim in (
        (batched(N, 3), batched(N, 3), -1), (batched(N, 3), shared(1, 3), 1), (batched(3, N), batched(3, N), 0), (batched(N, 3, 5, inner=2), batched(N, 3, 5, inner=2), 1),
        (batched(N, 3, 5, inner=2), batched(N, 3, 5, outer=2), 1), (uniform(N, 3), batched(N, 3), -1), (uniform(N, 3), uniform(N, 3), -1), (summed(5, 3), shared(5, 3), -1),
        (summed(5, 3), summed(5, 3), -1), (batched(1, N, 3, inner=3), batched(1, N, 3, inner=3), 2), (constant(1.0, N, 3), batched(N, 3), 1))),
    call(aten.linalg_cross.default, summed(5, 3), shared(5, 3), dim=-1, must=True), call(aten.linalg_cross.default, shared(5, 3), summed(5, 3), dim=-1, must=True),
    call(aten._linalg_svd.default, batched(2, N, 3, inner=2)),
    call(aten._cdist_forward.default, batched(N, 3), shared(2, 3), 2.0, None, cautious=True),
    call(aten._euclidean_dist.default, batched(N, 3), shared(2, 3), cautious=True), call(aten._linalg_solve_ex.default, uniform(N, 3, 3, draw=regular), batched(N, 3, 2)),
)  # fmt: skip
