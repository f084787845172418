"""Where the backward pass can be run a second time from: places through which all further gradients flow.

A gradient of the losses flows backward through every node that depends on the losses' own cotangent, `ones_like(losses)`.
A node n of these is a cut if all gradients that are computed behind it depend on them through n alone: the residual stream
between two blocks, for example, but not a node inside of a block that a residual connection passes by. Scaling n by the
clip factors and running what is behind it once more then gives the clipped sums of the parameters there (Lee and Kifer
2021, section 5, beyond the cut), if every operation behind it is linear in the gradients (`analysis.linear`) and rounds them no
more than float32 does: the gradients of the second pass are rounded anew, and what they differ by no interval tells.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Final

import torch
from torch import fx

from dpcompile import torch_private
from dpcompile.analysis.linear import ADDED_PRODUCTS, is_linear
from dpcompile.analysis.linear import PRODUCTS as LINEAR_PRODUCTS
from dpcompile.ir.axis import Batched
from dpcompile.ir.graph import JointGraph, value
from dpcompile.ir.randomness import draws
from dpcompile.ir.site import Cut, Operand, Site
from dpcompile.kernels.gram import convolution_rounding, operand_rounding
from dpcompile.provenance import COTANGENT
from dpcompile.rules.rule import Result

PRODUCTS: Final = (LINEAR_PRODUCTS - {"mul"}) | ADDED_PRODUCTS
OF_PRODUCTS: Final = ("convolution_backward", "linear_backward", "attention", "lstm", "gru", "rnn", "cdist", "matrix_exp")
"""Parts of the names of other operations that are made of products."""


def find_cuts(joint: JointGraph, states: Mapping[fx.Node, Result], sites: Sequence[Site]) -> tuple[Cut, ...]:
    """All cuts, from the losses on: no two with the same parameters behind them, no two at the same value."""
    flowing = gradients_of_losses(joint)
    contractions = {term.contraction.node for site in sites for term in site.terms}
    needed = ancestors(contractions) & flowing
    order = [node for node in joint.graph.nodes if node in needed]
    place = {node: index for index, node in enumerate(order)}
    reached = [
        site for site in sites if all(term.contraction.node in place for term in site.terms)
    ]  # others get what is no gradient
    first = {site.parameter: min(place[term.contraction.node] for term in site.terms) for site in reached}
    further = needed - contractions  # of what these round themselves, in the sum, intervals tell
    barred = max((place[node] for node in order if not can_run_again(node, further) or not is_linear(node, flowing)), default=-1)
    found: dict[tuple[str, ...], Cut] = {}  # the last place for equal parameters
    for index, node in narrow_places(order, contractions):
        names = tuple(name for name, start in first.items() if start > index)
        operand = frontier(node, states)  # a value with examples, or the losses' own cotangent
        if names and operand is not None and index >= barred:
            found[names] = Cut(operand, names)
    most = {cut.frontier.node: cut for cut in reversed(found.values())}  # the most parameters for equal places
    return tuple(reversed(most.values()))


def gradients_of_losses(joint: JointGraph) -> set[fx.Node]:
    """All nodes that depend on the losses' cotangent; none where capture could not mark it."""
    flowing = {node for node in joint.graph.nodes if COTANGENT in (node.meta.get("custom") or {}) and node.op == "call_function"}
    for node in joint.graph.nodes:
        if node.op == "call_function" and any(source in flowing for source in node.all_input_nodes):
            flowing.add(node)
    return flowing


def ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes and everything that they are computed from."""
    found: set[fx.Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += node.all_input_nodes
    return found


def narrow_places(order: Sequence[fx.Node], contractions: set[fx.Node]) -> Iterable[tuple[int, fx.Node]]:
    """Places behind which only one of the values before is still read."""
    place = {node: index for index, node in enumerate(order)}
    last = {node: max((place[user] for user in node.users if user in place), default=-1) for node in order}
    live: set[fx.Node] = set()
    for index, node in enumerate(order):
        live = {other for other in live if last[other] > index}
        if last[node] > index:
            live.add(node)
        if len(live) == 1:
            (only,) = live
            if only not in contractions:
                yield index, only


def frontier(node: fx.Node, states: Mapping[fx.Node, Result]) -> Operand | None:
    """A value with one gradient per example, and where its examples lie. No half type: the clip factor would be rounded to it."""
    state = states[node]
    if any(map(is_half, results(node))):
        return None
    if COTANGENT in (node.meta.get("custom") or {}):
        return Operand(node, 0)
    if not isinstance(state, Batched) or not isinstance(node.meta["val"], torch.Tensor):
        return None
    return Operand(node, state.dim, state.outer, state.inner) if value(node).dtype.is_floating_point else None


def can_run_again(node: fx.Node, further: Set[fx.Node]) -> bool:
    """No random draw, which would come out differently, no half type, in which sums would be rounded, and no product whose
    operands torch may round on the way to `further` gradients."""
    if draws(node) or any(map(is_half, results(node))):
        return False
    return not is_rounded_product(node) or not leads_to_gradients(node, further)


def is_half(fake: torch.Tensor) -> bool:
    """Whether numbers of less precision than float32 are held."""
    return fake.dtype.is_floating_point and torch.finfo(fake.dtype).eps > torch.finfo(torch.float32).eps


def is_rounded_product(node: fx.Node) -> bool:
    """Whether torch's settings may round operands of the node to TensorFloat-32 or bfloat16."""
    if not isinstance(node.target, torch_private.OpOverload):
        return False
    name = node.target._schema.name.split("::")[1]
    is_product = name in PRODUCTS or any(part in name for part in OF_PRODUCTS)
    if not is_product or all(fake.dtype in (torch.float64, torch.complex128) for fake in results(node)):
        return False
    device = next(iter(results(node))).device
    return (convolution_rounding(device) if "convolution" in name else operand_rounding()) > 0


def leads_to_gradients(node: fx.Node, further: Set[fx.Node]) -> bool:
    """Whether the node's result, or one of several results, is among the further gradients."""
    parts = [user for user in node.users if user.target is operator.getitem]
    return any(part in further for part in parts) if parts else node in further


def results(node: fx.Node) -> list[torch.Tensor]:
    """The tensors that a node returns."""
    values = node.meta.get("val")
    several = values if isinstance(values, (tuple, list)) else [values]
    return [item for item in several if isinstance(item, torch.Tensor)]
