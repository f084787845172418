"""One clip factor for every group of parameters, as soon as the group's norms are there (part of `clip_factors`).

Before                                              After (groups "2" and "0": a module each; backward meets "2" first)
  sqnorm:   f64[B] = dp.sqnorm_outer(h, g)            sqnorm:   f64[B] = dp.sqnorm_outer(h, g)
  ...                                                 factor:   f32[B] = dp.group_factors(sqnorm, None, max_grad_norm, mask, ...)
  sqnorm_1: f64[B] = dp.sqnorm_outer(x, g_1)          ...
  return (losses, ..., sqnorm, sqnorm_1)              sqnorm_1: f64[B] = dp.sqnorm_outer(x, g_1)
                                                      factor_1: f32[B] = dp.group_factors(sqnorm_1, ...)
                                                      total:    f64[B] = dp.total_squares([sqnorm_1, sqnorm])
                                                      stack:    f32[B, 2] = stack([factor_1, factor], 1)
                                                      return (losses, ..., norms, stack, nonfinite, factor_1, factor)

Sound because a group's factor depends on the norm of the group's own gradient alone, and the parts of a gradient are
orthogonal: sum over groups of C_k^2 bounds the square of the whole. What a group keeps until its sum is thus needed for one
layer's time, not for the rest of the backward pass. An example that is not finite in one group has a finite factor in others:
`nonfinite` is true for it, and the runtime then runs the step without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, fx

from dpcompile.clip.groups import Group
from dpcompile.ir.graph import JointGraph
from dpcompile.kernels import clipping
from dpcompile.strategies.emitter import Emitter

aten = torch.ops.aten
KINDS: Final = ("squared_norm", "rounding", "reach")


@dataclass(frozen=True)
class FactorCall:
    """The kernel from squared norms to factors with everything that all its calls share."""

    kernel: Callable[..., Tensor]
    constants: tuple[Any, ...]
    limit: fx.Node
    mask: fx.Node
    dtype: torch.dtype

    def emit(self, emitter: Emitter, squared: fx.Node, rounding: fx.Node | None, *constants: Any) -> fx.Node:
        """Factors f[B] from squared norms and what they may be low by."""
        return emitter.call(self.kernel, squared, rounding, self.limit, self.mask, *self.constants, *constants, self.dtype)


@dataclass
class GroupNodes:
    """Squared norms of the groups, what they may be low by, one factor f[B] per group, and that of every parameter."""

    totals: list[fx.Node] = field(default_factory=list)
    roundings: list[fx.Node] = field(default_factory=list)
    factors: list[fx.Node] = field(default_factory=list)
    own: dict[str, fx.Node] = field(default_factory=dict)


def emit_group_factors(joint: JointGraph, groups: Sequence[Group], factor: FactorCall, emitter: Emitter) -> GroupNodes:
    """Every group's factor behind the last of its norms; a group without gradients has norm 0."""
    squared, rounding, reach = (joint.named(kind) for kind in KINDS)
    losses = joint.output("losses")
    assert losses is not None
    place = {node: index for index, node in enumerate(joint.graph.nodes)}
    found = GroupNodes()
    for group in groups:
        squares, roundings, reaches = (present(named, group) for named in (squared, rounding, reach))
        emitter.at(max([*squares, *roundings, *reaches] or [losses, *present(squared)], key=place.__getitem__))
        total = sum_of(emitter, squares) if squares else emitter.call(clipping.no_squares, losses)
        unsure = uncertainty(emitter, total, roundings, reaches)
        node = factor.emit(emitter, total, unsure, group.share)
        found.totals += [total] if squares else []
        found.roundings += [unsure] if unsure is not None else []
        found.factors.append(node)
        found.own |= dict.fromkeys(group.parameters, node)
    return found


def present(named: dict[str, fx.Node | None], group: Group | None = None) -> list[fx.Node]:
    """The nodes that exist, of a group's parameters or of all."""
    names = named if group is None else [name for name in group.parameters if name in named]
    return [node for node in (named[name] for name in names) if node is not None]


def uncertainty(emitter: Emitter, total: fx.Node, roundings: list[fx.Node], reaches: list[fx.Node]) -> fx.Node | None:
    """What a squared norm f64[B] may be low by: what squares may, and what norms may; None where nothing says so."""
    known = sum_of(emitter, roundings) if roundings else None
    return emitter.call(clipping.reached, total, known, sum_of(emitter, reaches)) if reaches else known


def sum_of(emitter: Emitter, nodes: list[fx.Node]) -> fx.Node:
    """The sum of squared norms, without a node for a single one."""
    return nodes[0] if len(nodes) == 1 else emitter.call(clipping.total_squares, nodes)
