"""Check the graph after every pass: a list of violations, empty when the graph is well formed."""

from __future__ import annotations

from torch import fx

from dpcompile import torch_private
from dpcompile.ir.errors import CaptureError
from dpcompile.ir.graph import JointGraph, size_expression, value


def violations(joint: JointGraph) -> list[str]:
    """What is wrong with a joint graph."""
    found: list[str] = []
    nodes = list(joint.graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    if len(placeholders) != len(joint.inputs):
        found.append(f"{len(placeholders)} placeholders but {len(joint.inputs)} inputs are described")
    if len(joint.graph.output_node().args[0]) != len(joint.outputs):  # type: ignore[arg-type]
        found.append("the output tuple and its description differ in length")
    if found:
        return found  # nothing can be looked up by its role
    if joint.symbol in torch_private.specialised(joint.fakes):
        found.append("the batch size became fixed")
    placed: set[fx.Node] = set()
    for node in nodes:
        if any(operand not in placed for operand in node.all_input_nodes):
            found.append(f"{node.name} stands before one of its operands")
        if node.op not in ("output",) and "val" not in node.meta:
            found.append(f"{node.name} has no value")
        placed.add(node)
    for kind in ("losses", "norms", "clip_factors", "nonfinite"):
        if (kind, "") in joint.outputs:
            found += shape_violations(joint, kind)
    return found + gradient_violations(joint)


def shape_violations(joint: JointGraph, kind: str) -> list[str]:
    """Per-example outputs are vectors over the batch."""
    node = joint.output(kind)
    sizes = [size_expression(size) for size in value(node).shape] if node is not None else None
    return [] if sizes == [joint.symbol] else [f"{kind} has shape {sizes} instead of [B]"]


def gradient_violations(joint: JointGraph) -> list[str]:
    """A gradient has its parameter's shape."""
    found = []
    held = joint.placeholders()
    for name, node in joint.named("gradient").items():
        if node is not None and list(value(node).shape) != list(value(held["parameter", name]).shape):
            found.append(f"the gradient of {name} has shape {list(value(node).shape)}")
    return found


def check(joint: JointGraph, after: str) -> None:
    """Raise if a pass left a malformed graph."""
    found = violations(joint)
    if found:
        raise CaptureError(f"internal error after {after}: " + "; ".join(found))
