"""Replace every summed gradient by the clipped sum, without a second backward pass unless the plan has a cut.

Before                                              After (bookkeep)
  mm_1: f32[C, H] = mm(t_3, relu)                     contract: f32[C, H] = dp.contract(relu, grad_y, factors)
  t_4:  f32[H, C] = t(mm_1)                           t_5:      f32[H, C] = t(contract)
  return (losses, t_4, norms, factors)                return (losses, t_5, norms, factors)

After, for what is behind the cut at grad_h (reweight)
  scaled:   f32[B, H] = dp.scaled_examples(grad_h, factors)
  mm_3:     f32[B, D] = mm(scaled, fc2.weight)            the nodes behind grad_h once more
  t_6:      f32[H, B] = t(...)
  mm_4:     f32[H, D] = mm(t_6, x)
  return (losses, mm_4, norms, factors)

Sound because backward is linear in the gradient of the losses: scaling example b's loss by its factor scales all its
intermediate gradients by the same number (Bu et al. 2023, book-keeping), so the contraction of the scaled operands
is the sum of factor * gradient. The tail from the contraction to the parameter is linear and is copied, without its
conversions to half types; only what `reuse` measured behind a tail is added up behind it. All gradients behind a cut flow
through it (`analysis.cuts`), so that scaling there is enough.
Where examples come one at a time (scale), the ordinary gradient is returned as it is: the runtime multiplies it by the one
factor while it adds it up, which reads and writes it once less. With groups it is multiplied here.
A group's sums stand right behind its factors, so that operands are freed early; two groups may share a contraction (the
biases of two layers that are added), each with its own factors.
"""

from __future__ import annotations

from torch import fx

from dpcompile.ir.graph import JointGraph
from dpcompile.plan.plan import Plan
from dpcompile.strategies import NORMS, SUMS
from dpcompile.strategies.emitter import Emitter
from dpcompile.strategies.ordinary import SCALE, scaled_gradient
from dpcompile.strategies.reweight import REWEIGHT, SecondBackward
from dpcompile.strategies.sums import Sums, emit_site
from dpcompile.strategies.tail import copied_tail, wide


def emit_clipped_sums(joint: JointGraph, plan: Plan) -> None:
    """Every gradient becomes the clipped sum; the ordinary contractions lose their last use."""
    whole, groups = joint.output("clip_factors"), joint.named("group_factors")
    assert whole is not None
    emitter = Emitter(joint)
    emitter.anchor = joint.graph.output_node()
    known: dict[tuple[fx.Node, str, str], Sums] = {}
    outputs = {key: joint.output(*key) for key in joint.outputs if key[0] != "group_factors"}
    again = SecondBackward(plan.cut, whole, emitter) if plan.cut is not None else None
    for choice in reversed(plan.choices):  # in the order of the backward pass, so that operands are freed early
        factors = groups.get(choice.site.parameter) or whole
        norm, total = NORMS[choice.option.norm], SUMS[choice.option.sum]
        sums = known.setdefault((factors, total.name, "" if total.is_apart else norm.name), {})
        emitter.anchor = factors.next if groups else joint.graph.output_node()
        if total is SCALE:
            del outputs["gradient", choice.site.parameter]
            kind = "own_gradient" if factors is whole else "gradient"
            node = wide(choice.site.gradient, emitter) if factors is whole else scaled_gradient(choice.site, factors, emitter)
            outputs[kind, choice.site.parameter] = node
            continue
        if total is REWEIGHT:
            assert again is not None, "a plan that reweights has a cut"
            sums |= {node: again.copy(node) for node in (term.contraction.node for term in choice.site.terms)}
            outputs["gradient", choice.site.parameter] = copied_tail(choice.site, sums, emitter)
            continue
        outputs["gradient", choice.site.parameter] = emit_site(choice.site, norm, total, factors, emitter, sums)
    joint.replace_outputs(outputs)
