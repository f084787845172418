"""Remove what tracing leaves behind and no later room should have to know: detach, alias, lift, duplicate views.

Before                                  After
  detach: f32[B, 5] = detach(relu)        mm: f32[5, 7] = mm(t, relu)
  mm:     f32[5, 7] = mm(t, detach)

Sound because the graph is functional and has no autograd context: these operations return their argument.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dpcompile import torch_private
from dpcompile.ir.graph import operand_node, value

aten = torch.ops.aten
IDENTITIES = (aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default, aten.lift_fresh.default)
VIEWS = (aten.t.default, aten.view.default, aten._unsafe_view.default, aten.transpose.int, aten.permute.default,
         aten.unsqueeze.default, aten.expand.default, aten.squeeze.dim, aten.slice.Tensor, aten.select.int)  # fmt: skip


ASSERTIONS = ("aten::_assert_async", "aten::_assert_scalar", "aten::_linalg_check_errors", "aten::_functional_assert_async")
"""Checks of values that return nothing; what they guard fails by itself, or gives values that are not finite."""


def simplify(module: fx.GraphModule) -> None:
    """Drop identities, merge equal views of one tensor, and remove dead code."""
    graph = module.graph
    for node in reversed(graph.nodes):
        if is_label(node):
            graph.erase_node(node)
    seen: dict[tuple[object, str, str], fx.Node] = {}
    for node in list(graph.nodes):
        if is_assertion(node):
            graph.erase_node(node)
        elif is_identity(node) or is_plain_clone(node) or is_whole_slice(node):
            replace(graph, node, operand_node(node, 0))
        elif node.target is aten._conj.default and isinstance(node.args[0], fx.Node):  # and not a number written as it is
            node.target = aten._conj_physical.default  # not a flag on memory, which views as pairs of numbers refuse
        elif reads_source_only(node):
            drop_target(graph, node)
        elif node.target is aten.t.default and operand_node(node, 0).target is aten.t.default:
            replace(graph, node, operand_node(operand_node(node, 0), 0))
        elif node.target in VIEWS:
            key = (node.target, repr(node.args), repr(node.kwargs))
            if key in seen:
                replace(graph, node, seen[key])
            else:
                seen[key] = node
    graph.eliminate_dead_code()
    module.recompile()


def replace(graph: fx.Graph, node: fx.Node, by: fx.Node) -> None:
    """Use `by` wherever `node` is used."""
    node.replace_all_uses_with(by)
    graph.erase_node(node)


def is_label(node: fx.Node) -> bool:
    """The beginning or the end of a name that a profiler would show."""
    return isinstance(node.target, torch_private.OpOverload) and node.target.namespace == "profiler" and not node.users


def is_assertion(node: fx.Node) -> bool:
    """A check of values without a result."""
    return isinstance(node.target, torch_private.OpOverload) and node.target._schema.name in ASSERTIONS and not node.users


def is_identity(node: fx.Node) -> bool:
    """An operation that returns its argument, which is no constant of the graph."""
    return node.target in IDENTITIES and operand_node(node, 0).op != "get_attr"


def is_plain_clone(node: fx.Node) -> bool:
    """A clone that keeps the strides copies for nothing in a functional graph."""
    if node.target is not aten.clone.default:
        return False
    source = operand_node(node, 0)
    return value(node).stride() == value(source).stride() and source.op == "call_function"


def reads_source_only(node: fx.Node) -> bool:
    """copy(into, source) reads of `into` only its form; whether the source has that form but for the strides."""
    if node.target is not aten.copy.default or operand_node(node, 1).op != "call_function":
        return False
    into, source = value(operand_node(node, 0)), value(operand_node(node, 1))
    return (into.shape, into.dtype, into.device) == (source.shape, source.dtype, source.device)


def drop_target(graph: fx.Graph, node: fx.Node) -> None:
    """Replace such a copy by its source, laid out anew where the copy has other strides."""
    source, strides = operand_node(node, 1), value(node).stride()
    if strides == value(source).stride():
        replace(graph, node, source)
    elif all(isinstance(stride, int) for stride in strides):
        order = sorted(range(len(strides)), key=lambda dim: (-strides[dim], dim))
        back = [order.index(dim) for dim in range(len(order))]
        ordered = inserted(graph, node, aten.permute.default, source, order)
        dense = inserted(graph, node, aten.clone.default, ordered, memory_format=torch.contiguous_format)
        replace(graph, node, inserted(graph, node, aten.permute.default, dense, back))


def inserted(graph: fx.Graph, place: fx.Node, target: torch_private.OpOverload, source: fx.Node, *args: Any,
             **options: Any) -> fx.Node:  # fmt: skip
    """A new operation on one tensor, with its fake value, that stands before `place` and comes from the same line."""
    with graph.inserting_before(place):
        node = graph.call_function(target, (source, *args), options)
    node.meta = dict(place.meta) | {"val": target(value(source), *args, **options)}
    return node


def is_whole_slice(node: fx.Node) -> bool:
    """A slice that takes everything, or its adjoint: same sizes before and after."""
    if node.target not in (aten.slice.Tensor, aten.slice_backward.default):
        return False
    return value(node).shape == value(operand_node(node, 0)).shape and bool(node.args[-1] != -1)
