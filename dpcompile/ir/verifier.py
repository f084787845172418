"""Check the graph after every pass: a list of violations, empty when the graph is well formed.

The batch size must stay free: it is fixed nowhere, no value has a size that follows from another symbol, the inputs of the
batch still have it at the examples' axis, and a pass relies on no condition on it that fails for some number of examples.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import fx

from dpcompile import torch_private
from dpcompile.ir.errors import CaptureError
from dpcompile.ir.graph import JointGraph, size_expression, value

TRIED = (*range(1, 130), 200, 256, 500, 512, 1000, 1024, 4096, 65536)
"""Batch sizes at which a condition that a pass has added must hold."""


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
    found += size_violations(joint) + condition_violations(joint)
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


def size_violations(joint: JointGraph) -> list[str]:
    """Where the batch size is no longer free."""
    found = ["the batch size became fixed"] if joint.symbol in torch_private.specialised(joint.fakes) else []
    for item, node in zip(joint.inputs, joint.graph.find_nodes(op="placeholder"), strict=True):
        if item.kind == "batch" and item.dim is not None and size_expression(value(node).shape[item.dim]) != joint.symbol:
            found.append(f"{node.name} no longer has the batch size at the examples' axis")
    for node in joint.graph.nodes:
        strangers = set().union(*(size_expression(size).free_symbols for size in sizes_of(node.meta.get("val")))) - {joint.symbol}
        if strangers:
            found.append(f"a size of {node.name} is {', '.join(map(str, strangers))}, which is not the batch size")
    return found


def condition_violations(joint: JointGraph) -> list[str]:
    """Conditions on the batch size that passes have added, and that fail for some number of examples."""
    added = [guard for guard in torch_private.guards(joint.fakes)[joint.conditions :] if joint.symbol in guard.free_symbols]
    return [f"{guard} is relied on" for guard in added if any(guard.subs(joint.symbol, n) == sympy.false for n in TRIED)]


def sizes_of(fakes: Any) -> list[Any]:
    """Every size of a value, or of several."""
    if isinstance(fakes, (tuple, list)):
        return [size for fake in fakes for size in sizes_of(fake)]
    return list(fakes.shape) if isinstance(fakes, torch.Tensor) else [fakes] if isinstance(fakes, torch.SymInt) else []


def shape_violations(joint: JointGraph, kind: str) -> list[str]:
    """Per-example outputs are vectors over the batch."""
    node = joint.output(kind)
    sizes = [size_expression(size) for size in value(node).shape] if node is not None else None
    if kind == "clip_factors" and sizes is not None and len(sizes) == 2 and sizes[1].is_Integer:
        sizes = sizes[:1]  # one column for every group of parameters
    return [] if sizes == [joint.symbol] else [f"{kind} has shape {sizes} instead of [B]"]


def gradient_violations(joint: JointGraph) -> list[str]:
    """A gradient has its parameter's shape."""
    found = []
    held = joint.placeholders()
    for name, node in joint.gradients().items():
        if node is not None and list(value(node).shape) != list(value(held["parameter", name]).shape):
            found.append(f"the gradient of {name} has shape {list(value(node).shape)}")
    return found


def check(joint: JointGraph, after: str) -> None:
    """Raise if a pass left a malformed graph."""
    found = violations(joint)
    if found:
        raise CaptureError(f"internal error after {after}: " + "; ".join(found))
