"""From the squared norms of all sites to norms, clip factors and non-finite flags; masked examples count nothing.

Before                                              After
  sqnorm:   f64[B] = dp.sqnorm_outer(a, g)            sqnorm:   f64[B] = dp.sqnorm_outer(a, g)
  sqnorm_1: f64[B] = dp.sqnorm(grad)                  sqnorm_1: f64[B] = dp.sqnorm(grad)
  return (losses, ..., sqnorm, sqnorm_1)              total:    f64[B] = dp.total_squares([sqnorm, sqnorm_1])
                                                      norms:    f32[B] = dp.norms_of(total, mask)
                                                      factors:  f32[B] = dp.flat_factors(total, ..., max_grad_norm, mask)
                                                      return (losses, ..., norms, factors, nonfinite)

Sound because the squared norm of an example's whole gradient is the sum over parameters (disjoint entries), and
factor * norm <= max_grad_norm by construction, from the upper end of the interval where rounding matters.
`max_grad_norm` f64[] and `mask` bool[B] become inputs of the graph, so neither ever causes a new compilation.
"""

from __future__ import annotations

import torch
from torch import fx

from dpcompile.ir.graph import Input, JointGraph, value
from dpcompile.kernels import clipping
from dpcompile.plan.plan import Plan
from dpcompile.strategies.emitter import Emitter


def emit_clip_factors(joint: JointGraph, plan: Plan) -> None:
    """Replace the squared norms among the outputs by norms, clip factors, and flags; mask the losses."""
    losses = joint.output("losses")
    assert losses is not None
    mask = add_input(joint, "mask", torch.ones_like(value(losses), dtype=torch.bool))
    limit = add_input(joint, "max_grad_norm", torch.ones_like(value(losses)[:0].sum(), dtype=torch.float64))
    emitter = Emitter(joint)
    squares = [node for node in joint.named("squared_norm").values() if node is not None]
    roundings = [node for node in joint.named("rounding").values() if node is not None]
    emitter.anchor = joint.graph.output_node()
    total = emitter.call(clipping.total_squares, squares) if squares else emitter.call(clipping.no_squares, losses)
    rounding = emitter.call(clipping.total_squares, roundings) if roundings else None
    dtype = torch.promote_types(value(losses).dtype, torch.float32)
    outputs = {key: joint.output(*key) for key in joint.outputs if key[0] not in ("squared_norm", "rounding")}
    outputs["losses", ""] = emitter.call(clipping.masked_losses, losses, mask, dtype)
    outputs["norms", ""] = emitter.call(clipping.norms_of, total, mask, dtype)
    outputs["clip_factors", ""] = emitter.call(clipping.flat_factors, total, rounding, limit, mask, dtype)
    outputs["nonfinite", ""] = emitter.call(clipping.nonfinite_examples, total)
    joint.replace_outputs(outputs)


def add_input(joint: JointGraph, name: str, fake: torch.Tensor) -> fx.Node:
    """One more placeholder behind the present ones."""
    last = [node for node in joint.graph.nodes if node.op == "placeholder"][-1]
    with joint.graph.inserting_after(last):
        node = joint.graph.placeholder(name)
    node.meta["val"] = fake
    joint.inputs.append(Input("step", name))
    return node
