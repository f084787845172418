"""Norms and sums of many small materialised gradients as one norm and one sum.

Before                                                    After
  s1: f64[B] = dp.sqnorm(x1)                                all: f32[B, n1 + n2] = dp.gather([x1, x2])
  s2: f64[B] = dp.sqnorm(x2)                                s: f64[B] = dp.sqnorm(all)
  total: f64[B] = dp.total_squares([s0, s1, s2])            total: f64[B] = dp.total_squares([s0, s])
  d1: f32[n1] = dp.weighted_sum(x1, factors)                sums: (f32[n1], f32[n2]) = dp.weighted_sums(all, factors, ...)
  d2: f32[n2] = dp.weighted_sum(x2, factors)                d1 = sums[0]; d2 = sums[1]

Sound because a squared norm is a sum over entries, in whatever order, and a weighted sum keeps its entries apart. Biases
and scales are most of the parameters of a network by number and none by size: a ViT of six blocks has 39 of them, whose
norms and sums cost 6 ms of 190 one by one.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import fx

from dpcompile.ir.graph import JointGraph, operand_node, value
from dpcompile.kernels import clipping, reduction
from dpcompile.plan.plan import Plan
from dpcompile.strategies.emitter import Emitter

SMALL: Final = 1024
"""Elements of a gradient from which copying it costs more than starting two operations."""


def gather_small(joint: JointGraph, plan: Plan | None = None) -> None:
    """Gather float32 and float64 gradients of at most SMALL elements, each dtype by itself."""
    for total in joint.graph.find_nodes(op="call_function", target=clipping.total_squares):
        squares = list(total.args[0])
        for dtype in (torch.float32, torch.float64):
            small = [node for node in squares if is_small(node, dtype)]
            if len(small) > 1:
                squares = [node for node in squares if node not in small] + [gathered(joint, total, small)]
        total.args = (squares,)


def is_small(square: fx.Node, dtype: torch.dtype) -> bool:
    """Whether a node is the squared norm of a small materialised gradient of this dtype, and read once."""
    if square.target is not reduction.sqnorm or len(square.users) != 1:
        return False
    fake = value(square.all_input_nodes[0])
    return fake.dtype == dtype and all(isinstance(n, int) for n in fake.shape[1:]) and math.prod(fake.shape[1:]) <= SMALL


def gathered(joint: JointGraph, total: fx.Node, squares: list[fx.Node]) -> fx.Node:
    """One squared norm for all of them, in front of the total; their weighted sums become parts of one."""
    parts = [square.all_input_nodes[0] for square in squares]
    emitter = Emitter(joint)
    emitter.anchor = total
    whole = emitter.call(reduction.gather, parts)
    sums = [[user for user in part.users if user.target is reduction.weighted_sum] for part in parts]
    factors = {operand_node(user, 1) for users in sums for user in users}
    if len(factors) == 1:
        split_sums(emitter, whole, factors.pop(), parts, sums)
    emitter.anchor = total
    return emitter.call(reduction.sqnorm, whole)


def split_sums(emitter: Emitter, whole: fx.Node, factors: fx.Node, parts: list[fx.Node], sums: list[list[fx.Node]]) -> None:
    """Replace the weighted sums of the parts by parts of the weighted sum."""
    emitter.at(factors)
    shapes = [list(value(part).shape[1:]) for part in parts]
    results = emitter.call(reduction.weighted_sums, whole, factors, shapes)
    for index, users in enumerate(sums):
        for user in users:
            user.replace_all_uses_with(emitter.item(results, index))
