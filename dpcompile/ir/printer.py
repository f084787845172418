"""One printer for graphs: readable, stable, used by tests, documentation, errors and `print_readable`.

Types come first in the field's short form (f32[B, 5]), the batch symbol is always B, ATen prefixes are dropped and
the package's own kernels read `dp.name`. Names are the roles of inputs and outputs where they have one.
"""

from __future__ import annotations

import operator
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from dpcompile import torch_private
from dpcompile.ir.graph import JointGraph, size_expression

DTYPES = {
    torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16", torch.int64: "i64",
    torch.int32: "i32", torch.int16: "i16", torch.int8: "i8", torch.uint8: "u8", torch.bool: "bool",
    torch.complex64: "c64", torch.complex128: "c128",
}  # fmt: skip


def type_text(fake: Any, symbol: sympy.Symbol) -> str:
    """f32[B, 5] for a tensor, (f32[B], f32[B]) for several results, i for a size."""
    if isinstance(fake, Tensor):
        sizes = [str(size) if isinstance(size, int) else size_text(size, symbol) for size in fake.shape]
        return f"{DTYPES.get(fake.dtype, str(fake.dtype))}[{', '.join(sizes)}]"
    if isinstance(fake, (tuple, list)):
        return f"({', '.join(type_text(item, symbol) for item in fake)})"
    return "None" if fake is None else "size"


def target_text(target: Any) -> str:
    """The short name of an operation."""
    if isinstance(target, torch_private.OpOverload):
        namespace, name = target._schema.name.split("::")
        return name if namespace == "aten" else f"{namespace}.{name}"
    if getattr(target, "__module__", "").startswith("dpcompile."):
        return f"dp.{target.__name__}"
    return str(target.__name__) if hasattr(target, "__name__") else str(target)


def argument_text(argument: Any, names: dict[fx.Node, str]) -> str:
    """An argument as it reads in the text."""
    if isinstance(argument, fx.Node):
        return names[argument]
    if isinstance(argument, (tuple, list)):
        inside = ", ".join(argument_text(item, names) for item in argument)
        return f"[{inside}]" if isinstance(argument, list) else f"({inside}{',' if len(argument) == 1 else ''})"
    if isinstance(argument, float):
        return f"{argument:g}"
    return str(argument)


def node_names(joint: JointGraph) -> dict[fx.Node, str]:
    """Roles for placeholders, expressions for sizes, fx's own names for the rest."""
    names: dict[fx.Node, str] = {}
    inputs = iter(joint.inputs)
    for node in joint.graph.nodes:
        if node.op == "placeholder":
            names[node] = next(inputs).name
        else:
            names[node] = size_text(node.meta.get("val"), joint.symbol) if is_size(node) else node.name
    return names


def size_text(size: Any, symbol: sympy.Symbol) -> str:
    """A size by the expression that it holds."""
    known = isinstance(size, (int, torch.SymInt))
    return str(size_expression(size).subs(symbol, sympy.Symbol("B"))) if known else str(size)


def node_line(node: fx.Node, names: dict[fx.Node, str], symbol: sympy.Symbol) -> str:
    """One node as `name: type = operation(arguments)`."""
    kind = type_text(node.meta.get("val"), symbol)
    if node.op == "get_attr":
        return f"{names[node]}: {kind} = constant"
    if node.target is operator.getitem:
        return f"{names[node]}: {kind} = {argument_text(node.args[0], names)}[{node.args[1]}]"
    given = [argument_text(argument, names) for argument in node.args]
    given += [f"{key}={argument_text(argument, names)}" for key, argument in node.kwargs.items()]
    return f"{names[node]}: {kind} = {target_text(node.target)}({', '.join(given)})"


def is_size(node: fx.Node) -> bool:
    """Sizes and their arithmetic are left out of the text."""
    return node.op == "call_function" and not isinstance(node.meta.get("val"), (Tensor, tuple, list))


def format_graph(joint: JointGraph, places: bool = False) -> str:
    """The whole graph as text; with `places`, a comment wherever the module changes."""
    names = node_names(joint)
    lines = ["inputs:"]
    last = None
    inputs = iter(joint.inputs)
    for node in joint.graph.nodes:
        if node.op == "placeholder":
            lines.append(f"  {names[node]}: {type_text(node.meta.get('val'), joint.symbol)}  # {next(inputs).kind}")
        elif node.op == "output":
            lines += ["outputs:"] + output_lines(joint, names)
        elif not is_size(node):
            place = node.meta.get("module_path", "")
            if places and place != last:
                lines.append(f"# {place or 'step'}  {node.meta.get('source_line', '')}".rstrip())
                last = place
            lines.append("  " + node_line(node, names, joint.symbol))
    return "\n".join(lines)


def output_lines(joint: JointGraph, names: dict[fx.Node, str]) -> list[str]:
    """What the graph returns, by role."""
    lines = []
    for kind, name in joint.outputs:
        node = joint.output(kind, name)
        lines.append(f"  {kind}{' ' + name if name else ''}: {names[node] if node is not None else None}")
    return lines
