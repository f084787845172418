"""What every node of a step is there for: the ordinary passes, the norms, or the clipped sums."""

from __future__ import annotations

import operator
from typing import Final

from torch import fx

from dpcompile.analysis.cuts import ancestors, gradients_of_losses
from dpcompile.ir.graph import JointGraph, operand_node
from dpcompile.kernels import clipping, cross_entropy, scale
from dpcompile.kernels.copies import Copies

FORWARD, BACKWARD, WEIGHTS, NORMS, SUMS = "forward", "backward", "weight gradients", "norms", "clipped sums"
KINDS: Final = (FORWARD, BACKWARD, WEIGHTS, NORMS, SUMS)


def kinds_of_ordinary(joint: JointGraph, contractions: set[fx.Node]) -> dict[fx.Node, str]:
    """The captured graph: what depends on the losses' cotangent is backward, from the contractions on weight gradients."""
    flowing, weights = gradients_of_losses(joint), set(contractions)
    for node in contractions:  # one of several results: the operation is a weight gradient if it computes nothing else
        if node.target is operator.getitem and all(user in contractions for user in operand_node(node, 0).users):
            weights.add(operand_node(node, 0))
    for node in joint.graph.nodes:
        if node.op == "call_function" and any(source in weights for source in node.all_input_nodes):
            weights.add(node)
    return {n: WEIGHTS if n in weights else BACKWARD if n in flowing else FORWARD for n in called(joint)}


def kinds_of_private(joint: JointGraph, ordinary: JointGraph) -> dict[fx.Node, str]:
    """The rewritten graph: what was captured keeps its kind, what depends on the factors is a sum, other new nodes are norms."""
    known = {node.name for node in ordinary.graph.nodes}
    flowing = gradients_of_losses(joint)
    factors = [node for node in called(joint) if node.target in clipping.FACTORS]
    needed = ancestors(factors)
    after: set[fx.Node] = set()
    kinds: dict[fx.Node, str] = {}
    for node in called(joint):
        if isinstance(node.target, Copies):
            kinds[node] = BACKWARD
            continue
        if node in factors or any(source in after for source in node.all_input_nodes):
            after.add(node)
        if node in after and node not in factors:
            kinds[node] = SUMS
        elif node.name in known or is_fused_ordinary(node):
            kinds[node] = BACKWARD if node in flowing else FORWARD
        else:
            kinds[node] = NORMS if node in needed else SUMS
    return kinds


def called(joint: JointGraph) -> list[fx.Node]:
    """The nodes that compute something."""
    return [node for node in joint.graph.nodes if node.op == "call_function"]


def is_fused_ordinary(node: fx.Node) -> bool:
    """A fused form of ordinary operations, or one of its results."""
    targets = [node.target, *(source.target for source in node.all_input_nodes if node.name.startswith("getitem"))]
    return any(target in FUSED for target in targets if not isinstance(target, str))


FUSED: Final = (
    cross_entropy.row_statistics, cross_entropy.cross_entropy, cross_entropy.cross_entropy_backward,
    cross_entropy.cross_entropy_backward_, scale.group_norm_backward,
)  # fmt: skip
