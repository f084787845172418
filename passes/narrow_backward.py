"""Ask the ordinary backward operations only for what is still used.

Before                                                             After
  cb: (f32[..], f32[..], f32[..]) = convolution_backward(           cb: (f32[..], None, None) = convolution_backward(
        ..., output_mask=[True, True, True])                              ..., output_mask=[True, False, False])
  dx: f32[..] = getitem(cb, 0)                                      dx: f32[..] = getitem(cb, 0)

Sound because the results of such an operation are independent of one another and the dropped ones have no use left;
this is where the ordinary parameter gradients, which private training never looks at, stop being computed.
"""

from __future__ import annotations

import operator

from torch import fx

from dpcompile import torch_private
from dpcompile.ir.graph import JointGraph
from dpcompile.plan.plan import Plan


def narrow_backward(joint: JointGraph, plan: Plan | None = None) -> None:
    """Clear the entries of `output_mask` whose results nobody reads."""
    joint.graph.eliminate_dead_code()
    for node in joint.graph.nodes:
        place = mask_place(node)
        if place is None:
            continue
        used = {user.args[1] for user in node.users if user.target is operator.getitem}
        mask = [bool(flag) and index in used for index, flag in enumerate(node.args[place])]
        node.args = (*node.args[:place], mask, *node.args[place + 1 :])
        node.meta["val"] = tuple(v if keep else None for v, keep in zip(node.meta["val"], mask, strict=True))


def mask_place(node: fx.Node) -> int | None:
    """The position of `output_mask` among the arguments of a backward operation."""
    if node.op != "call_function" or not isinstance(node.target, torch_private.OpOverload):
        return None
    names = [argument.name for argument in node.target._schema.arguments]
    place = names.index("output_mask") if "output_mask" in names else None
    return place if place is not None and place < len(node.args) and isinstance(node.meta["val"], (tuple, list)) else None
