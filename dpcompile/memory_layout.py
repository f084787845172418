"""Operations whose results lie in memory otherwise than tracing says are laid out anew as the trace expects them.

Before                                                   After
  h: f32[B, 2, 3] = smooth_l1_loss_backward(g, x, y)       h: f32[B, 2, 3] = smooth_l1_loss_backward(g, x, y)
  v: f32[2*B, 3] = view(permute(h), ...)                   p = permute(clone(permute(h)))
                                                           v: f32[2*B, 3] = view(permute(p), ...)

Sound because a copy has the values of what it copies. Without it a view that the trace takes for possible fails.
"""

from __future__ import annotations

import torch
from torch import fx

from dpcompile.ir.graph import size_expression, value
from dpcompile.simplify import inserted

aten = torch.ops.aten
CONTIGUOUS = (aten.smooth_l1_loss_backward.default, aten.huber_loss_backward.default, aten.mse_loss_backward.default)
"""Results are contiguous whatever the operands' strides are; traced, they have the strides of the operands."""

LARGE = 1009
"""A batch size to compare strides at."""


def restore_strides(module: fx.GraphModule) -> None:
    """Give the results of such operations the strides that the trace says."""
    for node in list(module.graph.nodes):
        if node.target in CONTIGUOUS and order_in_memory(node) != list(range(value(node).dim())):
            lay_out_anew(module.graph, node)
    module.recompile()


def order_in_memory(node: fx.Node) -> list[int]:
    """The dimensions of a traced value, those with the largest strides first."""
    strides = [size_expression(stride) for stride in value(node).stride()]
    numbers = [int(stride.subs(dict.fromkeys(stride.free_symbols, LARGE))) for stride in strides]
    return sorted(range(len(numbers)), key=lambda dim: (-numbers[dim], dim))


def lay_out_anew(graph: fx.Graph, node: fx.Node) -> None:
    """Copy a result so that its dimensions lie in memory in the order of the trace."""
    order, users = order_in_memory(node), list(node.users)
    back = [order.index(dim) for dim in range(len(order))]
    place = node.next
    ordered = inserted(graph, place, aten.permute.default, node, order)
    dense = inserted(graph, place, aten.clone.default, ordered, memory_format=torch.contiguous_format)
    restored = inserted(graph, place, aten.permute.default, dense, back)
    for made in (ordered, dense, restored):
        made.meta = dict(node.meta) | {"val": made.meta["val"]}
    for user in users:
        user.replace_input_with(node, restored)
