"""From a tail that works row by row to the inner products that it needs, and where the forward pass has computed them already.

The inner product of a gradient's row with the weight that the forward pass used is the sum over positions of output gradient
times output, which costs no contraction. It serves a functional that is the used weight times numbers per row (and a row of
ones), if finding those numbers divides by nothing but what the program divides by: a gain may be trained to zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import fx

from dpcompile.analysis.contractions import untransposed
from dpcompile.analysis.linear import NARROWEST
from dpcompile.analysis.polynomials import (
    ONE,
    ZERO,
    NoClosedForm,
    Poly,
    along,
    by_direction,
    frozen,
    number,
    plus,
    quotient,
    times,
)  # fmt: skip
from dpcompile.analysis.projections import Flow, followed
from dpcompile.analysis.row_values import Rows, RowValues, aten, shape_of
from dpcompile.ir.graph import size_expression, value
from dpcompile.ir.projection import Functional, Monomial, Projection
from dpcompile.ir.site import Contraction, Convolution, Dense
from dpcompile.rules.rule import Result

Direction = tuple[fx.Node, ...]
Weights = dict[Functional, Poly]
"""A sum of functionals, each times numbers per row."""
ONES: Functional = Functional(frozen(ONE))
MOST = 2
"""Functionals that may cost a contraction each; more are no cheaper than the gradient itself."""


@dataclass(frozen=True)
class Output:
    """An output of the forward pass: the input under the weight `scale * direction + shift * ones`, and what was added to it."""

    functional: Functional
    direction: Direction
    scale: tuple[Monomial, float]
    shift: Poly

    def weights(self, coefficient: Poly) -> Weights | None:
        """coefficient * <direction, g>, by this output and the plain sum; None if that needs a forbidden division."""
        own = quotient(coefficient, *self.scale)
        return None if own is None else {self.functional: own, ONES: times(times(own, self.shift), number(-1))}


def project(contraction: Contraction, tail: tuple[fx.Node, ...], gradient: fx.Node, states: Mapping[fx.Node, Result],
            firsts: Mapping[fx.Node, fx.Node]) -> Projection | str:  # fmt: skip
    """How a tail works row by row, or the reason why that is not known."""
    try:
        rows = rows_of(contraction)
        values = RowValues(rows, states, firsts)
        flow = followed(values, contraction.node, tail, gradient)
        return of_flow(flow, rows, values, contraction, is_per_row=rows.kind(shape_of(gradient)) == "row")
    except NoClosedForm as reason:
        return str(reason)


def rows_of(contraction: Contraction) -> Rows:
    """Rows are the first dimension of a weight: the output channels, the input channels of a transposed convolution."""
    if isinstance(contraction, Convolution):
        return Rows(contraction.weight_shape[0], math.prod(contraction.weight_shape[1:]))
    if isinstance(contraction, Dense) and contraction.groups == 1:
        return Rows(contraction.p, contraction.d)
    raise NoClosedForm(f"the contraction {type(contraction).__name__} has no rows")


def of_flow(flow: Flow, rows: Rows, values: RowValues, contraction: Contraction, is_per_row: bool) -> Projection:
    """The projection of what has arrived at the parameter."""
    parts = by_direction(flow.local)
    if set(parts) - {()}:
        raise NoClosedForm("the gradient is scaled by numbers that differ within a row")
    scale, outer = parts.get((), ZERO), {f: part for f, part in flow.outer.items() if part}
    if is_per_row:
        if scale or any(set(by_direction(part)) - {()} for part in outer.values()):
            raise NoClosedForm("a parameter with one number per row has a gradient of the weight's shape")
        return per_row(outer, rows, values, contraction)
    directions = tuple(sorted({d for part in outer.values() for d in by_direction(part)}, key=str))
    needed = sorted({d for d in (*outer, *(directions if scale else ())) if d}, key=str)
    output = forward_output(needed[0], values, contraction) if len(needed) == 1 else None
    gains = [[(by_direction(part).get(d, ZERO), f) for f, part in outer.items()] for d in directions]
    seen = [[(scale, d)] for d in directions]
    found = weighted([*gains, *seen], output)
    if found is None:
        found = weighted([*gains, *seen], None)
        assert found is not None
    return assembled(rows, scale, directions, found[: len(gains)], found[len(gains) :])


def per_row(outer: Mapping[Direction, Poly], rows: Rows, values: RowValues, contraction: Contraction) -> Projection:
    """One number per row: by a forward output if that is possible, else all directions make one functional."""
    needed = sorted((d for d in outer if d), key=str)
    output = forward_output(needed[0], values, contraction) if len(needed) == 1 else None
    found = weighted([[(part, f) for f, part in outer.items()]], output) if output is not None or not needed else None
    if found is None:
        vector = ZERO
        for f, part in outer.items():
            vector = plus(vector, along(part, f))
        found = [{Functional(frozen(vector)): ONE}]
    return assembled(rows, ZERO, ((),), found, [], is_per_row=True)


def weighted(sums: list[list[tuple[Poly, Direction]]], output: Output | None) -> list[Weights] | None:
    """Every sum of coefficient * <direction, g> by functionals; None if the output cannot serve one of them."""
    found: list[Weights] = []
    for parts in sums:
        total: Weights = {}
        for coefficient, d in parts:
            own = expressed(coefficient, d, output)
            if own is None:
                return None
            for functional, poly in own.items():
                total[functional] = plus(total.get(functional, ZERO), poly)
        found.append(total)
    return found


def expressed(coefficient: Poly, d: Direction, output: Output | None) -> Weights | None:
    """coefficient * <d, g> by functionals."""
    if not coefficient:
        return {}
    if not d:
        return {ONES: coefficient}
    if output is not None and output.direction == d:
        return output.weights(coefficient)
    return {Functional(frozen(along(ONE, d))): coefficient}


def assembled(rows: Rows, scale: Poly, directions: tuple[Direction, ...], gains: list[Weights], seen: list[Weights],
              is_per_row: bool = False) -> Projection:  # fmt: skip
    """The projection with its functionals in one order, those of forward outputs first."""
    used = {f for weights in (*gains, *seen) for f, poly in weights.items() if poly}
    functionals = tuple(sorted(used, key=lambda f: (f.is_plain_sum, str(f))))
    if sum(f.is_computed for f in functionals) > MOST:
        raise NoClosedForm("the gradient meets more directions than a closed form is worth")

    def table(sums: list[Weights]) -> tuple[tuple[tuple[tuple[Monomial, float], ...], ...], ...]:
        return tuple(tuple(frozen(weights.get(f, ZERO)) for f in functionals) for weights in sums)

    return Projection(rows.count, rows.columns, frozen(scale), functionals, directions, table(gains), table(seen), is_per_row)


def forward_output(d: Direction, values: RowValues, contraction: Contraction) -> Output | None:
    """An output of the forward pass under a weight that is this direction times numbers per row, and ones."""
    for output, weight, bias in outputs(contraction):
        try:
            parts = dict(by_direction(values.of(weight)))
            is_row = bias is None or (values.rows.kind(shape_of(bias)) == "row" and bool(values.of(bias)))
        except NoClosedForm:
            continue
        shift, own = parts.pop((), ZERO), parts.pop(d, ZERO)
        ((monomial, factor),) = own.items() if len(own) == 1 else [(Monomial(), 0.0)]
        if factor and not parts and not monomial.masks and is_row:
            return Output(Functional(frozen(values.of(weight)), output, bias), d, (monomial, factor), shift)
    return None


def outputs(contraction: Contraction) -> Iterator[tuple[fx.Node, fx.Node, fx.Node | None]]:
    """(output, weight, bias) of the forward operations on a contraction's input, in the gradient's own dtype and layout."""
    if isinstance(contraction, Convolution) and not contraction.geometry.transposed:
        source, gradient = contraction.x.node, contraction.g.node
        call = contraction.node.args[0]
        assert isinstance(call, fx.Node)
        for user in source.users:
            same = user.target is aten.convolution.default and user.args[0] is source and user.args[3:] == call.args[4:10]
            if same and alike(user, gradient):
                yield user, user.args[1], user.args[2]  # type: ignore[misc]
    if isinstance(contraction, Dense):
        source, gradient = contraction.a.node, contraction.g.node
        for user in source.users if contraction.a.dim == 0 and contraction.g.dim == 0 else ():
            bias, factors = (user.args[0], user.args[1:]) if user.target is aten.addmm.default else (None, user.args)
            if user.target not in (aten.mm.default, aten.addmm.default) or user.kwargs or factors[0] is not source:
                continue
            weight, is_transposed = untransposed(factors[1])  # type: ignore[arg-type]
            if is_transposed and alike(user, gradient):
                yield user, weight, bias  # type: ignore[misc]


def alike(output: fx.Node, gradient: fx.Node) -> bool:
    """Whether an output can stand for a functional's values: the gradient's sizes and dtype, no half type."""
    left, right = value(output), value(gradient)
    sizes = [[size_expression(size) for size in fake.shape] for fake in (left, right)]
    return sizes[0] == sizes[1] and left.dtype == right.dtype and left.dtype.itemsize >= NARROWEST
