"""Predicted time and peak memory of the private and the ordinary step by what they are spent on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from dpcompile.forecast.forecast import Outlook
from dpcompile.ir.graph import JointGraph
from dpcompile.kernels.workspace import Workspace
from dpcompile.plan.plan import Plan
from dpcompile.predict.memory import bytes_of, memory
from dpcompile.predict.nodes import predict
from dpcompile.report.kinds import KINDS, SUMS, kinds_of_ordinary, kinds_of_private


@dataclass(frozen=True)
class Shares:
    """Seconds and bytes at the peak by kind, and the seconds of every node."""

    seconds: dict[str, float]
    peak_bytes: dict[str, float]
    kinds: dict[fx.Node, str]
    nodes: dict[fx.Node, float]


def ordinary_shares(outlook: Outlook, batch_size: int) -> Shares:
    """The step that was captured."""
    joint = outlook.source.joint
    contractions = {term.contraction.node for site in outlook.source.sites for term in site.terms}
    return shares(joint, outlook, kinds_of_ordinary(joint, contractions), batch_size, 1)


def private_shares(outlook: Outlook, plan: Plan) -> Shares:
    """The step of a plan: all chunks' time, one chunk's memory with the sums that chunks are added up in."""
    joint = outlook.rewritten(plan)
    size = plan.at_a_time(plan.batch_size)
    found = shares(joint, outlook, kinds_of_private(joint, outlook.source.joint), size, -(-plan.batch_size // size))
    found.peak_bytes[SUMS] += outlook.added_bytes(plan)
    return found


def shares(joint: JointGraph, outlook: Outlook, kinds: dict[fx.Node, str], size: int, chunks: int) -> Shares:
    """Totals by kind."""
    nodes = {node: chunks * spent for node, spent in predict(joint.graph, outlook.hardware, size).items()}
    walked = memory(joint, size)
    held = dict(walked.largest)
    for node in joint.graph.nodes:
        if isinstance(node.target, Workspace):
            held[node] = held.get(node, 0.0) + bytes_of(node, size)
    return Shares(totals(nodes, kinds), totals(held, kinds), kinds, nodes)


def totals(amounts: Mapping[fx.Node, float], kinds: Mapping[fx.Node, str]) -> dict[str, float]:
    """Amounts by kind, every kind among them."""
    found = dict.fromkeys(KINDS, 0.0)
    for node, amount in amounts.items():
        if node in kinds:
            found[kinds[node]] += amount
    return found
