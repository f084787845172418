"""Find out whether a site's tail works row by row (`ir.projection`), by carrying a general gradient through it.

A value of the tail is the contraction's gradient g times a polynomial, plus for every functional f a polynomial times
<f, g>. Each operation of the tail maps such a value to another one, exactly; the backward formulas of normalisations of the
weight (Salimans & Kingma 2016, eq. 3, for weight norm; Ioffe & Szegedy 2015 and Ba et al. 2016 for batch and layer norm, as
Qiao et al. 2019 standardise weights) are written down as what they are made of. An operation without a row here, or a
shape that mixes rows, ends the search with the reason.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from torch import fx

from dpcompile.analysis.linear import is_zero
from dpcompile.analysis.polynomials import ONE, ZERO, NoClosedForm, Poly, by_direction, masked, number, plus, row_sum, times
from dpcompile.analysis.row_values import PRODUCTS, QUOTIENTS, SUMS, VIEWS, Rows, RowValues, aten, shape_of
from dpcompile.rules.rule import normal_dims

Outer = Mapping[tuple[fx.Node, ...], Poly]


@dataclass(frozen=True)
class Flow:
    """local * g + sum over f of outer[f] * <f, g>."""

    local: Poly = field(default_factory=dict)
    outer: Outer = field(default_factory=dict)

    def times(self, poly: Poly) -> Flow:
        """Every part times a polynomial."""
        return Flow(times(self.local, poly), {f: times(part, poly) for f, part in self.outer.items()})

    def plus(self, other: Flow, sign: float = 1.0) -> Flow:
        """The sum, or the difference."""
        outer = dict(self.outer)
        for f, part in other.outer.items():
            outer[f] = plus(outer.get(f, ZERO), part, sign)
        return Flow(plus(self.local, other.local, sign), outer)

    def masked(self, mask: fx.Node, where: bool) -> Flow:
        """Zero in rows where the mask is not `where`."""
        parts = {f: masked(part, mask, where) for f, part in self.outer.items()}
        return Flow(masked(self.local, mask, where), parts)

    def summed(self, columns: int) -> Flow:
        """The sum over each row: what multiplied g becomes a functional."""
        total = Flow()
        for nodes, part in by_direction(self.local).items():
            total = total.plus(Flow(outer={nodes: part}))
        for f, poly in self.outer.items():
            for nodes, part in by_direction(poly).items():
                total = total.plus(Flow(outer={f: times(part, row_sum(nodes, columns))}))
        return total


@dataclass
class Follower:
    """Carries the gradient of one contraction through one tail."""

    values: RowValues
    flows: dict[fx.Node, Any]

    @property
    def rows(self) -> Rows:
        """The layout of the contraction's gradient."""
        return self.values.rows

    def of(self, node: fx.Node) -> Flow:
        """What has flowed to a node."""
        found = self.flows[node]
        if not isinstance(found, Flow):
            raise NoClosedForm(f"{node} has several results")
        return found

    def visit(self, node: fx.Node) -> None:
        """One operation of the tail."""
        flowing = [n for n in node.all_input_nodes if n in self.flows]
        if node.target is operator.getitem:
            call, index = node.args
            found = self.flows[call][index]  # type: ignore[index]
            if found is None:
                raise NoClosedForm(f"no form of result {index} of {call} is known")
            self.flows[node] = found
            return
        if node.target in NORMALISATIONS:
            if flowing != [node.args[0]]:
                raise NoClosedForm(f"{node} normalises by what depends on the gradient")
            self.flows[node] = NORMALISATIONS[node.target](self, node)
            return
        if self.rows.kind(shape_of(node)) not in ("full", "row"):
            raise NoClosedForm(f"{name_of(node)} does not keep rows apart")
        self.flows[node] = self.result(node, flowing)

    def result(self, node: fx.Node, flowing: list[fx.Node]) -> Flow:
        """The flow behind an operation with one result."""
        target, args = node.target, node.args
        first = args[0] if args and isinstance(args[0], fx.Node) else node
        if len(flowing) == 1 and first is flowing[0]:
            if target in VIEWS or target is aten._to_copy.default:
                return self.reshaped(first, node)
            if target is aten.expand.default and self.rows.are_aligned(shape_of(first), shape_of(node)):
                return self.of(first)
            if target in (aten.sum.dim_IntList, aten.mean.dim):
                return self.reduced(node, first)
            if target is aten.neg.default:
                return self.of(first).times(number(-1))
            if target in QUOTIENTS and not node.kwargs and self.values.aligned(node):
                return self.of(first).times(self.values.inverse(args[1]))
            if target is aten.masked_fill.Scalar and is_zero(args[2]) and self.values.aligned(node):
                return self.of(first).masked(self.values.mask(args[1]), False)
        return self.of_several(node, flowing)

    def of_several(self, node: fx.Node, flowing: list[fx.Node]) -> Flow:
        """Sums, products with what is free of the batch, and choices."""
        target, args = node.target, node.args
        if not node.kwargs and self.values.aligned(node):
            if target in PRODUCTS and len(flowing) == 1 and (args[0] in self.flows) != (args[1] in self.flows):
                one, other = args if args[0] in self.flows else (args[1], args[0])
                assert isinstance(one, fx.Node)
                return self.of(one).times(self.values.of(other))
            if target in SUMS and all(a in self.flows for a in args):
                left, right = (self.of(a) for a in args if isinstance(a, fx.Node))
                return left.plus(right, SUMS[target])
            if target is aten.where.self and args[0] not in self.flows:
                mask, parts = self.values.mask(args[0]), list(zip(args[1:], (True, False), strict=True))
                chosen = [self.of(a).masked(mask, where) for a, where in parts if isinstance(a, fx.Node) and a in self.flows]
                if all(a in self.flows or is_zero(a) for a, _ in parts):
                    return chosen[0] if len(chosen) == 1 else chosen[0].plus(chosen[1])
        raise NoClosedForm(f"no row by row form of {name_of(node)} is known")

    def reshaped(self, source: fx.Node, node: fx.Node) -> Flow:
        """A value whose elements keep their order and rows; conversions stay out of norms and sums (`strategies.tail`)."""
        if not node.meta["val"].dtype.is_floating_point:
            raise NoClosedForm(f"{name_of(node)} leaves the real numbers")
        if self.rows.kind(shape_of(source)) != self.rows.kind(shape_of(node)):
            raise NoClosedForm(f"{name_of(node)} does not keep rows apart")
        return self.of(source)

    def reduced(self, node: fx.Node, source: fx.Node) -> Flow:
        """A sum or mean over whole rows; over dimensions of size one nothing happens."""
        before, after = shape_of(source), shape_of(node)
        if before == after or math.prod(before) == math.prod(after):
            return self.reshaped(source, node)
        given, cut = node.args[1] if len(node.args) > 1 else None, self.rows.cut(before)
        dims = set(normal_dims(given, len(before)))
        wide = {dim for dim, size in enumerate(before) if size > 1}
        if self.rows.kind(before) != "full" or cut is None or dims & wide != {dim for dim in wide if dim >= cut}:
            raise NoClosedForm(f"{name_of(node)} sums over something else than rows")
        total = self.of(source).summed(self.rows.columns)
        return total.times(number(1 / self.rows.columns)) if node.target is aten.mean.dim else total


