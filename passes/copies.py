"""Run the step once with a copy of the parameters for every example (Rochette et al. 2019, "multi"; for comparison).

Before                                              After
  relu:   f32[B, H] = relu(addmm)                     copies: (f32[B], f32[B, C, H]) = dp.copies(fc2_weight, x, y)
  grad_y: f32[B, C] = _log_softmax_backward(...)      losses: f32[B] = copies[0]
  mm_1:   f32[C, H] = mm(t_3, relu)                   own:    f32[B, C, H] = copies[1]
  return (losses, mm_1)                               total:  f32[C, H] = sum(own, [0])
                                                      return (losses, total)

Sound because the step is the same for every batch size, one included, so that the step of a batch of one gives that
example's own loss and gradient, and because examples are shown to be independent before. The passes that follow find
gradients that are sums over examples of what is per example already, whatever the layer was.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from dpcompile import torch_private
from dpcompile.ir.errors import StrategyError
from dpcompile.ir.graph import JointGraph, size_expression, value, where
from dpcompile.ir.randomness import draws
from dpcompile.ir.site import Operand, Site, Term, Total
from dpcompile.kernels.copies import Copies, as_batch_of_one, size_along, vmapped
from dpcompile.strategies.emitter import Emitter

aten = torch.ops.aten
TRIED = 2
"""Examples of the trial run."""


def emit_copies(joint: JointGraph, sites: list[Site]) -> list[Site]:
    """Losses and gradients by one call; the sites' gradients become plain sums over examples."""
    call = Copies(step_of_one(joint, sites))
    emitter = Emitter(joint)
    emitter.anchor = joint.graph.output_node()
    results = emitter.call(call, *(node for node in joint.graph.nodes if node.op == "placeholder"))
    outputs = {key: joint.output(*key) for key in joint.outputs}
    outputs["losses", ""] = emitter.item(results, 0)
    found = []
    for index, site in enumerate(sites):
        own = emitter.item(results, index + 1)
        total = emitter.call(aten.sum.dim_IntList, own, [0])
        outputs["gradient", site.parameter] = total
        contraction = Total(total, Operand(own, 0), (0,), site.shape, math.prod(site.shape))
        found.append(replace(site, gradient=total, terms=(Term(contraction),), tail=(), isometric=True))
    joint.replace_outputs(outputs)
    return found


def step_of_one(joint: JointGraph, sites: list[Site]) -> JointGraph:
    """A copy of the captured step that returns losses and the sites' gradients, in a form that torch.vmap can run."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.graph_copy(joint.graph, copies)
    losses = joint.output("losses")
    assert losses is not None
    graph.output((copies[losses], *(copies[site.gradient] for site in sites)))
    step = replace(joint, module=fx.GraphModule(joint.module, graph), inputs=list(joint.inputs),
                   outputs=[("losses", ""), *(("gradient", site.parameter) for site in sites)])  # fmt: skip
    for node in graph.nodes:
        make_runnable(node)
    graph.eliminate_dead_code()
    step.module.recompile()
    return step


def make_runnable(node: fx.Node) -> None:
    """Sizes as numbers; no memory formats, which speak of ranks without the copies; no ends beyond all sizes."""
    if node.target is aten.sym_size.int:
        node.target = size_along
    if "memory_format" in node.kwargs:
        node.kwargs = {name: argument for name, argument in node.kwargs.items() if name != "memory_format"}
    if node.target is aten.slice_scatter.default and len(node.args) > 4 and node.args[4] == sys.maxsize:
        end = value(node).shape[int(node.args[2])]  # type: ignore[arg-type]
        node.args = (*node.args[:4], *([end] if isinstance(end, int) else [None]), *node.args[5:])


def check_copies(joint: JointGraph, sites: list[Site]) -> tuple[str, ...]:
    """Refuse what torch.vmap cannot run: random draws, and operations that read values or have no rule. Returns what the report
    has to say of operations that do run, but one example at a time."""
    drawn = next((node for node in joint.graph.nodes if draws(node)), None)
    if drawn is not None:
        raise StrategyError(unfit(drawn, "it draws random numbers, which copies of the parameters must not share"))
    step = step_of_one(joint, sites)
    fakes = torch_private.new_fakes()
    with fakes, torch.no_grad():
        tensors = [empty_like(value(node)) for node in step.graph.find_nodes(op="placeholder")]
        expanded = [t.expand(TRIED, *t.shape) if i.kind == "parameter" else t for i, t in zip(step.inputs, tensors, strict=True)]
        trial = Trial(step.module)
        try:
            torch.vmap(lambda *own: trial.run(*as_batch_of_one(step.inputs, own), enable_io_processing=False),
                       in_dims=tuple(map(vmapped, step.inputs)))(*expanded)  # fmt: skip
        except Exception as error:  # whatever torch.vmap, or an operation under it, raises
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise StrategyError(unfit(trial.node, f"torch.vmap cannot run it: {reason}")) from error
    return trial.notes()


class Trial(fx.Interpreter):
    """Remembers the node that is running, and the operations that torch.vmap has no batched form of."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.node: fx.Node | None = None
        self.unbatched: dict[str, None] = {}

    def run_node(self, n: fx.Node) -> Any:
        """One node; one example at a time if there is no other way."""
        self.node = n
        try:
            with torch_private.vmap_fallback(False):
                return super().run_node(n)
        except RuntimeError:
            with torch_private.vmap_fallback(True):
                result = super().run_node(n)
        self.unbatched[str(n.target)] = None
        return result

    def notes(self) -> tuple[str, ...]:
        """What is no batched pass through the copies."""
        names = ", ".join(self.unbatched)
        return (f"multi: torch.vmap has no batched form of {names} and runs it one example at a time",) if names else ()


def empty_like(fake: torch.Tensor) -> torch.Tensor:
    """A tensor of these sizes with a few examples."""
    sizes = [int(size_expression(size).subs(dict.fromkeys(size_expression(size).free_symbols, TRIED))) for size in fake.shape]
    return torch.empty(sizes, dtype=fake.dtype, device=fake.device)


def unfit(node: fx.Node | None, reason: str) -> str:
    """The refusal."""
    place = f" ({where(node)})" if node is not None and where(node) else ""
    culprit = f"{node.target}{place}" if node is not None else "the model"
    return f'strategy="multi" does not apply: {culprit}: {reason}. Use strategy="crb-unfold", which has the same results'
