"""Conditions on the batch size that tracing relied on: every way that a batch size can take is traced, and must be the same.

A trace at one batch size takes one way through the program's branches and leaves the conditions that it met, in order. For
each of them a batch size is searched that meets all conditions before it and fails this one; if no way that is known is
taken at that size, the program is traced there too, and the conditions met on that way are followed likewise. One example
is compared on numbers (`analysis.independence`), none never runs the graph. The search looks at sizes up to SCANNED and at
numbers that stand in the conditions; a size that comes later and meets the conditions of no known way is traced then
(`capture.admit`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from dpcompile import torch_private
from dpcompile.ir.errors import CaptureError, refusal
from dpcompile.ir.graph import JointGraph, size_expression, value

B = sympy.Symbol("B", integer=True, positive=True)
SMALLEST = 2  # one example is compared on numbers
SCANNED = 4096  # sizes up to which a way is searched one by one; beyond, at the numbers that stand in the conditions
LARGEST = 2**20
MOST = 16  # ways through one program
# torch's own sympy functions, as Python computes them.
FUNCTIONS = {
    "FloorDiv": lambda a, b: a // b, "CleanDiv": lambda a, b: a // b, "CeilDiv": lambda a, b: -(-a // b),
    "Mod": lambda a, b: a % b, "PythonMod": lambda a, b: a % b, "ModularIndexing": lambda a, b, c: a // b % c,
    "IntTrueDiv": lambda a, b: a / b, "FloatTrueDiv": lambda a, b: a / b, "PowByNatural": pow, "FloatPow": pow,
    "ToFloat": float, "FloorToInt": math.floor, "CeilToInt": math.ceil, "TruncToInt": int, "RoundToInt": round,
    "Max": max, "Min": min, "OpaqueUnaryFn_sqrt": math.sqrt, "OpaqueUnaryFn_log2": math.log2,
}  # fmt: skip


class Condition:
    """One condition on the batch size, as a function of it."""

    def __init__(self, expression: sympy.Basic, line: str) -> None:
        self.expression, self.line = expression, line
        self.numbers = {abs(int(number)) for number in expression.atoms(sympy.Integer)}
        self.function = sympy.lambdify(B, expression, modules=[FUNCTIONS, "math"])

    def __call__(self, size: int) -> bool:
        """Whether it holds at a batch size; what cannot be computed holds nowhere, so that the size is traced."""
        try:
            return bool(self.function(size))
        except (NameError, TypeError, ValueError, ArithmeticError):
            return bool(self.expression.subs(B, size) == sympy.true)

    def __str__(self) -> str:
        return str(self.expression)


Way = Sequence[Condition]


def check_every_way(recapture: Callable[[int], JointGraph], joint: JointGraph, hint: int) -> tuple[list[int], list[Way]]:
    """Trace every way through the program; all must give one graph. Returns the batch sizes that were traced and their ways."""
    ways: list[Way] = [way_of(joint)]
    sizes, pending = [hint], [ways[0]]
    while pending:
        way = pending.pop()
        for place, condition in enumerate(way):
            size = leading_off(way[:place], condition)
            if size is None or size in sizes or takes_known_way(ways, size):
                continue
            if len(sizes) == MOST:
                raise CaptureError(
                    refusal(f"the batch size decides between more than {MOST} ways", "", f"one of them is {condition}", WAY_OUT)
                )
            other = recapture(size)
            check_same(joint, other, size, condition)
            sizes.append(size)
            ways.append(way_of(other))
            pending.append(ways[-1])
    return sizes, ways


def takes_known_way(ways: Sequence[Way], size: int) -> bool:
    """Whether a batch of this size meets all conditions of some way."""
    return any(all(condition(size) for condition in way) for way in ways)


def first_unmet(ways: Sequence[Way], size: int) -> Condition:
    """The first condition of the first way that a batch of this size does not meet."""
    return next(condition for condition in ways[0] if not condition(size))


WAY_OUT = "remove the branch on the batch size, or choose the path by an argument"


def way_of(joint: JointGraph) -> list[Condition]:
    """The conditions on the batch size that a trace met, in order."""
    replaced = torch_private.specialised(joint.fakes)
    guards = [
        (guard.xreplace(replaced), torch_private.line_of(joint.fakes, guard)) for guard in torch_private.guards(joint.fakes)
    ]
    return [Condition(guard.xreplace({joint.symbol: B}), line) for guard, line in guards if joint.symbol in guard.free_symbols]


def leading_off(before: Way, condition: Condition) -> int | None:
    """The smallest batch size known to meet the conditions before and to fail this one; None if there is none."""
    return next((n for n in candidates([*before, condition]) if not condition(n) and all(c(n) for c in before)), None)


def candidates(conditions: Way) -> Iterator[int]:
    """Batch sizes of at least 2: those near the numbers that stand in the conditions, then all up to SCANNED."""
    numbers = {number for condition in conditions for number in condition.numbers}
    numbers |= {large // small for large in numbers for small in numbers if 1 < small < large} | set(map(math.isqrt, numbers))
    near = {number + step for number in numbers for step in (-1, 0, 1)}
    yield from sorted(n for n in near if SMALLEST <= n < LARGEST)
    yield from range(SMALLEST, SCANNED + 1)


def check_same(joint: JointGraph, other: JointGraph, size: int, condition: Condition) -> None:
    """Refuse a program whose graph is another one at this batch size."""
    if outline(other) != (joint.outline or outline(joint)):
        raise CaptureError(
            refusal(
                f"the model takes another path when the batch size is {size}",
                condition.line or first_difference(joint, other),
                f"tracing relied on {condition}",
                WAY_OUT,
            )
        )


def outline(joint: JointGraph) -> list[str]:
    """The graph as lines that do not depend on names of symbols, nor on which tensor a size is read from, or how often."""
    nodes = [node for node in joint.graph.nodes if not is_size(node)]
    names = {node: f"%{i}" for i, node in enumerate(nodes)}
    names |= {node: f"size {size_text(joint, node)}" for node in joint.graph.nodes if is_size(node)}

    def text(argument: Any) -> str:
        mapped = fx.node.map_arg(argument, lambda n: names[n])
        return str(mapped)

    lines = []
    for node in nodes:
        shape = ""
        if isinstance(node.meta.get("val"), Tensor):
            shape = str([size_expression(s).subs(joint.symbol, B) for s in value(node).shape])
        target = constant(joint, node) if node.op == "get_attr" else node.target if node.op != "placeholder" else ""
        lines.append(f"{node.op} {target} {text(node.args)} {text(node.kwargs)} {shape}")
    return lines


def is_size(node: fx.Node) -> bool:
    """Whether a node reads the size of a tensor."""
    return node.target is torch.ops.aten.sym_size.int


def size_text(joint: JointGraph, node: fx.Node) -> str:
    """A size as an expression in the batch size."""
    return str(size_expression(node.meta["val"]).subs(joint.symbol, B))


def constant(joint: JointGraph, node: fx.Node) -> str:
    """A constant of the graph by its values."""
    held = getattr(joint.module, str(node.target))
    if not isinstance(held, Tensor):
        return str(held)
    data = held.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{held.dtype} {list(held.shape)} {hashlib.sha256(data).hexdigest()}"


def first_difference(left: JointGraph, right: JointGraph) -> str:
    """The user's line of the first node at which two captures differ."""
    nodes = [node for node in left.graph.nodes if not is_size(node)]
    pairs = zip(outline(left), outline(right), nodes, strict=False)
    return next((node.meta.get("source_line", "") for a, b, node in pairs if a != b), "")
