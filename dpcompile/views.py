"""Views that are possible in memory as tracing sees it become reshapes wherever memory may turn out to lie otherwise.

Before                                                   After
  h: f32[B, 2, 3] = smooth_l1_loss_backward(g, x, y)       h: f32[B, 2, 3] = smooth_l1_loss_backward(g, x, y)
  v: f32[2*B, 3] = view(permute(h), ...)                   v: f32[2*B, 3] = reshape(permute(h), ...)

The strides that torch's traced operations have are not always those of its kernels: the gradient of a loss of permuted
values is contiguous or permuted, according to the operation. Sound because a reshape has the values of the view, and
copies only where the view is impossible; the graph is functional, so that nobody writes to either.
"""

from __future__ import annotations

import itertools
import operator
from typing import Any

import sympy
import torch
from torch import fx

from dpcompile import torch_private
from dpcompile.ir.graph import operand_node, size_expression, value

aten = torch.ops.aten
NEW = frozenset({aten.mm.default, aten.addmm.default, aten.bmm.default, aten.embedding.default, aten._unsafe_view.default,
                 aten.sum.dim_IntList, aten.mean.dim})  # fmt: skip
"""Operations whose results are contiguous whatever their operands look like."""

KEEPING = frozenset({aten.view.default, aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dim, aten.expand.default,
                     aten.ones_like.default})  # fmt: skip
"""Operations whose results have the order of their operand's dimensions, some of them with stride 0."""


class Replay(fx.Interpreter):
    """Runs a graph with reshapes in place of views that are not possible any more: strides may be others than when it was
    traced. Where memory is written to, a view stays one: what is written to a copy would be lost."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.written = written_memory(module.graph)

    def run_node(self, n: fx.Node) -> Any:
        """One operation."""
        try:
            return super().run_node(n)
        except (RuntimeError, ValueError):
            if n.target is not aten.view.default or n in self.written:
                raise
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return aten.reshape.default(*args, **kwargs)


def written_memory(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that share memory with something that an operation writes to."""
    memory: dict[fx.Node, set[fx.Node]] = {}
    written: list[fx.Node] = []
    for node in graph.nodes:
        memory[node] = {node}
        for operand, is_write in aliases(node):
            written += [operand] if is_write else []
            joined = memory[node] | memory[operand]
            memory.update(dict.fromkeys(joined, joined))
    return set().union(*(memory[node] for node in written))


def aliases(node: fx.Node) -> list[tuple[fx.Node, bool]]:
    """The operands whose memory an operation's results share, or that it writes to, and whether it writes."""
    if node.target is operator.getitem:
        return [(operand_node(node, 0), False)]
    if not isinstance(node.target, torch_private.OpOverload):
        return []
    found = []
    for index, argument in enumerate(node.target._schema.arguments):
        given = node.kwargs.get(argument.name, node.args[index] if index < len(node.args) else None)
        if argument.alias_info is not None:
            listed = given if isinstance(given, (list, tuple)) else [given]
            found += [(operand, argument.alias_info.is_write) for operand in listed if isinstance(operand, fx.Node)]
    return found


def relax_views(module: fx.GraphModule) -> None:
    """Replace every view that joins dimensions of memory that may lie otherwise than traced by a reshape."""
    certain: set[fx.Node] = set()
    for node in module.graph.nodes:
        if is_in_order(node, certain):
            certain.add(node)
        if node.target is aten.view.default and node.args[0] not in certain and joins(node):
            node.target = aten.reshape.default
    module.recompile()


def is_in_order(node: fx.Node, certain: set[fx.Node]) -> bool:
    """Whether a value's dimensions lie in memory in their order, or have stride 0, in whatever way kernels choose strides:
    they follow their operands, and these agree."""
    if node.op in ("placeholder", "get_attr") or node.target in NEW:
        return isinstance(node.meta.get("val"), torch.Tensor) and is_row_major(value(node))
    operands = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    keeps = node.target in KEEPING or torch.Tag.pointwise in getattr(node.target, "tags", ())
    return keeps and bool(operands) and all(operand in certain for operand in operands)


def joins(view: fx.Node) -> bool:
    """Whether a view makes one dimension of several; to split dimensions, and to add or drop those of size 1, is always
    possible."""
    return not places(value(operand_node(view, 0))) <= places(value(view))


def places(traced: torch.Tensor) -> set[sympy.Expr]:
    """How many elements lie behind each place between two dimensions."""
    sizes = [size_expression(size) for size in reversed(traced.shape)]
    return set(itertools.accumulate(sizes, initial=sympy.Integer(1), func=operator.mul))


def is_row_major(traced: torch.Tensor) -> bool:
    """Whether a traced value is contiguous; torch's own question may fix the batch size."""
    wanted = size_expression(1)
    for size, stride in zip(reversed(traced.shape), reversed(traced.stride()), strict=True):
        if size_expression(size) != 1 and size_expression(stride) != wanted:
            return False
        wanted = wanted * size_expression(size)
    return True
