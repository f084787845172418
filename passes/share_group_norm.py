"""Take the per-example gradients of a group normalisation's scale and shift from its own backward operation.

Before                                                        After
  back: (f32[B, C, *], None, None) =                            group: (f32[B, C, *], f32[B, C], f32[B, C]) =
        native_group_norm_backward(g, x, mean, rstd, w)               dp.group_norm_backward(g, x, mean, rstd, w)
  dx: f32[B, C, *] = back[0]                                    dx: f32[B, C, *] = group[0]
  scale: f32[B, C] = dp.channel_scale(g, x, mean, rstd)         scale: f32[B, C] = group[1]
  shift: f32[B, C] = dp.total_per_example(g, ..., (0, 2, 3))    shift: f32[B, C] = group[2]

Sound because both compute the same sums over each example's positions. The backward operation forms them anyway, on the
way to dx; asking for them separately reads g and x once more, a quarter of the cost of a small network's private step.
"""

from __future__ import annotations

import torch
from torch import fx

from dpcompile.ir.graph import JointGraph, value
from dpcompile.kernels import layout, scale
from dpcompile.plan.plan import Plan
from dpcompile.strategies.emitter import Emitter

aten = torch.ops.aten


def share_group_norm(joint: JointGraph, plan: Plan | None = None) -> None:
    """Wherever the input's gradient and the scale's per-example gradient are both asked for."""
    for back in joint.graph.find_nodes(op="call_function", target=aten.native_group_norm_backward.default):
        g, x, mean, rstd, weight = back.args[:5]
        scales = [user for user in g.users if user.target is scale.channel_scale and user.args == (g, x, mean, rstd)]
        if back.args[9] == [True, False, False] and weight is not None and scales:
            emitter = Emitter(joint).at(back)
            results = emitter.call(scale.group_norm_backward, *back.args[:5], back.args[8])
            parts = [emitter.item(results, index) for index in range(3)]
            for old, new in zip((list(back.users), scales, shifts_of(g)), parts, strict=True):
                for node in old:
                    node.replace_all_uses_with(new)


def shifts_of(g: fx.Node) -> list[fx.Node]:
    """The nodes that sum g: f[B, C, *] over each example's positions."""
    rank, channels = len(value(g).shape), value(g).shape[1]
    wanted = (g, 0, 1, 1, (0, *range(2, rank)), (channels,))
    return [user for user in g.users if user.target is layout.total_per_example and user.args == wanted]
