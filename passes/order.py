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

import itertools

import networkx

from dpcompile.ir.graph import JointGraph


def order_nodes(joint: JointGraph) -> None:
    """Stable topological order; dead code removed."""
    graph = joint.graph
    place = {node: index for index, node in enumerate(graph.nodes)}
    uses = networkx.DiGraph()
    uses.add_nodes_from(place)
    uses.add_edges_from((operand, node) for node in place for operand in node.all_input_nodes)
    ordered = list(networkx.lexicographical_topological_sort(uses, key=place.__getitem__))
    for before, node in itertools.pairwise(ordered):
        before.append(node)
    graph.eliminate_dead_code()
    graph.lint()
