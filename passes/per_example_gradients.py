"""Return every example's own gradient instead of the sums over the batch.

Before                                              After (fc2.weight)
  relu:   f32[B, H] = relu(addmm)                     relu:        f32[B, H] = relu(addmm)
  grad_y: f32[B, C] = _log_softmax_backward(...)      grad_y:      f32[B, C] = _log_softmax_backward(...)
  mm_1:   f32[C, H] = mm(t_3, relu)                   materialize: f32[B, C, H] = dp.materialize(relu, grad_y)
  return (losses, mm_1)                               return (losses, materialize)

Sound because a site's contraction is a sum over examples of terms that depend on one example each: the
materialised terms are the gradients of the single losses, and the linear tail behind the contraction
applies to each of them (Goodfellow 2015; Rochette et al. 2019). It runs in place of the other passes:
nothing is clipped, so what the graph returns is not private, and new values of buffers are dropped because
no step is made.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from dpcompile.ir.graph import JointGraph
from dpcompile.ir.site import Site
from dpcompile.strategies.emitter import Emitter
from dpcompile.strategies.per_example import per_example_gradient
from dpcompile.strategies.tail import through_tail, wide


def emit_per_example_gradients(joint: JointGraph, sites: Iterable[Site]) -> None:
    """The outputs become the losses and ("per_example_gradient", parameter) f[B, *shape] of every site."""
    emitter = Emitter(joint)
    outputs: dict[tuple[str, str], fx.Node | None] = {("losses", ""): joint.output("losses")}
    for site in sites:
        own = {term.contraction.node: per_example_gradient(term.contraction, emitter) for term in site.terms}
        emitter.at(site.gradient)
        outputs["per_example_gradient", site.parameter] = wide(through_tail(site, own, emitter), emitter)
    joint.replace_outputs(outputs)
