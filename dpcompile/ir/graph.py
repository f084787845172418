"""The joint graph: forward and backward of one step at ATen level, with the meaning of every input and output.

No pass ever guesses from a node's name what a placeholder is: this record says it. Outputs are the tuple
`(losses, *gradients, *buffers)` after capture; passes that add outputs extend `outputs` with their names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx

from dpcompile import torch_private


@dataclass(frozen=True, slots=True)
class Input:
    """One placeholder of the graph.

    kind: "parameter" (trainable), "state" (frozen parameter or buffer), "batch" (has the example axis at `dim`)
    or "shared" (a batch leaf without example axis). `name` is the dotted path in the module or the pytree path.
    """

    kind: str
    name: str
    dim: int | None = None


@dataclass
class JointGraph:
    """A traced step; `inputs` and `outputs` stand in the order of the placeholders and of the output tuple.

    outputs: ("losses", ""), ("gradient", parameter name), ("buffer", buffer name), later also ("norms", ""), ...,
    and ("own_gradient", parameter name) in place of a gradient that the runtime still multiplies by the only example's factor.
    symbol: the one free batch size. fakes: the fake mode that owns it. notes: facts for the report. sizes: the batch sizes
    at which the program was traced, with one and the same graph. conditions: how many conditions on sizes tracing has met.
    kept: attributes of modules that forward has written and left for its next call. buffers: the names of the state that
    forward may write to. ways: the conditions on the batch size that each traced way met. admitted: batch sizes that are known
    to take one of these ways. outline: the graph as it was traced, in lines to compare other traces with, where it is not
    the same any more.
    """

    module: fx.GraphModule
    inputs: list[Input]
    outputs: list[tuple[str, str]]
    symbol: sympy.Symbol
    fakes: torch_private.Fakes
    notes: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    sizes: tuple[int, ...] = ()
    conditions: int = 0
    kept: tuple[str, ...] = ()
    buffers: frozenset[str] = frozenset()
    ways: list[Any] = field(default_factory=list)
    admitted: set[int] = field(default_factory=set)
    outline: list[str] = field(default_factory=list)

    @property
    def graph(self) -> fx.Graph:
        """The fx graph."""
        return self.module.graph

    def placeholders(self) -> dict[tuple[str, str], fx.Node]:
        """The placeholder of every input, by (kind, name)."""
        nodes = [node for node in self.graph.nodes if node.op == "placeholder"]
        return {(item.kind, item.name): node for item, node in zip(self.inputs, nodes, strict=True)}

    def output(self, kind: str, name: str = "") -> fx.Node | None:
        """The node that is returned under this name; None for a gradient that does not exist."""
        values = self.graph.output_node().args[0]
        assert isinstance(values, (tuple, list))
        value = values[self.outputs.index((kind, name))]
        assert value is None or isinstance(value, fx.Node)
        return value

    def named(self, kind: str) -> dict[str, fx.Node | None]:
        """All outputs of one kind, by name."""
        return {name: self.output(kind, name) for other, name in self.outputs if other == kind}

    def gradients(self) -> dict[str, fx.Node | None]:
        """What is returned for every parameter: sums, or the only example's own gradient, which the runtime multiplies."""
        return {**self.named("gradient"), **self.named("own_gradient")}

    def replace_outputs(self, outputs: dict[tuple[str, str], fx.Node | None]) -> None:
        """Return these nodes, in this order, instead of the present outputs."""
        self.outputs = list(outputs)
        self.graph.output_node().args = (tuple(outputs.values()),)


def value(node: fx.Node) -> torch.Tensor:
    """The fake tensor of a node: its shape (with the batch symbol), dtype and strides."""
    fake = node.meta["val"]
    assert isinstance(fake, torch.Tensor), node
    return fake


def operand_node(node: fx.Node, index: int) -> fx.Node:
    """The positional argument at this place, which is another node."""
    found = node.args[index]
    assert isinstance(found, fx.Node), f"argument {index} of {node} is {found}"
    return found


def integer(node: fx.Node, index: int) -> int:
    """The positional argument at this place, which is a known integer: a dimension or the number of a result."""
    found = node.args[index]
    assert isinstance(found, int), f"argument {index} of {node} is {found}"
    return found


def callee(node: fx.Node) -> Callable[..., Any]:
    """What a call runs: an ATen operation, a kernel or a Python operator."""
    assert not isinstance(node.target, str), f"{node} is no call of a function"
    return node.target


def size_expression(size: int | torch.SymInt) -> sympy.Expr:
    """A size as a sympy expression in the batch symbol."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def shape_text(fake: object) -> str:
    """The shape of a tensor as messages show it, the batch size as B; nothing for what is no tensor."""
    if not isinstance(fake, torch.Tensor):
        return ""
    sizes = [size_expression(size) for size in fake.shape]
    return str([size.xreplace(dict.fromkeys(size.free_symbols, sympy.Symbol("B"))) for size in sizes])


def where(node: fx.Node) -> str:
    """Module path and user's source line of a node, as far as capture could keep them."""
    path, line = node.meta.get("module_path", ""), node.meta.get("source_line", "")
    return ", ".join(part for part in (path, line) if part)
