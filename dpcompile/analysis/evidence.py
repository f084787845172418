"""What a verdict of independence rests on, as counts and names that a certificate can state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from dpcompile import torch_private
from dpcompile.analysis.example_axis import is_shared
from dpcompile.batch import Batch
from dpcompile.ir.graph import JointGraph
from dpcompile.rules.rule import Result


@dataclass(frozen=True)
class Evidence:
    """Facts about one captured graph.

    operations: how often each operation is applied to values that depend on the batch; shared: how many calls see none of
    them. sizes: batch sizes at which the program was traced. constants: tensors that are the same for every example though
    they are neither arguments nor the model's own. fixed: arguments without example axis, numbers among them with their
    values. frozen: parameters and buffers that are not trained. numeric: whether a few examples were run through the graph.
    """

    operations: Mapping[str, int]
    shared: int
    sizes: tuple[int, ...]
    constants: tuple[str, ...]
    fixed: tuple[str, ...]
    frozen: tuple[str, ...]
    numeric: bool


def evidence(joint: JointGraph, states: Mapping[fx.Node, Result], batch: Batch, numeric: bool) -> Evidence:
    """The facts about a graph that was accepted."""
    calls = [node for node in joint.graph.nodes if node.op == "call_function"]
    counted = Counter(name_of(node) for node in calls if not is_shared(states[node]))
    inputs = {kind: tuple(item.name for item in joint.inputs if item.kind == kind) for kind in ("shared", "state")}
    layout = batch.layout
    numbers = tuple(
        f"{layout.paths[place]} = {value!r}"
        for place, value in layout.constants.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    )
    constants, fixed = tuple(joint.constants), (*inputs["shared"], *numbers)
    shared = len(calls) - sum(counted.values())
    return Evidence(dict(sorted(counted.items())), shared, joint.sizes, constants, fixed, inputs["state"], numeric)


def name_of(node: fx.Node) -> str:
    """An operation as messages name it."""
    target = node.target
    return str(target) if isinstance(target, torch_private.OpOverload) else str(getattr(target, "__name__", target))
