"""Captured graphs of zoo models for tests that look at them or rewrite them, room by room, without dpcompile()."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from oracle import per_example_gradients
from torch import Tensor, fx, nn
from zoo import ZOO
from zoo_case import Case

from dpcompile.analysis.example_axis import example_axis
from dpcompile.analysis.sites import find_sites
from dpcompile.batch import Batch, flatten_batch
from dpcompile.capture import capture
from dpcompile.cost.hardware import HARDWARE
from dpcompile.ir.graph import JointGraph
from dpcompile.ir.site import Site
from dpcompile.ir.verifier import check
from dpcompile.losses import Program, make_program
from dpcompile.passes import PIPELINE
from dpcompile.passes.order import order_nodes
from dpcompile.plan.plan import Plan
from dpcompile.plan.select import Wanted, choose
from dpcompile.rules.rule import Result


@dataclass(frozen=True)
class Captured:
    """A model's joint graph with what the analyses say about it."""

    program: Program
    batch: Batch
    joint: JointGraph
    states: dict[fx.Node, Result]
    sites: list[Site]
    unused: list[str]

    def site(self, parameter: str) -> Site:
        """The site of a parameter."""
        return next(site for site in self.sites if site.parameter == parameter)

    def copied(self) -> Captured:
        """The same on a copy of the graph, which a test may rewrite; nodes keep their fake values."""
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.joint.graph, {}))
        module = fx.GraphModule(self.joint.module, graph)
        joint = replace(self.joint, module=module, inputs=list(self.joint.inputs), outputs=list(self.joint.outputs))
        return analysed(self.program, self.batch, joint)

    def plan(self, strategy: Wanted = "auto") -> Plan:
        """The plan on the test machine."""
        return choose(self.sites, HARDWARE["cpu"], self.batch.size, strategy)


def analysed(program: Program, batch: Batch, joint: JointGraph) -> Captured:
    """A graph with its states and sites."""
    states = example_axis(joint)
    return Captured(program, batch, joint, states, *find_sites(joint, states))


def captured(model: nn.Module, loss: Any, *args: Any, batch_dim: Any = 0, **kwargs: Any) -> Captured:
    """Capture and analyse a model."""
    program, batch = make_program(model, loss), flatten_batch(args, kwargs, batch_dim)
    return analysed(program, batch, capture(program, batch))


@cache
def captured_case(name: str) -> Captured:
    """Capture and analyse a model of the zoo in float64, once for all tests."""
    case = case_named(name)
    model, loss = case.build(torch.float64)
    return captured(model, loss, *case.batch(3, torch.float64), batch_dim=case.batch_dim, **case.kwargs(3, torch.float64))


@cache
def oracle_gradients(name: str) -> dict[str, Tensor]:
    """Per-example gradients by the oracle's loop."""
    case = case_named(name)
    model, loss = case.build(torch.float64)
    _, gradients = per_example_gradients(model, loss, case.batch(3, torch.float64), case.kwargs(3, torch.float64), case.batch_dim)
    return gradients


def case_named(name: str) -> Case:
    """A row of the zoo."""
    return next(case for case in ZOO if case.name == name)


def rewritten(captured: Captured, strategy: Wanted = "auto", passes: Any = PIPELINE) -> Captured:
    """A copy after some passes, checked after each."""
    copy = captured.copied()
    plan = copy.plan(strategy)
    for rewrite in passes:
        rewrite(copy.joint, plan)
        order_nodes(copy.joint)
        check(copy.joint, rewrite.__name__)
    copy.joint.module.recompile()
    return copy


def tensors(captured: Captured, max_grad_norm: float | None = None) -> list[Tensor]:
    """The graph's inputs: parameters and buffers, the batch, and mask and clip norm where the graph has them."""
    held = dict(captured.program.model.named_parameters()) | dict(captured.program.model.named_buffers())
    loss, prefix = captured.program.given_loss(), captured.program.loss_name
    if isinstance(loss, nn.Module):
        held |= {f"{prefix}.{n}": p for n, p in (*loss.named_parameters(), *loss.named_buffers())}
    kept = [held[item.name].detach() for item in captured.joint.inputs if item.kind in ("parameter", "state")]
    if max_grad_norm is None:
        return [*kept, *captured.batch.tensors]
    return [
        *kept,
        *captured.batch.tensors,
        torch.ones(captured.batch.size, dtype=torch.bool),
        torch.tensor(max_grad_norm, dtype=torch.float64),
    ]
