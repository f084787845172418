"""Conditions on the batch size that tracing relied on: each is checked by a capture on its other side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
from torch import Tensor, fx

from dpcompile import torch_private
from dpcompile.ir.errors import CaptureError, refusal
from dpcompile.ir.graph import JointGraph, size_expression, value


def check_guard(recapture: Callable[[int], JointGraph], joint: JointGraph, guard: sympy.Basic, hint: int) -> None:
    """Capture again on the other side of a condition on the batch size; the graph must be the same."""
    guard = guard.xreplace(torch_private.specialised(joint.fakes))
    if joint.symbol not in guard.free_symbols:
        return
    bounds = {int(number) for number in guard.atoms(sympy.Integer)}
    candidates = sorted({abs(bound) + step for bound in bounds for step in (-1, 0, 1)} | {2, 3, 4, 5, 7, 8, 9, hint + 1})
    others = [n for n in candidates if 2 <= n < 2**20 and n != hint and guard.subs(joint.symbol, n) == sympy.false]
    if not others:  # the other side holds only B = 0 or 1: B = 1 is compared numerically, B = 0 never runs the graph
        return
    other = recapture(others[0])
    if outline(other) != outline(joint):
        raise CaptureError(
            refusal(
                f"the model takes another path when the batch size is {others[0]}",
                first_difference(joint, other),
                f"tracing relied on {guard}",
                "remove the branch on the batch size, or choose the path by an argument",
            )
        )


def outline(joint: JointGraph) -> list[str]:
    """The graph as lines that do not depend on names of symbols."""
    index = {node: i for i, node in enumerate(joint.graph.nodes)}

    def text(argument: Any) -> str:
        mapped = fx.node.map_arg(argument, lambda n: f"%{index[n]}")
        return str(mapped)

    lines = []
    for node in joint.graph.nodes:
        shape = ""
        if isinstance(node.meta.get("val"), Tensor):
            shape = str([size_expression(s).subs(joint.symbol, sympy.Symbol("B")) for s in value(node).shape])
        lines.append(f"{node.op} {node.target if node.op != 'placeholder' else ''} {text(node.args)} {text(node.kwargs)} {shape}")
    return lines


def first_difference(left: JointGraph, right: JointGraph) -> str:
    """The user's line of the first node at which two captures differ."""
    pairs = zip(outline(left), outline(right), left.graph.nodes, strict=False)
    return next((node.meta.get("source_line", "") for a, b, node in pairs if a != b), "")
