"""Write results over operands that nothing reads any more, and materialise into memory kept between steps.

Before                                                     After
  gelu_b: f32[B, T, H] = gelu_backward(dy, x)                gelu_b: f32[B, T, H] = gelu_backward(dy, x, grad_input=dy)
  dx: f32[N, V] = dp.cross_entropy_backward(dl, x, ...)      dx: f32[N, V] = dp.cross_entropy_backward_(dl, x, ...)

Sound because an operand is written only if no later node reads its memory or a view of it (`analysis.aliases`), the
operation reads each element before it writes the same one, and inputs, constants and outputs are never written. It runs
last, for the eager backend only: inductor plans its own memory, and no later pass may move nodes.

Fresh memory is what most of a step's small operations cost on a CPU: its pages are mapped at the first touch and unmapped
when the step ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import fx

from dpcompile.analysis.aliases import Aliases
from dpcompile.ir.graph import JointGraph, callee, operand_node, size_expression, value
from dpcompile.kernels import cross_entropy
from dpcompile.kernels.workspace import MATERIALIZED, Workspace

aten = torch.ops.aten

OVER: Final[dict[Callable[..., Any], tuple[Callable[..., Any], str, tuple[int, ...]]]] = {
    **{getattr(aten, name).Tensor: (getattr(aten, name).out, "out", (0, 1)) for name in ("add", "sub", "mul", "div")},
    **{getattr(aten, name).default: (getattr(aten, name).out, "out", (0,)) for name in (
        "abs", "cos", "elu", "erf", "exp", "gelu", "hardswish", "hardtanh", "leaky_relu", "log", "neg", "relu", "rsqrt",
        "sigmoid", "silu", "sin", "softplus", "sqrt", "tanh",
    )},
    **{getattr(aten, name).default: (getattr(aten, name).grad_input, "grad_input", (0, 1)) for name in (
        "gelu_backward", "leaky_relu_backward", "sigmoid_backward", "silu_backward", "softplus_backward", "tanh_backward",
        "threshold_backward",
    )},
}  # fmt: skip
"""Elementwise operations: the form that writes where it is told, the name of that argument, operands it may take."""


def reuse_memory(joint: JointGraph) -> None:
    """Rewrite in the present order of the nodes."""
    aliases = Aliases(joint)
    for node in joint.graph.find_nodes(op="call_function", target=cross_entropy.cross_entropy_backward):
        logits = free_operand(node, (1,), aliases)
        if logits is not None:
            node.target = cross_entropy.cross_entropy_backward_
            aliases.join(node, logits)
            keep_product(logits, aliases)
    for node in joint.graph.nodes:
        if node.op == "call_function" and node.target in OVER:
            write_over(node, aliases)
        if node.op == "call_function" and node.target in MATERIALIZED:
            keep_memory(node, aliases)
    joint.module.recompile()


def write_over(node: fx.Node, aliases: Aliases) -> None:
    """Let an elementwise operation write over an operand, if one is free."""
    form, name, places = OVER[callee(node)]
    operand = free_operand(node, places, aliases)
    if operand is not None:
        node.target = form
        node.kwargs = {**node.kwargs, name: operand}
        aliases.join(node, operand)


def free_operand(node: fx.Node, places: tuple[int, ...], aliases: Aliases) -> fx.Node | None:
    """An operand of the result's own layout that dies here and shares memory with no other operand."""
    for place in places:
        operand = node.args[place] if place < len(node.args) else None
        if not isinstance(operand, fx.Node) or layout_of(operand) != layout_of(node) or not aliases.dies_at(operand, node):
            continue
        others = {aliases.class_of(other) for other in node.all_input_nodes if other is not operand}
        if aliases.class_of(operand) not in others:
            return operand
    return None


def layout_of(node: fx.Node) -> tuple[Any, ...]:
    """Sizes, strides, dtype and device of a node's value."""
    fake = node.meta["val"]
    if not isinstance(fake, torch.Tensor):
        return (node,)
    return tuple(map(size_expression, fake.shape)), tuple(map(size_expression, fake.stride())), fake.dtype, fake.device


def keep_product(logits: fx.Node, aliases: Aliases) -> None:
    """Compute the logits whose memory their gradient takes over, the largest piece of a language model, into a workspace."""
    source = logits
    while source.target in (aten.view.default, aten._unsafe_view.default):
        source = operand_node(source, 0)
    if source.target in (aten.mm.default, aten.addmm.default) and not source.kwargs:
        keep_memory(source, aliases)


def keep_memory(node: fx.Node, aliases: Aliases) -> None:
    """Write a result into a workspace, unless it outlives the step or its device's allocator keeps memory anyway."""
    if aliases.last[aliases.class_of(node)] != float("inf") and value(node).device.type == "cpu":
        node.target = Workspace(callee(node))
