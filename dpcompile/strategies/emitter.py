"""Insert nodes into the joint graph with their fake values, each per-example operand brought into layout once.

The fake value of every new node is computed at once under the capture's own fake mode, so that an emission which
would fix the batch size, or give a wrong shape, is found where it happens.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from dpcompile import torch_private
from dpcompile.ir.errors import CaptureError
from dpcompile.ir.graph import JointGraph, value
from dpcompile.ir.site import Operand
from dpcompile.kernels import layout
from dpcompile.kernels.shapes import SHAPES
from dpcompile.kernels.traceable import TRACEABLE


class Emitter:
    """Emits nodes before a moving anchor; equal calls on equal operands are emitted once."""

    def __init__(self, joint: JointGraph) -> None:
        self.joint = joint
        self.anchor: fx.Node = joint.graph.output_node()
        self.fakes: dict[Any, Any] = {}
        self.place: tuple[str, str] = ("", "")
        self.known: dict[tuple[Any, ...], fx.Node] = {
            (node.target, repr(node.args), *([repr(node.kwargs)] if node.kwargs else ())): node
            for node in joint.graph.nodes
            if node.op == "call_function"
        }

    def at(self, node: fx.Node) -> Emitter:
        """Emit right behind this node, and say in the graph that the nodes belong to it."""
        self.anchor = node.next
        self.place = node.meta.get("module_path", ""), node.meta.get("source_line", "")
        return self

    def call(self, function: Callable[..., Any], *args: Any, memo: bool = True) -> fx.Node:
        """One call of a kernel (or ATen operation) on nodes and constants."""
        key = (function, repr(args))
        if memo and key in self.known:
            return self.known[key]
        graph = self.joint.graph
        with graph.inserting_before(self.anchor):
            node = graph.call_function(function, args)
        node.meta["val"] = self.fake(function, args)
        node.meta["module_path"], node.meta["source_line"] = self.place
        self.known[key] = node
        return node

    def call_with(self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> fx.Node:
        """A traced call, copied with its keyword arguments."""
        if not kwargs:
            return self.call(function, *args)
        key = (function, repr(tuple(args)), repr(kwargs))
        if key in self.known:
            return self.known[key]
        with self.joint.graph.inserting_before(self.anchor):
            node = self.joint.graph.call_function(function, tuple(args), kwargs)
        node.meta["val"] = self.fake(function, tuple(args), kwargs)
        node.meta["module_path"], node.meta["source_line"] = self.place
        self.known[key] = node
        return node

    def constant(self, tensor: Tensor) -> fx.Node:
        """A tensor that belongs to the graph."""
        name = f"constant_{len(self.known)}"
        self.joint.module.register_buffer(name, tensor)
        with self.joint.graph.inserting_before(self.anchor):
            node = self.joint.graph.get_attr(name)
        node.meta["val"] = self.joint.fakes.from_tensor(tensor, static_shapes=True)
        return node

    def fake(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        """The fake result, computed once for equal operands; refuses if the call would fix the batch size."""
        key = (function, *map(signature, fx.node.map_arg((args, kwargs or {}), stand_in)))
        if key not in self.fakes:
            self.fakes[key] = self.computed(function, args, kwargs)
        return self.fakes[key]

    def computed(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        """The fake result of one call."""
        fakes, keywords = fx.node.map_arg((args, kwargs or {}), lambda node: node.meta["val"])
        mode = self.joint.fakes
        with torch_private.tracing_context(mode), torch_private.unguarded_convolutions(mode), torch.no_grad():
            stand_in = SHAPES.get(function) or TRACEABLE.get(function, function)
            result = stand_in(*fakes, **keywords)
        if self.joint.symbol in torch_private.specialised(mode):
            raise CaptureError(f"{getattr(function, '__name__', function)} would fix the batch size")
        return result

    def item(self, node: fx.Node, index: int) -> fx.Node:
        """One of several results."""
        return self.call(operator.getitem, node, index)

    def rows(self, operand: Operand) -> fx.Node:
        """A matrix operand as f[B, T, w]; a stack of one matrix counts as the matrix."""
        if len(value(operand.node).shape) == 3:
            matrix = self.call(torch.ops.aten.select.int, operand.node, 0, 0)
            return self.call(layout.positions, matrix, operand.dim - 1, operand.outer, operand.inner)
        return self.call(layout.positions, operand.node, operand.dim, operand.outer, operand.inner)

    def flat(self, operand: Operand) -> fx.Node:
        """A matrix operand with one position per example as f[B, w]."""
        if len(value(operand.node).shape) == 3:
            return self.call(torch.ops.aten.select.int, self.rows(operand), 1, 0)
        return operand.node if operand.dim == 0 else self.call(torch.ops.aten.t.default, operand.node)

    def examples(self, operand: Operand) -> fx.Node:
        """An operand with the examples first: f[B, *before, outer*inner, *after]."""
        return self.call(layout.examples_first, operand.node, operand.dim, operand.outer, operand.inner)

    def images(self, operand: Operand) -> fx.Node:
        """An operand whose examples are its first dimension already."""
        assert (operand.dim, operand.folded) == (0, 1)
        return operand.node


def dtype_of(node: fx.Node) -> torch.dtype:
    """The dtype of a node's value."""
    fake: Tensor = value(node)
    return fake.dtype


class Fake:
    """The fake value of an operand, to tell it from constants in a signature."""

    def __init__(self, value: Any) -> None:
        self.value = value


def stand_in(node: fx.Node) -> Any:
    """What stands for an operand in a signature (Any, since fx knows only its own argument types)."""
    return Fake(node.meta["val"])


def signature(argument: Any) -> Any:
    """A hashable description of arguments: sizes, strides and dtypes of tensors, constants as they are."""
    if isinstance(argument, Fake):
        fakes = argument.value if isinstance(argument.value, (tuple, list)) else (argument.value,)
        return tuple(describe(fake) for fake in fakes)
    if isinstance(argument, (tuple, list)):
        return (type(argument).__name__, *map(signature, argument))
    if isinstance(argument, dict):
        return tuple((key, signature(item)) for key, item in argument.items())
    return (type(argument).__name__, argument)


def describe(fake: Any) -> Any:
    """What the fake result of an operation depends on, for one operand."""
    if not isinstance(fake, Tensor):
        return str(fake)
    return (str(tuple(fake.shape)), str(fake.stride()), fake.dtype, fake.device, str(fake.storage_offset()))
