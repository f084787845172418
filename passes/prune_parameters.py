"""Parameters of which nothing is trained have no gradient.

Before                                                   After (fc1 was pruned as a whole)
  mm: f32[B, H] = mm(g, fc2.weight)                        mm_1: f32[C, H] = mm(t_1, h)
  mm_1: f32[C, H] = mm(t_1, h)                             return (losses, None, mm_1)
  mm_2: f32[H, D] = mm(t_2, x)
  return (losses, mm_2, mm_1)

Sound because a gradient that is never used is zero in effect: no norm, no sum and no noise know of it. What was computed for it
alone is dead: the output gradients of its layer too, where no parameter below is trained.
"""

from __future__ import annotations

from collections.abc import Mapping

from dpcompile.ir.graph import JointGraph
from dpcompile.passes.order import order_nodes
from dpcompile.selection import Layout


def prune_parameters(joint: JointGraph, layouts: Mapping[str, Layout]) -> None:
    """Return None for the gradients of parameters that are gone."""
    gone = {("gradient", name) for name, layout in layouts.items() if layout.is_gone}
    joint.replace_outputs({key: None if key in gone else joint.output(*key) for key in joint.outputs})
    order_nodes(joint)