def name_of(node: fx.Node) -> str:
    """The operation as a reason names it."""
    return str(getattr(node.target, "_opname", None) or getattr(node.target, "__name__", node.target))


def standardised(flow: Flow, values: RowValues, weight: Any, mean: Any, deviation: Any, scale: Any) -> tuple[Flow, Flow, Flow]:
    """Gradients of the input, scale and shift of y = scale * x_hat + shift, x_hat = (weight - mean) * deviation."""
    columns, spread = values.rows.columns, values.of(deviation)
    hat = times(plus(values.of(weight), values.of(mean), -1.0), spread)
    gain = ONE if scale is None else values.of(scale)
    inner = flow.times(gain)
    means = inner.summed(columns).plus(inner.times(hat).summed(columns).times(hat)).times(number(1 / columns))
    own = inner.plus(means, -1.0).times(spread)
    return own, flow.times(hat).summed(columns), flow.summed(columns)


def batch_norm(follower: Follower, node: fx.Node) -> tuple[Flow | None, ...]:
    """native_batch_norm_backward of a weight whose rows are the channels of one image."""
    gradient, weight, scale, _, _, mean, deviation, training = node.args[:8]
    assert isinstance(gradient, fx.Node)
    if training is not True or not follower.values.is_per_channel(weight):
        raise NoClosedForm("the batch normalisation does not take whole rows of the weight as its channels")
    return standardised(follower.of(gradient), follower.values, weight, mean, deviation, scale)


def layer_norm(follower: Follower, node: fx.Node) -> tuple[Flow | None, ...]:
    """native_layer_norm_backward over whole rows of a weight."""
    gradient, weight, sizes, mean, deviation, scale = node.args[:6]
    assert isinstance(gradient, fx.Node)
    if not follower.values.is_per_row((weight, sizes)) or scale is not None:
        raise NoClosedForm("the layer normalisation does not take whole rows of the weight, or scales within them")
    own, _, _ = standardised(follower.of(gradient), follower.values, weight, mean, deviation, None)
    return own, None, None


def weight_norm(follower: Follower, node: fx.Node) -> tuple[Flow | None, ...]:
    """_weight_norm_interface_backward: Salimans & Kingma 2016, eq. 3."""
    gradient, weight, gain, norm, dim = node.args[:5]
    values = follower.values
    assert isinstance(gradient, fx.Node) and isinstance(weight, fx.Node)
    if dim != 0 or values.rows.kind(shape_of(weight)) != "full" or values.rows.cut(shape_of(weight)) not in (0, 1):
        raise NoClosedForm(f"weight norm along dimension {dim}, whose slices are not the rows of the gradient")
    unit = times(values.of(weight), values.inverse(norm))
    inner = follower.of(gradient).times(unit).summed(values.rows.columns)
    own = follower.of(gradient).plus(inner.times(unit), -1.0).times(times(values.of(gain), values.inverse(norm)))
    return own, inner


NORMALISATIONS: Final[Mapping[object, Callable[[Follower, fx.Node], tuple[Flow | None, ...]]]] = {
    aten.native_batch_norm_backward.default: batch_norm,
    aten.native_layer_norm_backward.default: layer_norm,
    aten._weight_norm_interface_backward.default: weight_norm,
}


def followed(values: RowValues, start: fx.Node, tail: tuple[fx.Node, ...], gradient: fx.Node) -> Flow:
    """What has become of the contraction's gradient at the end of the tail; NoClosedForm where that is not known."""
    if values.rows.kind(shape_of(start)) != "full" or values.rows.columns == 1:
        raise NoClosedForm("the contraction's gradient has no rows of several numbers")
    follower = Follower(values, {start: Flow(dict(ONE))})
    for node in tail:
        follower.visit(node)
    found = follower.of(gradient)
    if len(shape_of(gradient)) == 0 or values.rows.kind(shape_of(gradient)) not in ("full", "row"):
        raise NoClosedForm("the parameter has neither the gradient's shape nor one number per row")
    return found
