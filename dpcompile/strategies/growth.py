"""What a site's tail does to what rounding left in its contractions: bounds of its norm as a linear operation, where it has one.

The tail is walked from a contraction to the gradient. A value that depends on it in several places (w - w.t()) is bounded by the
sum over them: |L1 g + L2 g| <= (|L1| + |L2|) |g|.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, fx

from dpcompile.ir.graph import operand_node, value
from dpcompile.ir.site import Site
from dpcompile.kernels import kept_part

aten = torch.ops.aten
SHRINKING: Final = frozenset((
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default,
    aten.unsqueeze.default, aten.t.default, aten.transpose.int, aten.permute.default, aten.clone.default, aten._to_copy.default,
    aten.neg.default, aten.slice.Tensor, aten.select.int, aten.slice_backward.default, aten.select_backward.default,
    aten.cat.default, aten.where.self, operator.getitem, kept_part.keep, kept_part.place, kept_part.choose,
))  # fmt: skip
"""What rearranges entries, leaves some out, or puts them among others."""


def enlargements(site: Site) -> tuple[float, ...] | None:
    """For each of a site's uses, by how much the tail can make a difference longer; None where that is not known."""
    if site.isometric:
        return tuple(abs(term.scale) for term in site.terms)
    if any(enlargement(node) is None for node in site.tail):
        return None
    starts = [term.contraction.node for term in site.terms]
    return tuple(walked(site, {node: float(node is start) for node in starts}, enlarged) for start in starts)


def added(site: Site, counts: Sequence[int]) -> float:
    """How many products are added up in an entry of the gradient at most, if so many are in an entry of each contraction."""
    if site.isometric:
        return float(sum(counts))
    starts = [term.contraction.node for term in site.terms]
    return walked(site, dict(zip(starts, map(float, counts), strict=True)), lambda node, _: float(entries(node)))


def walked(site: Site, starts: Mapping[fx.Node, float], weight: Callable[[fx.Node, fx.Node], float]) -> float:
    """A number for the gradient from those of the contractions: every operation adds up its operands', multiplied."""
    found = dict(starts)
    for node in site.tail:
        found[node] = sum(found[operand] * weight(node, operand) for operand in occurrences(node) if operand in found)
    return found[site.gradient]


def occurrences(node: fx.Node) -> list[fx.Node]:
    """The operands of a node, each as often as it stands there."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, dict(node.kwargs)), found.append)
    return found


def enlarged(node: fx.Node, operand: fx.Node) -> float:
    """`enlargement` where it is known, of an operand that may be spread over the others."""
    copies = elements(node) / max(elements(operand), 1) if node.target in SPREADING else 1.0
    known = enlargement(node)
    assert known is not None, "enlargements() has seen every node of the tail"
    return known * math.sqrt(max(copies, 1.0))


def enlargement(node: fx.Node) -> float | None:
    """The norm of an operation. |sum of n entries| <= sqrt(n) |entries|, and n copies are sqrt(n) times as long."""
    if node.target in SHRINKING:
        return 1.0
    if node.target in (aten.add.Tensor, aten.sub.Tensor):
        return 1.0 if not node.kwargs else None
    if node.target is aten.expand.default:
        return math.sqrt(elements(node) / max(elements(operand_node(node, 0)), 1))
    return math.sqrt(entries(node)) if entries(node) > 1 or node.target in ADDING else None


SPREADING: Final = (aten.add.Tensor, aten.sub.Tensor, aten.where.self)
ADDING: Final = (aten.sum.dim_IntList, aten.sum.default, aten.embedding_dense_backward.default)


def entries(node: fx.Node) -> int:
    """How many entries of its operand an operation adds up."""
    if node.target in (aten.sum.dim_IntList, aten.sum.default):
        return elements(operand_node(node, 0)) // max(elements(node), 1)
    return elements(operand_node(node, 1)) if node.target is aten.embedding_dense_backward.default else 1


def elements(node: fx.Node) -> int:
    """How many numbers a value of a tail has: all examples share it."""
    return math.prod(map(int, value(node).shape))


def is_complex(site: Site) -> str | None:
    """Why formulas of inner products and of squares, which are written for real numbers, decline; None for real gradients."""
    fakes = [node.meta["val"] for node in (*(term.contraction.node for term in site.terms), site.gradient)]
    return "its formula is of real numbers, and the gradient is complex" if any(fake.is_complex() for fake in fakes) else None


def is_double(site: Site) -> bool:
    """Whether everything from the contractions to the gradient is in float64."""
    fakes = [node.meta["val"] for node in (*(term.contraction.node for term in site.terms), *site.tail, site.gradient)]
    return all(fake.dtype in (torch.float64, torch.complex128) for fake in fakes if isinstance(fake, Tensor))
