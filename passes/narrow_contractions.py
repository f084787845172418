"""A gradient of which only some rows or columns are wanted: its contraction on the chosen part of its operands.

Before (rows `index` of the gradient are trained)        After
  t:  f32[p, B] = t(g)                                     g_1: f32[B, k] = choose_kept(g, index, None, 1)
  mm: f32[p, d] = mm(t, a)                                 t_1: f32[k, B] = t(g_1)
                                                           mm_1: f32[k, d] = mm(t_1, a)
                                                           place: f32[p, d] = place_kept(mm_1, index, 0, p)

Sound because row o of a contraction depends on column o of the output gradient alone, and column i on column i of the input
alone; what stands at the other rows of the result is zero, which is what is not trained. Where an operation is not known
here, its whole result is computed and the rows are taken of it, which is always right and saves the norm only.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import fx

from dpcompile.ir.axis import Summed
from dpcompile.ir.graph import operand_node, value
from dpcompile.kernels import kept_part
from dpcompile.rules.rule import Result, normal_dims
from dpcompile.strategies.emitter import Emitter

aten = torch.ops.aten
POINTWISE: Final = (aten.neg.default, aten.clone.default, aten._to_copy.default, aten.mul.Scalar, aten.div.Scalar,
                    aten.mul.Tensor, aten.div.Tensor)  # fmt: skip
TRANSPOSES: Final = (aten.t.default, aten.transpose.int)


class Narrower:
    """Chooses `index` (of which `valid` count) along a dimension of gradients; states: where the examples of every node lie."""

    def __init__(self, emitter: Emitter, states: Mapping[fx.Node, Result], index: fx.Node, valid: fx.Node | None) -> None:
        self.emitter, self.states, self.index, self.valid = emitter, states, index, valid

    def narrowed(self, node: fx.Node, dim: int) -> fx.Node:
        """The chosen part of a node along dim: of a gradient from the chosen parts of its operands where that is known, of a
        value with examples, which others read as well, taken from the whole."""
        call = operand_node(node, 0) if node.target is operator.getitem else node
        is_gradient = isinstance(self.states[node], Summed) or call.target in TRANSPOSES
        known = KNOWN.get(call.target) if is_gradient else None
        found = known(self, node, dim) if known is not None else None
        return found if found is not None else self.chosen(node, dim)

    def chosen(self, node: fx.Node, dim: int) -> fx.Node:
        """The chosen part of a value that exists."""
        self.emitter.at(node)
        return self.emitter.call(kept_part.choose, node, self.index, self.valid, dim)

    def again(self, node: fx.Node, *args: Any) -> fx.Node:
        """The same operation on other operands, where the node stands."""
        self.emitter.at(node)
        return self.emitter.call_with(node.target, args, dict(node.kwargs))  # type: ignore[arg-type]


def transposed(own: Narrower, node: fx.Node, dim: int) -> fx.Node | None:
    """t and transpose of a matrix."""
    source = operand_node(node, 0)
    if len(value(source).shape) != 2:
        return None
    return own.again(node, own.narrowed(source, 1 - dim), *node.args[1:])


def product(own: Narrower, node: fx.Node, dim: int) -> fx.Node:
    """mm and bmm: rows of the left factor, columns of the right one; a group of a stack is chosen of both."""
    left, right = operand_node(node, 0), operand_node(node, 1)
    rank = len(value(node).shape)
    if rank == 3 and dim == 0:
        return own.again(node, own.narrowed(left, 0), own.narrowed(right, 0))
    return own.again(node, own.narrowed(left, dim), right) if dim == rank - 2 else own.again(node, left, own.narrowed(right, dim))


def pointwise(own: Narrower, node: fx.Node, dim: int) -> fx.Node | None:
    """Operations on every element by itself, with numbers."""
    if any(isinstance(argument, fx.Node) for argument in node.args[1:]):
        return None
    return own.again(node, own.narrowed(operand_node(node, 0), dim), *node.args[1:])


def added(own: Narrower, node: fx.Node, dim: int) -> fx.Node | None:
    """Sums of two gradients of one shape (a parameter that is used twice)."""
    if not all(isinstance(a, fx.Node) and value(a).shape == value(node).shape for a in node.args):
        return None
    return own.again(node, *(own.narrowed(operand_node(node, place), dim) for place in (0, 1)))


def summed(own: Narrower, node: fx.Node, dim: int) -> fx.Node | None:
    """Sums over other dimensions."""
    source, rank = operand_node(node, 0), len(value(operand_node(node, 0)).shape)
    gone = normal_dims(node.args[1], rank)
    keepdim = bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim", False))
    left = [d for d in range(rank) if d not in gone]
    place = dim if keepdim else left[dim]
    return None if place in gone else own.again(node, own.narrowed(source, place), *node.args[1:])


def reshaped(own: Narrower, node: fx.Node, dim: int) -> fx.Node | None:
    """Views that leave the dimension whole: the same number of elements before it, and the same size."""
    source = operand_node(node, 0)
    before, after = [int(n) for n in value(node).shape], value(source).shape
    if not all(isinstance(n, int) for n in after):
        return None
    for place in range(len(after)):
        if math.prod(after[:place]) == math.prod(before[:dim]) and after[place] == before[dim]:
            sizes = [-1 if d == dim else n for d, n in enumerate(before)]
            small = own.narrowed(source, place)
            sizes[dim] = int(value(small).shape[place])
            own.emitter.at(node)
            return own.emitter.call(aten.reshape.default, small, sizes)
    return None


def convolved(own: Narrower, node: fx.Node, dim: int) -> fx.Node | None:
    """The weight gradient of a convolution without groups: output channels of g, input channels of x."""
    call = operand_node(node, 0)
    if node.target is not operator.getitem or node.args[1] != 1 or call.args[9] != 1 or dim > 1:
        return None
    g, x, weight = (operand_node(call, place) for place in range(3))
    is_output = (dim == 0) != bool(call.args[7])  # the weight of a transposed convolution begins with its inputs
    chosen = own.narrowed(g if is_output else x, 1)
    own.emitter.at(call)
    small = own.emitter.call(kept_part.choose, weight, own.index, None, dim)  # only its sizes are looked at
    operands = (chosen, x) if is_output else (g, chosen)
    own.emitter.at(call)
    again = own.emitter.call_with(call.target, (*operands, small, None, *call.args[4:10], [False, True, False]), {})  # type: ignore[arg-type]
    return own.emitter.item(again, 1)


def looked_up(own: Narrower, node: fx.Node, dim: int) -> fx.Node | None:
    """Columns of a table: features of the output gradient."""
    if dim != 1:
        return None
    g = operand_node(node, 0)
    return own.again(node, own.narrowed(g, len(value(g).shape) - 1), *node.args[1:])


Known = Callable[[Narrower, fx.Node, int], fx.Node | None]
KNOWN: Final[dict[object, Known]] = {
    **dict.fromkeys(TRANSPOSES, transposed),
    aten.mm.default: product,
    aten.bmm.default: product,
    **dict.fromkeys(POINTWISE, pointwise),
    aten.add.Tensor: added,
    aten.sum.dim_IntList: summed,
    aten.view.default: reshaped,
    aten._unsafe_view.default: reshaped,
    aten.reshape.default: reshaped,
    aten.convolution_backward.default: convolved,
    aten.embedding_dense_backward.default: looked_up,
}
