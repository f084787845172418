"""Batch-free values of a tail as polynomials in numbers per row and values of the weight's shape.

Sums and products are opened, so that `gain * (weight - mean) / deviation` is known to be the weight and a row of ones, each
times numbers per row; anything else stays as it is, a value under its node. Two nodes that compute the same from the same
operands are one (the backward formulas compute the standardised weight again).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, fx

from dpcompile.analysis.linear import NARROWEST, is_zero
from dpcompile.analysis.polynomials import ONE, NoClosedForm, Poly, direction, masked, number, plus, power, row_factor, times
from dpcompile.ir.axis import Constant, Shared
from dpcompile.ir.randomness import is_seeded
from dpcompile.rules.rule import Result

aten = torch.ops.aten
VIEWS: Final = (
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dim,
    aten.squeeze.dims, aten.squeeze.default, aten.alias.default, aten.detach.default, aten.clone.default,
    aten.lift_fresh_copy.default,
)  # fmt: skip
"""What keeps the elements in their order."""
PRODUCTS: Final = (aten.mul.Tensor, aten.mul.Scalar)
QUOTIENTS: Final = (aten.div.Tensor, aten.div.Scalar)
SUMS: Final = {aten.add.Tensor: 1.0, aten.add.Scalar: 1.0, aten.sub.Tensor: -1.0, aten.sub.Scalar: -1.0}
DEEPEST, LONGEST = 40, 16
"""Operations that are opened inside each other; monomials of an opened value."""
BATCH_NORMS: Final = (aten.native_batch_norm.default, aten._native_batch_norm_legit.no_stats)


@dataclass(frozen=True)
class Rows:
    """The layout of a weight: `count` rows of `columns` numbers, whatever the shape that holds them in this order."""

    count: int
    columns: int

    def kind(self, shape: tuple[int, ...]) -> str:
        """full (every element), row (one number per row), number, or "" for anything else."""
        size = math.prod(shape)
        if size == self.count * self.columns:
            return "full" if self.cut(shape) is not None else ""
        return "row" if size == self.count else "number" if size == 1 else ""

    def cut(self, shape: tuple[int, ...]) -> int | None:
        """How many leading dimensions count the rows of a full shape; None if none do."""
        found = (k for k in range(len(shape) + 1) if math.prod(shape[:k]) == self.count)
        return next(found, None)

    def are_aligned(self, operand: tuple[int, ...], result: tuple[int, ...]) -> bool:
        """Whether broadcasting spreads an operand's rows over the same rows of the result."""
        padded = (1,) * (len(result) - len(operand)) + operand
        if padded == result or math.prod(operand) == 1:
            return True
        cut = self.cut(result)
        in_rows = cut is not None and padded[:cut] == result[:cut] and math.prod(padded[cut:]) == 1
        return in_rows and self.kind(result) == "full"


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The sizes of a value without the batch; NoClosedForm for any other."""
    fake = node.meta.get("val")
    if not isinstance(fake, Tensor) or not all(isinstance(size, int) for size in fake.shape):
        raise NoClosedForm(f"{node} is no tensor whose size is free of the batch")
    return tuple(fake.shape)


@dataclass
class RowValues:
    """Polynomials of the batch-free values in one graph, for one layout."""

    rows: Rows
    states: Mapping[fx.Node, Result]
    firsts: Mapping[fx.Node, fx.Node]
    known: dict[fx.Node, Poly] = field(default_factory=dict)
    depth: int = 0

    def of(self, argument: Any) -> Poly:
        """The polynomial of an operand: a number, or a batch-free node of full size, of one number per row, or of one."""
        if isinstance(argument, (int, float)):
            return number(argument)
        if not isinstance(argument, fx.Node):
            raise NoClosedForm(f"{argument} is no number")
        node = self.firsts.get(argument, argument)
        if node not in self.known:
            self.depth += 1
            self.known[node] = self.opened(node)
            self.depth -= 1
        return self.known[node]

    def opened(self, node: fx.Node) -> Poly:
        """What a node computes, or the node itself where that is no polynomial, or a long one."""
        if not isinstance(self.states[node], (Shared, Constant)):
            raise NoClosedForm(f"{node} depends on the batch")
        kind = self.rows.kind(shape_of(node))
        if not kind:
            raise NoClosedForm(f"{node} has neither a number per row nor the weight's shape")
        try:
            found = self.computed(node, kind) if self.depth < DEEPEST else None
        except NoClosedForm:
            found = None
        return self.itself(node, kind) if found is None or len(found) > LONGEST else found

    def itself(self, node: fx.Node, kind: str) -> Poly:
        """A value under its own node."""
        return direction(node) if kind == "full" else row_factor(node)

    def computed(self, node: fx.Node, kind: str) -> Poly | None:
        """The polynomial of a sum, a product, a view; None for every other operation, and where a result was rounded to a half
        type, with which the clipped sum's tail computes."""
        target, args = node.target, node.args
        if target in (*VIEWS, aten.expand.default) or is_widening(node):
            source = args[0]
            assert isinstance(source, fx.Node)
            is_kept = target is not aten.expand.default or self.rows.are_aligned(shape_of(source), shape_of(node))
            return self.of(source) if is_kept else None
        if node.meta["val"].dtype.itemsize < NARROWEST:
            return None
        if target is operator.getitem:
            return self.item(args[0], args[1])
        if node.kwargs or not self.aligned(node):
            return None
        if target in PRODUCTS:
            return times(self.of(args[0]), self.of(args[1]))
        if target in QUOTIENTS:
            return times(self.of(args[0]), self.inverse(args[1]))
        if target is aten.neg.default:
            return times(self.of(args[0]), number(-1))
        if target in SUMS and kind == "full":
            return plus(self.of(args[0]), self.of(args[1]), SUMS[target])
        if target is aten.masked_fill.Scalar and is_zero(args[2]):
            return masked(self.of(args[0]), self.mask(args[1]), False)
        if target is aten.pow.Tensor_Scalar and isinstance(args[1], int) and kind != "full":
            return power(self.of(args[0]), args[1])
        return None

    def inverse(self, argument: Any) -> Poly:
        """1 / a number per row."""
        if isinstance(argument, (int, float)) and argument:
            return number(1 / argument)
        found = power(self.of(argument), -1)
        if found is None and isinstance(argument, fx.Node) and self.rows.kind(shape_of(argument)) != "full":
            found = power(row_factor(self.firsts.get(argument, argument)), -1)
        if found is None:
            raise NoClosedForm(f"division by {argument}, which has no single number per row")
        return found

    def mask(self, node: Any) -> fx.Node:
        """A mask with one truth value per row."""
        if not isinstance(node, fx.Node) or not isinstance(self.states[node], (Shared, Constant)):
            raise NoClosedForm(f"the mask {node} is not free of the batch")
        if self.rows.kind(shape_of(node)) not in ("row", "number"):
            raise NoClosedForm(f"the mask {node} is not the same along a row")
        return self.firsts.get(node, node)

    def aligned(self, node: fx.Node) -> bool:
        """Whether all operands of a broadcasting operation keep their rows."""
        tensors = [a for a in node.all_input_nodes if isinstance(a.meta.get("val"), Tensor)]
        return all(self.rows.are_aligned(shape_of(a), shape_of(node)) for a in tensors)

    def item(self, call: Any, index: Any) -> Poly | None:
        """The first result of a normalisation of the weight itself."""
        if index != 0 or not isinstance(call, fx.Node):
            return None
        args = call.args
        if call.target is aten._weight_norm_interface.default and (args[2] if len(args) > 2 else 0) == 0:
            ratio = times(self.of(args[1]), self.inverse(result(call, 1)))
            return times(self.of(args[0]), ratio)
        if call.target in BATCH_NORMS and args[-3] is True and self.is_per_channel(args[0]):
            scale = times(ONE if args[1] is None else self.of(args[1]), self.of(result(call, 2)))
            centred = plus(self.of(args[0]), self.of(result(call, 1)), -1.0)
            return plus(times(scale, centred), {} if args[2] is None else self.of(args[2]))
        if call.target is aten.native_layer_norm.default and args[2] is None and args[3] is None and self.is_per_row(args):
            return times(plus(self.of(args[0]), self.of(result(call, 1)), -1.0), self.of(result(call, 2)))
        return None

    def is_per_channel(self, node: Any) -> bool:
        """Whether the channels of a batch normalisation are the rows."""
        return isinstance(node, fx.Node) and shape_of(node)[:2] == (1, self.rows.count)

    def is_per_row(self, args: Any) -> bool:
        """Whether a layer normalisation takes exactly the columns together."""
        return math.prod(args[1]) == self.rows.columns and self.rows.kind(shape_of(args[0])) == "full"


