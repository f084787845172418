"""Put the nodes into an order in which every operand stands before its use and memory is freed early.

Before (a sum emitted late shares a node that was emitted for an earlier norm, or the other way round)
  b: f32[B] = dp.sqnorm(a)
  a: f32[B, 5] = dp.materialize(x, g)
After
  a: f32[B, 5] = dp.materialize(x, g)
  b: f32[B] = dp.sqnorm(a)

Sound because the graph is functional: any order that respects the operands computes the same values. The order is
the first in which nodes appear, so it is stable; every use of a random generator keeps its place among the others.
"""

from __future__ import annotations

from torch import fx

from dpcompile.ir.graph import JointGraph


def order_nodes(joint: JointGraph) -> None:
    """Stable topological order; dead code removed; the module's code made anew."""
    graph = joint.graph
    placed: set[fx.Node] = set()
    last: fx.Node | None = None
    for node in list(graph.nodes):
        for ready in operands_first(node, placed):
            if last is not None:
                last.append(ready)
            last = ready
            placed.add(ready)
    graph.eliminate_dead_code()
    graph.lint()
    joint.module.recompile()


def operands_first(node: fx.Node, placed: set[fx.Node]) -> list[fx.Node]:
    """The node behind all its operands that are not yet placed."""
    found: list[fx.Node] = []
    seen: set[fx.Node] = set()
    stack = [(node, False)]
    while stack:
        current, expanded = stack.pop()
        if current in placed or (current in seen and not expanded):
            continue
        if expanded:
            found.append(current)
            continue
        seen.add(current)
        stack.append((current, True))
        stack += [(operand, False) for operand in reversed(current.all_input_nodes)]
    return found
