"""Which nodes may share memory, and when that memory is read for the last time.

An ATen operation says in its schema which argument a result is a view of. One of this package's functions may return
a view of any operand unless it is listed in OWN_MEMORY: whether a reshape copies depends on strides, which differ from
one batch size to the next. Nodes that may share memory are in one class; a class that holds an input, a constant or an
output is never free.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, Final

from torch import Tensor, fx

from dpcompile import torch_private
from dpcompile.ir.graph import JointGraph
from dpcompile.kernels import (
    convolution,
    cross_entropy,
    dense,
    embedding,
    extra_dimension,
    fallback,
    layout,
    masked,
    own_gradient,
    reach,
    reduction,
    scale,
)
from dpcompile.kernels.copies import Copies
from dpcompile.kernels.workspace import Workspace

OWN_MEMORY: Final[frozenset[Callable[..., Any]]] = frozenset({
    convolution.contract, convolution.contract_unfolded, convolution.materialize_grouped, convolution.materialize_unfold,
    convolution.materialize_unfolded, convolution.sqnorm_gram, convolution.sqnorm_gram_unfolded, convolution.sqnorm_materialized,
    cross_entropy.cross_entropy, cross_entropy.cross_entropy_backward, cross_entropy.row_statistics,
    dense.contract, dense.cross_dense, dense.materialize, dense.sqnorm_gram, dense.sqnorm_materialized, dense.sqnorm_outer,
    embedding.contract_rows, embedding.cross_rows, embedding.cross_rows_dense, embedding.materialize_rows,
    embedding.reach_rows, embedding.sqnorm_rows, extra_dimension.materialize_extra_dimension,
    fallback.grouped_products, fallback.sum_images, layout.scaled_examples, masked.sqnorm_masked,
    own_gradient.materialize_grouped_gradient, own_gradient.materialize_single, own_gradient.sqnorm_single,
    reach.reach_channel_scale, reach.reach_images, reach.reach_layer_scale, reach.reach_products, reach.reach_total,
    reduction.gather, reduction.inner, reduction.sqnorm, reduction.weighted_sum, reduction.weighted_sums,
    scale.channel_scale, scale.group_norm_backward, scale.layer_scale,
})  # fmt: skip
"""Functions that return new memory whatever their operands look like."""

HIDDEN_VIEWS: Final = frozenset({
    "aten::_unsafe_view", "aten::_reshape_alias", "aten::pixel_shuffle", "aten::pixel_unshuffle", "aten::unsafe_chunk",
    "aten::unsafe_split", "aten::unsafe_split_with_sizes",
})  # fmt: skip
"""Operations that return a view though their schema does not say so."""


class Aliases:
    """Classes of nodes that may share memory; `join` adds what a rewrite makes them share."""

    def __init__(self, joint: JointGraph) -> None:
        self.parent: dict[fx.Node, fx.Node] = {}
        self.last: dict[fx.Node, float] = {}
        nodes = list(joint.graph.nodes)
        self.place = {node: index for index, node in enumerate(nodes)}
        for node in nodes:
            self.parent[node] = node
            self.last[node] = last_use(node, self.place)
            for operand in shared_with(node):
                self.join(node, operand)

    def class_of(self, node: fx.Node) -> fx.Node:
        """The representative of a node's class."""
        while self.parent[node] is not node:
            node = self.parent[node]
        return node

    def join(self, node: fx.Node, other: fx.Node) -> None:
        """The two share memory from now on."""
        first, second = self.class_of(node), self.class_of(other)
        self.parent[first] = second
        self.last[second] = max(self.last[first], self.last[second])

    def dies_at(self, operand: fx.Node, node: fx.Node) -> bool:
        """Whether nothing reads the operand's memory after this node."""
        return self.last[self.class_of(operand)] <= self.place[node]


def last_use(node: fx.Node, place: dict[fx.Node, int]) -> float:
    """The place of the last node that reads this one; infinite for what outlives the step."""
    if node.op != "call_function" or any(user.op == "output" for user in node.users):
        return float("inf")
    return max((place[user] for user in node.users), default=place[node])


def shared_with(node: fx.Node) -> Iterator[fx.Node]:
    """The operands that a node's result may be a view of."""
    if node.op != "call_function" or isinstance(node.target, Workspace):
        return
    if node.target is operator.getitem:
        yield from (source for source in node.all_input_nodes if not has_own_parts(source))
    elif isinstance(node.target, torch_private.OpOverload):
        yield from viewed(node, node.target)
    elif node.target not in OWN_MEMORY and not isinstance(node.target, Copies):
        yield from (operand for operand in node.all_input_nodes if isinstance(operand.meta["val"], (Tensor, tuple, list)))


def has_own_parts(node: fx.Node) -> bool:
    """Whether several results are separate pieces of new memory."""
    if isinstance(node.target, torch_private.OpOverload):
        return not list(viewed(node, node.target))
    return node.target in OWN_MEMORY or isinstance(node.target, Copies)


def viewed(node: fx.Node, target: Any) -> Iterator[fx.Node]:
    """The operands that an ATen operation's schema, or the list above, names as viewed or written."""
    schema = target._schema
    hidden = schema.name in HIDDEN_VIEWS
    shown = any(result.alias_info is not None for result in schema.returns)
    for index, argument in enumerate(schema.arguments):
        if (shown and argument.alias_info is not None) or (hidden and index == 0):
            given = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            yield from (item for item in (given if isinstance(given, (tuple, list)) else (given,)) if isinstance(item, fx.Node))
