"""By how much a site's tail can enlarge what rounding left in a contraction: squares of operator norms, where they are known."""

from __future__ import annotations

import math
import operator
from typing import Final

import torch
from torch import fx

from dpcompile.ir.graph import operand_node, value
from dpcompile.ir.site import Site
from dpcompile.kernels import kept_part

aten = torch.ops.aten
SHRINKING: Final = frozenset((
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default,
    aten.unsqueeze.default, aten.t.default, aten.transpose.int, aten.permute.default, aten.clone.default, aten._to_copy.default,
    aten.neg.default, aten.slice.Tensor, aten.select.int, aten.slice_backward.default, aten.select_backward.default,
    aten.add.Tensor, aten.cat.default, aten.where.self, operator.getitem, kept_part.keep, kept_part.place, kept_part.choose,
))  # fmt: skip
"""What rearranges entries, leaves some out, puts them among others, or adds up uses (which are counted one by one)."""


def growth(site: Site) -> int | None:
    """How many entries an entry of the gradient may be the sum of, and how often one may appear; None where that is not known."""
    if site.isometric:
        return 1
    found = [growth_of(node) for node in site.tail]
    return None if None in found else math.prod(filter(None, found))


def growth_of(node: fx.Node) -> int | None:
    """The square of an operation's norm. |sum of n entries| <= sqrt(n) |entries|, and n copies are sqrt(n) times as long."""
    if node.target in SHRINKING:
        return 1
    if node.target in (aten.sum.dim_IntList, aten.sum.default):
        return elements(operand_node(node, 0)) // max(elements(node), 1)
    if node.target is aten.expand.default:
        return elements(node) // max(elements(operand_node(node, 0)), 1)
    if node.target is aten.embedding_dense_backward.default:
        return elements(operand_node(node, 1))
    return None


def elements(node: fx.Node) -> int:
    """How many numbers a value of a tail has: all examples share it."""
    return math.prod(map(int, value(node).shape))
