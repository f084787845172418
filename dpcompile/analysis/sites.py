"""From every parameter gradient back to the contractions it comes from, and the linear tail in between."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import fx

from dpcompile.analysis.contractions import is_contraction, recognise
from dpcompile.analysis.functionals import project
from dpcompile.analysis.row_values import first_of_equals
from dpcompile.ir.axis import Summed
from dpcompile.ir.graph import JointGraph, operand_node, value
from dpcompile.ir.site import Contraction, Site, Term
from dpcompile.kernels import kept_part
from dpcompile.rules.rule import Result

aten = torch.ops.aten
TRANSPOSES = (aten.t.default, aten.transpose.int)
COPIES = (aten.clone.default, aten._to_copy.default)
MOVES = (
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.permute.default, aten.squeeze.dim,
    aten.squeeze.dims, aten.unsqueeze.default, aten.select_backward.default, aten.slice_backward.default,
    kept_part.place,
)  # fmt: skip


def find_sites(joint: JointGraph, states: Mapping[fx.Node, Result]) -> tuple[list[Site], list[str]]:
    """All sites in the order of the parameters, and the names of parameters without a gradient path."""
    sites, unused = [], []
    known: dict[fx.Node, Contraction] = {}
    for name, gradient in joint.named("gradient").items():
        if gradient is None or not isinstance(states[gradient], Summed):
            unused.append(name)
            continue
        sites.append(site_of(name, gradient, joint, states, known))
    firsts = first_of_equals(joint.graph, states) if any(is_projected(site) for site in sites) else {}
    return [projected(site, states, firsts) if is_projected(site) else site for site in sites], unused


def is_projected(site: Site) -> bool:
    """Whether a tail changes the norm of one contraction's gradient."""
    return len(site.terms) == 1 and not site.isometric


def projected(site: Site, states: Mapping[fx.Node, Result], firsts: Mapping[fx.Node, fx.Node]) -> Site:
    """The site with what is known about its tail row by row."""
    return replace(site, projection=project(site.terms[0].contraction, site.tail, site.gradient, states, firsts))


def site_of(name: str, gradient: fx.Node, joint: JointGraph, states: Mapping[fx.Node, Result],
            known: dict[fx.Node, Contraction]) -> Site:  # fmt: skip
    """The site of one parameter."""
    ends, tail = tail_of(gradient, states)
    for node in ends:
        if node not in known:
            known[node] = recognise(node, states, joint.symbol)
    paths: list[tuple[fx.Node, str, float]] = []
    isometric = follow(gradient, set(ends), "same", 1.0, paths)
    isometric = isometric and len({node for node, _, _ in paths}) == len(paths) == len(ends)
    terms = [Term(known[node], place, scale) for node, place, scale in paths] if isometric else [Term(known[n]) for n in ends]
    order = {node: i for i, node in enumerate(joint.graph.nodes)}
    shape = tuple(int(size) for size in value(gradient).shape)
    return Site(name, gradient, tuple(terms), tuple(sorted(tail, key=order.__getitem__)), isometric, shape)


def tail_of(gradient: fx.Node, states: Mapping[fx.Node, Result]) -> tuple[list[fx.Node], set[fx.Node]]:
    """The contractions that a gradient depends on, and the nodes between."""
    ends: list[fx.Node] = []
    tail: set[fx.Node] = set()
    stack = [gradient]
    while stack:
        node = stack.pop()
        if node in tail or node in ends:
            continue
        if is_contraction(node, states):
            ends.append(node)
            continue
        tail.add(node)
        before = node.all_input_nodes
        if node.target is operator.getitem:
            several = operand_node(node, 0)
            tail.add(several)
            before = several.all_input_nodes
        stack += [n for n in before if is_summed(states[n])]
    return ends, tail


def is_summed(state: Result) -> bool:
    """Whether a value (or one of several results) is a sum over examples."""
    return isinstance(state, Summed) or (isinstance(state, tuple) and any(isinstance(s, Summed) for s in state))


def is_sum_of_two(node: fx.Node) -> bool:
    """Whether a node adds or subtracts two values of its own shape (not one spread over the other, which changes norms)."""
    if node.target not in (aten.add.Tensor, aten.sub.Tensor) or node.kwargs:
        return False
    return all(isinstance(a, fx.Node) and value(a).shape == value(node).shape for a in node.args)


def follow(node: fx.Node, ends: set[fx.Node], place: str, scale: float, paths: list[tuple[fx.Node, str, float]]) -> bool:
    """Walk an isometric tail back to its contractions; False at the first operation that changes norms."""
    if node in ends:
        paths.append((node, place, scale))
        return True
    args = node.args
    if is_sum_of_two(node):
        sign = -1.0 if node.target is aten.sub.Tensor else 1.0
        left, right = operand_node(node, 0), operand_node(node, 1)
        return follow(left, ends, place, scale, paths) and follow(right, ends, place, sign * scale, paths)
    if not node.args or not isinstance(args[0], fx.Node):
        return False
    source = args[0]
    if node.target in TRANSPOSES:
        matrix = len(value(source).shape) == 2
        flipped = {"same": "transposed", "transposed": "same"}.get(place, "moved") if matrix else "moved"
        return follow(source, ends, flipped, scale, paths)
    if node.target in COPIES:
        return follow(source, ends, place, scale, paths)
    if node.target is aten.neg.default:
        return follow(source, ends, place, -scale, paths)
    if node.target in (aten.mul.Tensor, aten.mul.Scalar) and isinstance(args[1], (int, float)):
        return follow(source, ends, place, scale * args[1], paths)
    if node.target in MOVES:
        same = value(node).shape == value(source).shape and node.target in MOVES[:3]
        return follow(source, ends, place if same else "moved", scale, paths)
    return False
