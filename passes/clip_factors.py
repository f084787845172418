"""From the squared norms of all sites to norms, clip factors and non-finite flags; masked examples count nothing.

Before                                              After
  sqnorm:   f64[B] = dp.sqnorm_outer(a, g)            sqnorm:   f64[B] = dp.sqnorm_outer(a, g)
  sqnorm_1: f64[B] = dp.sqnorm(grad)                  sqnorm_1: f64[B] = dp.sqnorm(grad)
  return (losses, ..., sqnorm, sqnorm_1)              total:    f64[B] = dp.total_squares([sqnorm, sqnorm_1])
                                                      norms:    f32[B] = dp.norms_of(total, mask)
                                                      factors:  f32[B] = dp.flat_factors(total, ..., max_grad_norm, mask)
                                                      return (losses, ..., norms, factors, nonfinite)

Sound because the squared norm of an example's whole gradient is the sum over parameters (disjoint entries), and
factor * norm <= max_grad_norm by construction, from the upper end of the interval where rounding matters. Other kinds of
clipping have other factors of the same norms (`dpcompile.clip`); with groups see `group_factors`.
`max_grad_norm` f64[] and `mask` bool[B] become inputs of the graph, so neither ever causes a new compilation.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import fx

from dpcompile.clip.rule import FLAT, Rule
from dpcompile.ir.graph import Input, JointGraph, value
from dpcompile.kernels import clipping
from dpcompile.passes.group_factors import KINDS, FactorCall, emit_group_factors, present, uncertainty
from dpcompile.plan.plan import Plan
from dpcompile.strategies.emitter import Emitter

NARROW: Final = (torch.float32, torch.bfloat16, torch.float16, torch.complex64)


def emit_clip_factors(joint: JointGraph, plan: Plan, rule: Rule = FLAT) -> None:
    """Replace the squared norms among the outputs by norms, clip factors, and flags; mask the losses."""
    underflow = clipping.UNDERFLOW[is_wide(joint)]
    losses = joint.output("losses")
    assert losses is not None
    mask = add_input(joint, "mask", torch.ones_like(value(losses), dtype=torch.bool))
    limit = add_input(joint, "max_grad_norm", torch.ones_like(value(losses)[:0].sum(), dtype=torch.float64))
    emitter = Emitter(joint)
    dtype = torch.promote_types(value(losses).dtype, torch.float32)
    outputs = {key: joint.output(*key) for key in joint.outputs if key[0] not in KINDS}
    factor = FactorCall(*rule.kind.kernel(underflow), limit, mask, dtype)
    groups = emit_group_factors(joint, rule.groups, factor, emitter) if rule.groups else None
    squares, roundings, reaches = (groups.totals, groups.roundings, []) if groups is not None else squares_of(joint)
    emitter.anchor, emitter.place = joint.graph.output_node(), ("", "")
    total = emitter.call(clipping.total_squares, squares) if squares else emitter.call(clipping.no_squares, losses)
    rounding = uncertainty(emitter, total, roundings, reaches)
    outputs["losses", ""] = emitter.call(clipping.masked_losses, losses, mask, dtype)
    outputs["norms", ""] = emitter.call(clipping.norms_of, total, mask, dtype)
    if groups is None:
        outputs["clip_factors", ""] = factor.emit(emitter, total, rounding)
        upper = emitter.call(clipping.total_squares, [total, rounding]) if reaches else total
        outputs["nonfinite", ""] = emitter.call(clipping.nonfinite_examples, upper)
    else:
        outputs["clip_factors", ""] = emitter.call(torch.ops.aten.stack.default, groups.factors, 1)
        upper = total if rounding is None else emitter.call(clipping.total_squares, [total, rounding])
        outputs["nonfinite", ""] = emitter.call(clipping.nonfinite_examples, upper)
        outputs |= {("group_factors", parameter): node for parameter, node in groups.own.items()}
    joint.replace_outputs(outputs)


def squares_of(joint: JointGraph) -> list[list[fx.Node]]:
    """The squared norms of all parameters, what those that rounding matters for may be low by, and what norms may be low by."""
    return [present(joint.named(kind)) for kind in KINDS]


def is_wide(joint: JointGraph) -> bool:
    """Whether every number of the step is in float64, where no square of an ordinary number vanishes."""
    fakes = [node.meta.get("val") for node in joint.graph.nodes]
    return not any(isinstance(f, torch.Tensor) and f.dtype in NARROW for f in fakes)


def add_input(joint: JointGraph, name: str, fake: torch.Tensor) -> fx.Node:
    """One more placeholder behind the present ones."""
    last = [node for node in joint.graph.nodes if node.op == "placeholder"][-1]
    with joint.graph.inserting_after(last):
        node = joint.graph.placeholder(name)
    node.meta["val"] = fake
    joint.inputs.append(Input("step", name))
    return node
