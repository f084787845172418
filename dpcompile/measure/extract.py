"""The nodes that one option adds for one site, as a graph of its own.

joint graph with norm and sum of one site        extracted
  relu:   f32[B, T, d] = ...                       relu, gelu_backward, factors = placeholders
  gelu_backward: f32[B, T, p] = ...                sqnorm_gram = dp.sqnorm_gram(relu, gelu_backward)
  sqnorm_gram = dp.sqnorm_gram(...)                contract = dp.contract(relu, gelu_backward, factors)
  contract = dp.contract(...)                      return sqnorm_gram, contract
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from dpcompile.ir.graph import JointGraph, callee, size_expression, value
from dpcompile.ir.site import Site
from dpcompile.kernels.workspace import MATERIALIZED, Workspace
from dpcompile.strategies import NORMS, SUMS, interval
from dpcompile.strategies.emitter import Emitter
from dpcompile.strategies.sums import emit_site


@dataclass(frozen=True)
class SiteProgram:
    """Norm and clipped sum of one site; `operands` are the nodes of the joint graph that it reads."""

    module: fx.GraphModule
    operands: tuple[fx.Node, ...]

    def inputs(self, batch_size: int) -> list[Tensor]:
        """Random operands with the sizes, strides and dtypes that they have in the step."""
        return [like(value(node), batch_size) for node in self.operands]


def extract(joint: JointGraph, site: Site, norm: str, total: str) -> SiteProgram:
    """Emit, copy what was emitted, and take it out again: the joint graph is left as it was."""
    before = set(joint.graph.nodes)
    roots = emit(joint, site, norm, total)
    emitted = ordered(roots, before)
    graph, copies = fx.Graph(), {}
    operands = [n for n in joint.graph.nodes if n in before and any(n in e.all_input_nodes for e in emitted)]
    for node in operands:
        copies[node] = graph.placeholder(node.name)
    for node in emitted:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.target in MATERIALIZED and value(node).device.type == "cpu":
            copies[node].target = Workspace(callee(node))
    graph.output(tuple(copies[root] for root in roots))
    for node in reversed([node for node in joint.graph.nodes if node not in before]):
        joint.graph.erase_node(node)
    return SiteProgram(fx.GraphModule(joint.module, graph), tuple(operands))


def emit(joint: JointGraph, site: Site, norm: str, total: str) -> list[fx.Node]:
    """Norm and sum; the losses stand for the clip factors, which have their shape and dtype."""
    emitter = Emitter(joint)
    emitter.at(site.terms[-1].contraction.node)
    emitted = NORMS[norm].emit(site, emitter)
    reaches = interval.emit(site, NORMS[norm], SUMS[total], emitter)
    factors = joint.output("losses")
    assert factors is not None
    emitter.anchor = joint.graph.output_node()
    clipped = emit_site(site, NORMS[norm], SUMS[total], factors, emitter, {})
    return [emitted.squared, *(bound for bound, _ in emitted.bounds), *reaches, clipped]


def ordered(roots: Iterable[fx.Node], known: set[fx.Node]) -> list[fx.Node]:
    """What the roots need beyond what was known, operands first."""
    found: dict[fx.Node, None] = {}

    def visit(node: fx.Node) -> None:
        if node in known or node in found:
            return
        for operand in node.all_input_nodes:
            visit(operand)
        found[node] = None

    for root in roots:
        visit(root)
    return list(found)


def like(fake: Tensor, batch_size: int) -> Tensor:
    """A random tensor with the sizes and strides of a fake one at this batch size; indices are zeros and ones."""
    sizes, strides = ([number(n, batch_size) for n in numbers] for numbers in (fake.shape, fake.stride()))
    room = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) if all(sizes) else 0
    if fake.dtype.is_floating_point:
        return torch.randn(room, dtype=fake.dtype, device=fake.device).as_strided(sizes, strides)
    return torch.randint(0, 2, (room,), device=fake.device).to(fake.dtype).as_strided(sizes, strides)


def number(size: int | torch.SymInt, batch_size: int) -> int:
    """A size at this batch size."""
    expression = size_expression(size)
    return int(expression.subs(dict.fromkeys(expression.free_symbols, batch_size)))
