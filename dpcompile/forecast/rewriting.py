"""The captured graph, kept as it was, and the step that a plan makes of a copy of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from torch import fx

from dpcompile.clip.rule import FLAT, Rule
from dpcompile.ir.graph import JointGraph
from dpcompile.ir.site import Cut, Site
from dpcompile.passes import PIPELINE, with_rule
from dpcompile.passes.copies import emit_copies
from dpcompile.passes.order import order_nodes
from dpcompile.passes.reuse_memory import reuse_memory
from dpcompile.plan.plan import Plan

Keep = Callable[[str, JointGraph], None]


def nothing(name: str, joint: JointGraph) -> None:
    """Keep no record of a stage."""


@dataclass(frozen=True)
class Source:
    """A captured graph, its sites and how its gradients are clipped; `rewritten` never changes them."""

    joint: JointGraph
    sites: tuple[Site, ...]
    cuts: tuple[Cut, ...] = ()
    rule: Rule = FLAT

    def rewritten(self, plan: Plan, keep: Keep = nothing) -> JointGraph:
        """The graph after all passes that every backend shares."""
        joint, sites, cut = copied(self.joint, self.sites, plan.cut)
        if plan.copies:
            sites = emit_copies(joint, sites)
            order_nodes(joint)
            keep(emit_copies.__name__, joint)
        by_name = {site.parameter: site for site in sites}
        own = replace(plan, choices=tuple(replace(c, site=by_name[c.site.parameter]) for c in plan.choices), cut=cut)
        for rewrite in with_rule(PIPELINE, self.rule):
            rewrite(joint, own)
            order_nodes(joint)
            keep(rewrite.__name__, joint)
        return joint


def for_eager(joint: JointGraph, keep: Keep = nothing) -> None:
    """The passes that only the eager backend needs, in place: inductor plans memory itself."""
    reuse_memory(joint)
    keep("reuse_memory", joint)


def copied(joint: JointGraph, sites: Sequence[Site], cut: Cut | None) -> tuple[JointGraph, list[Site], Cut | None]:
    """A graph that can be rewritten; nodes keep their fake values, sites and the cut speak of the copies."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(joint.graph, copies))
    module = fx.GraphModule(joint.module, graph)
    copy = replace(joint, module=module, inputs=list(joint.inputs), outputs=list(joint.outputs), notes=list(joint.notes))
    return copy, [carried(site, copies) for site in sites], carried(cut, copies)


def carried(item: Any, copies: dict[fx.Node, fx.Node]) -> Any:
    """The same record with every node replaced by its copy."""
    if isinstance(item, fx.Node):
        return copies[item]
    if is_dataclass(item) and not isinstance(item, type):
        return replace(item, **{field.name: carried(getattr(item, field.name), copies) for field in fields(item)})
    if type(item) is tuple:
        return tuple(carried(part, copies) for part in item)
    return item
