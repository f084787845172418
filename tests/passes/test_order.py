"""The order of nodes is topological and stable, dead code goes, random draws keep their places."""

from __future__ import annotations

import torch
from captured import Captured, captured
from torch import fx, nn
from zoo_case import squares

from dpcompile.ir.graph import JointGraph
from dpcompile.passes.order import order_nodes

aten = torch.ops.aten


def model() -> Captured:
    """A small network."""
    return captured(nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2)), squares, torch.randn(2, 5)).copied()


def names(joint: JointGraph) -> list[str]:
    """The order of the nodes."""
    return [node.name for node in joint.graph.nodes]


def is_topological(joint: JointGraph) -> bool:
    """Whether every operand stands before its use."""
    seen: set[fx.Node] = set()
    for node in joint.graph.nodes:
        if not seen.issuperset(node.all_input_nodes):
            return False
        seen.add(node)
    return True


def test_a_node_that_was_emitted_too_early_moves_behind_its_operands() -> None:
    joint = model().joint
    late = next(node for node in joint.graph.nodes if node.target is aten.mm.default)
    early = next(iter(joint.graph.nodes))
    early.append(late)
    assert not is_topological(joint)
    order_nodes(joint)
    assert is_topological(joint)


def test_nodes_that_stand_well_keep_their_order() -> None:
    joint = model().joint
    before = names(joint)
    order_nodes(joint)
    assert names(joint) == before


def test_others_keep_their_order_when_one_node_moves() -> None:
    joint = model().joint
    moved = [node for node in joint.graph.nodes if node.target is aten.mm.default][-1]
    before = [name for name in names(joint) if name != moved.name]
    next(iter(joint.graph.nodes)).append(moved)
    order_nodes(joint)
    inputs = {operand.name for operand in moved.all_input_nodes}
    rest = [name for name in names(joint) if name != moved.name and name not in inputs]
    assert rest == [name for name in before if name not in inputs]


def test_dead_code_is_removed() -> None:
    joint = model().joint
    losses = joint.output("losses")
    with joint.graph.inserting_after(losses):
        dead = joint.graph.call_function(aten.neg.default, (losses,))
    order_nodes(joint)
    assert dead.name not in names(joint)


def test_draws_keep_their_order() -> None:
    net = nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5), nn.Linear(3, 2), nn.Dropout(0.5))
    joint = captured(net, squares, torch.randn(2, 5)).copied().joint
    seeded = [
        n.name
        for n in joint.graph.nodes
        if getattr(n.target, "tags", None) and torch.Tag.nondeterministic_seeded in n.target.tags
    ]
    order_nodes(joint)
    assert len(seeded) == 2 and [name for name in names(joint) if name in seeded] == seeded
