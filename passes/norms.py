"""Emit the per-example squared norm of every site.

Before                                              After (fc2.weight, strategy outer)
  relu:   f32[B, H] = relu(addmm)                     relu:   f32[B, H] = relu(addmm)
  grad_y: f32[B, C] = _log_softmax_backward(...)      grad_y: f32[B, C] = _log_softmax_backward(...)
  mm_1:   f32[C, H] = mm(t_3, relu)                   mm_1:   f32[C, H] = mm(t_3, relu)
                                                      sqnorm: f64[B] = dp.sqnorm_outer(relu, grad_y)

Sound because every strategy computes the norm of the same per-example gradient, the contraction's operands split by
example (C0.1: every use of a parameter is a sum of rank-one terms, each of one example). The pass only adds nodes
and outputs; losses and gradients are untouched, so running it alone changes no result.
"""

from __future__ import annotations

import torch
from torch import fx

from dpcompile.ir.graph import JointGraph
from dpcompile.plan.plan import Plan
from dpcompile.strategies import NORMS, SUMS, interval
from dpcompile.strategies.emitter import Emitter


def emit_norms(joint: JointGraph, plan: Plan) -> None:
    """Add the outputs ("squared_norm", parameter) and, where a strategy declares one, ("rounding", parameter): what the square
    may be low by. ("reach", parameter) is the square of what a norm may be low by beside a sum that is computed apart."""
    emitter = Emitter(joint)
    outputs = {key: joint.output(*key) for key in joint.outputs}
    for choice in plan.choices:
        emitter.at(choice.site.terms[-1].contraction.node)
        norm, total = NORMS[choice.option.norm], SUMS[choice.option.sum]
        emitted = norm.emit(choice.site, emitter)
        outputs["squared_norm", choice.site.parameter] = emitted.squared
        roundings = [emitter.call(torch.ops.aten.mul.Scalar, bound, gamma) for bound, gamma in emitted.bounds]
        if roundings:
            outputs["rounding", choice.site.parameter] = added(emitter, roundings)
        reaches = interval.emit(choice.site, norm, total, emitter)
        if reaches:
            outputs["reach", choice.site.parameter] = added(emitter, reaches)
    joint.replace_outputs(outputs)


def added(emitter: Emitter, nodes: list[fx.Node]) -> fx.Node:
    """The sum of some nodes."""
    total = nodes[0]
    for node in nodes[1:]:
        total = emitter.call(torch.ops.aten.add.Tensor, total, node)
    return total
