"""Matrix functions, distances and Fourier transforms: within the last dimensions of their operands, over leading ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
import torch

import dpcompile.kernels.matrix_exponential  # noqa: F401  # defines the operation
from dpcompile.ir.axis import SHARED, SUMMED, Constant, Mixes, State, Summed
from dpcompile.rules.families import MEETS_SUM, SUM_WAY_OUT, along, linear_in
from dpcompile.rules.rule import LAID, Result, Rule, Use, aligned, differing, is_fixed, refuse_numbers

aten = torch.ops.aten
Part = tuple[State, list[sympy.Expr]]
CDIST_GRADIENT = aten._cdist_backward.default._schema.arguments[0].name
"""`grad`; `grad_output` from torch 2.15 on."""


def leading(results: tuple[int, ...], **operands: int) -> Rule:
    """A function of the last `operands[name]` dimensions of each operand over leading dimensions, which broadcast.

    results: how many last dimensions of each result belong to the function; the others are the leading ones.
    """

    def rule(use: Use) -> Result:
        refuse_numbers(use)
        parts = [lead(use, use[name], count) for name, count in operands.items() if use[name] is not None]
        return results_of(use, parts, results)

    return rule


def lead(use: Use, node: torch.fx.Node, count: int) -> Part:
    """The state of an operand and its leading sizes; the examples must not lie among its last `count` dimensions."""
    state, shape = use.state(node), use.shape(node)
    place = len(shape) - count
    if isinstance(state, Summed):
        raise Mixes(MEETS_SUM, SUM_WAY_OUT)
    within = isinstance(state, LAID) and state.dim >= place
    if within or (isinstance(state, Constant) and any(map(use.has_batch, shape[place:]))):
        raise Mixes("the examples lie along a matrix's own dimensions", "keep them in the leading dimensions")
    return state, shape[:place]


def results_of(use: Use, parts: list[Part], counts: tuple[int, ...]) -> Result:
    """The state of every result, whose leading dimensions are those of the operands together."""
    fakes: Any = use.node.meta["val"]
    if isinstance(fakes, torch.Tensor):
        shape = use.result_shape()
        return differing(use, aligned(use, parts, shape[: len(shape) - counts[0]]), shape)
    return tuple(result_of(use, parts, index, count) for index, count in enumerate(counts))


def result_of(use: Use, parts: list[Part], index: int, count: int) -> State:
    """The state of one of several results; a result that was not asked for is empty."""
    shape = use.result_shape(index)
    if shape == [0]:
        return SHARED
    return differing(use, aligned(use, parts, shape[: len(shape) - count]), shape)


def solve(use: Use) -> Result:
    """The solution of a system of equations with its factorisation; a right side of one dimension less is a vector."""
    refuse_numbers(use)
    ranks = [len(use.shape(use[name])) for name in ("A", "B")]
    vector = ranks[1] == 1 or (ranks[0] - 1 == ranks[1] and use.shape(use["A"])[:-1] == use.shape(use["B"]))
    count = 1 if vector else 2
    matrix = [lead(use, use["A"], 2)]
    parts = [*matrix, lead(use, use["B"], count)]
    rest = [result_of(use, matrix, index, kept) for index, kept in ((1, 2), (2, 1), (3, 0))]
    return result_of(use, parts, 0, count), *rest


def linear_first(name: str) -> Callable[[Rule], Rule]:
    """The first of several results is linear in this operand, the others do not depend on it."""

    def wrap(rule: Rule) -> Rule:
        def wrapped(use: Use) -> Result:
            others = [node for node in use.tensors() if node is not use[name]]
            if isinstance(use.state(use[name]), Summed) and all(is_fixed(use, node) for node in others):
                refuse_numbers(use)
                return SUMMED, *(SHARED,) * (len(use.node.meta["val"]) - 1)
            return rule(use)

        return wrapped

    return wrap


def cross(use: Use) -> Result:
    """The cross product along a dimension of the example."""
    refuse_numbers(use)
    shape = use.result_shape()
    operands = [(use.state(node), use.shape(node)) for node in (use["self"], use["other"])]
    state = differing(use, aligned(use, operands, shape), shape)
    if isinstance(state, LAID) and use["dim"] % len(shape) == state.dim:
        raise Mixes("the cross product runs along the examples", "run it along a dimension of the example itself")
    return state


def places_from_the_front(rule: Rule) -> Rule:
    """The transforms count dimensions from 0 only; called with -1 they read other memory."""

    def wrapped(use: Use) -> Result:
        if any(dim < 0 for dim in use["dim"]):
            raise Mixes("a Fourier transform is given a negative dimension")
        return rule(use)

    return wrapped


transform = places_from_the_front(linear_in("self")(along("dim")))
RULES: dict[object, Rule] = {
    aten._fft_r2c.default: transform, aten._fft_c2c.default: transform, aten._fft_c2r.default: transform,
    aten.linalg_cross.default: linear_in("self", "other")(cross),
    aten._linalg_det.default: leading((0, 2, 1), A=2), aten._linalg_slogdet.default: leading((0, 0, 2, 1), A=2),
    aten.linalg_inv_ex.default: leading((2, 0), A=2), aten.linalg_cholesky_ex.default: leading((2, 0), self=2),
    aten._linalg_solve_ex.default: linear_first("B")(solve),
    aten.linalg_lu_factor_ex.default: leading((2, 1, 0), A=2), aten.linalg_lu.default: leading((2, 2, 2), A=2),
    aten.linalg_lu_solve.default: linear_in("B")(leading((2,), LU=2, pivots=1, B=2)),
    aten.lu_unpack.default: leading((2, 2, 2), LU_data=2, LU_pivots=1),
    aten.linalg_solve_triangular.default: linear_in("B")(leading((2,), self=2, B=2)),
    aten.triangular_solve.default: linear_first("self")(leading((2, 2), self=2, A=2)),
    aten.cholesky_solve.default: linear_in("self")(leading((2,), self=2, input2=2)),
    aten.cholesky_inverse.default: leading((2,), self=2),
    aten._linalg_svd.default: leading((2, 1, 2), A=2), aten._linalg_eigh.default: leading((1, 2), A=2),
    aten.linalg_eig.default: leading((1, 2), self=2), aten._linalg_eigvals.default: leading((1,), self=2),
    aten.linalg_qr.default: leading((2, 2), A=2), aten.linalg_matrix_exp.default: leading((2,), self=2),
    aten.linalg_householder_product.default: leading((2,), input=2, tau=1),
    aten.linalg_pinv.atol_rtol_tensor: leading((2,), self=2, atol=0, rtol=0),
    aten.linalg_pinv.atol_rtol_float: leading((2,), self=2),
    torch.ops.dpcompile.matrix_exp_backward.default: linear_in("grad")(leading((2,), grad=2, a=2)),
    aten.ormqr.default: linear_in("input3")(leading((2,), self=2, input2=1, input3=2)),
    aten._cdist_forward.default: leading((2,), x1=2, x2=2), aten._euclidean_dist.default: leading((2,), x1=2, x2=2),
    aten._cdist_backward.default: linear_in(CDIST_GRADIENT)(leading((2,), x1=2, x2=2, cdist=2, **{CDIST_GRADIENT: 2})),
}  # fmt: skip
