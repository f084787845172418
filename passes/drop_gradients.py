"""Gradients of which only a part is trained: everything else is zero before any norm is taken.

Before                                                   After (rows of fc.weight by index, of bias single entries)
  mm: f32[p, d] = mm(t, a)                                 mm_1: f32[k, d] = mm(t_1, a)   # see narrow_contractions
  sum: f32[p] = sum(g, [0])                                place: f32[p, d] = place_kept(mm_1, index, 0, p)
  return (losses, mm, sum)                                 sum: f32[p] = sum(g, [0])
                                                           keep: f32[p] = keep_entries(sum, mask)
                                                           return (losses, place, keep)

Sound because norm, factor, sum and noise all come from what is returned here: an example's gradient is M * g_i from the start,
whose clipped sum has the sensitivity C of any other gradient. The indices and masks are inputs of the graph, of a fixed size, so
that another selection needs no new trace. A parameter of which nothing is ever trained (`prune_parameters`) has no gradient, and
the backward pass below the last parameter that is trained disappears as dead code.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from dpcompile.ir.graph import JointGraph, value
from dpcompile.kernels import kept_part
from dpcompile.passes.narrow_contractions import Narrower
from dpcompile.passes.order import order_nodes
from dpcompile.rules.rule import Result
from dpcompile.selection import Layout, held
from dpcompile.strategies.emitter import Emitter


def drop_gradients(joint: JointGraph, states: Mapping[fx.Node, Result], layouts: Mapping[str, Layout], holder: str) -> None:
    """Return trained parts only; holder: the name of the module that holds the selection, as inputs are called."""
    inputs = {name: node for (kind, name), node in joint.placeholders().items() if kind == "state"}
    outputs = {key: joint.output(*key) for key in joint.outputs}
    for name, layout in layouts.items():
        gradient = outputs.get(("gradient", name))
        if gradient is not None and not layout.is_gone:
            told = {kind: inputs.get(f"{holder}.{held(kind, name)}") for kind in ("index", "valid", "mask")}
            outputs["gradient", name] = part_of(joint, states, gradient, layout, told)
    joint.replace_outputs(outputs)
    order_nodes(joint)


def part_of(joint: JointGraph, states: Mapping[fx.Node, Result], gradient: fx.Node, layout: Layout,
            told: Mapping[str, fx.Node | None]) -> fx.Node:  # fmt: skip
    """The trained part of one gradient, in a tensor of the parameter's shape."""
    emitter, index, mask = Emitter(joint), told["index"], told["mask"]
    found, dim = gradient, layout.dim
    if dim is not None:
        assert index is not None
        found = Narrower(emitter, states, index, told["valid"]).narrowed(gradient, dim)
    if layout.entries:
        emitter.at(gradient)
        entries = mask if dim is None else emitter.call(kept_part.choose, mask, index, None, dim)
        found = emitter.call(kept_part.keep, found, entries)
    if dim is not None:
        emitter.at(gradient)
        found = emitter.call(kept_part.place, found, index, dim, int(value(gradient).shape[dim]))
    return found