def first_of_equals(graph: fx.Graph, states: Mapping[fx.Node, Result]) -> dict[fx.Node, fx.Node]:
    """For every batch-free node the first that computes the same from the same operands."""
    calls: dict[Any, fx.Node] = {}
    firsts: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        is_pure = node.op == "call_function" and is_free(states.get(node)) and not is_seeded(node)
        key = repr((node.target, *fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: named(firsts.get(n, n)))))
        firsts[node] = calls.setdefault(key, node) if is_pure else node
    return firsts


def is_free(state: Result | None) -> bool:
    """Whether a value, or each of several results, is the same for every batch."""
    return all(isinstance(part, Shared) for part in (state if isinstance(state, tuple) else (state,)))


def named(node: fx.Node) -> Any:
    """A node as it stands in the key of a call (Any, since fx knows only its own argument types)."""
    return node


def result(call: fx.Node, index: int) -> fx.Node:
    """One of several results, where the graph takes it out."""
    for user in call.users:
        if user.target is operator.getitem and user.args[1] == index:
            return user
    raise NoClosedForm(f"result {index} of {call} is not kept")


def is_widening(node: fx.Node) -> bool:
    """Whether a node is a conversion of real numbers that loses nothing."""
    source = node.args[0] if node.args else None
    if node.target is not aten._to_copy.default or not isinstance(source, fx.Node):
        return False
    before, after = source.meta["val"].dtype, node.meta["val"].dtype
    return bool(before.is_floating_point and after.is_floating_point and torch.promote_types(before, after) == after)
