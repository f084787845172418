"""One position per example and single entries that count: the norm of a masked outer product by one matrix product.

|M * g a^T|^2 = <g^2 M, a^2> (elementary; with M of ones it is Goodfellow's product of two norms). Neither the gradient nor its
masked copy is formed; the sum by book-keeping is masked once, behind the sum over the batch.
"""

from __future__ import annotations

import torch
from torch import fx

from dpcompile.ir.cost import BYTES, D_IN, D_OUT, B, Cost, Work
from dpcompile.ir.graph import value
from dpcompile.ir.site import Dense, Site
from dpcompile.kernels import kept_part, masked
from dpcompile.strategies.emitter import Emitter, dtype_of
from dpcompile.strategies.strategy import NormStrategy, SquaredNorm

aten = torch.ops.aten
ROWS, WEIGHT = B * (D_IN + D_OUT), D_IN * D_OUT
WORK = Work(
    "masked outer", matrix_flops=2 * B * WEIGHT, other_flops=2 * ROWS + WEIGHT,
    bytes_moved=BYTES * (8 * ROWS + 4 * WEIGHT), fresh_bytes=BYTES * (4 * ROWS + 2 * WEIGHT), launches=8,
    product=(1, B, D_OUT, D_IN), features=(B, D_IN, D_OUT),
)  # fmt: skip
COST = Cost((WORK,), workspace_bytes=2 * BYTES * (ROWS + WEIGHT))


def entries_of(site: Site) -> tuple[fx.Node, bool] | None:
    """The truth values of single entries that a site's tail keeps, and whether they lie the other way round than the
    contraction; None where the tail does more."""
    current, flipped, found = site.terms[0].contraction.node, False, None
    for node in site.tail:
        if node is current:
            continue
        if not node.args or node.args[0] is not current:
            return None
        if node.target is kept_part.keep and found is None:
            entries = node.args[1]
            assert isinstance(entries, fx.Node)
            found = entries, flipped
        elif node.target is aten.t.default:
            flipped = not flipped
        elif node.target is not kept_part.place and not widens(current, node):  # both keep norms
            return None
        current = node
    return found


def widens(before: fx.Node, node: fx.Node) -> bool:
    """Whether a node converts to a type that holds every number of the one before (autocast)."""
    if node.target is not aten._to_copy.default:
        return False
    target = value(node).dtype
    return torch.promote_types(value(before).dtype, target) == target


def declines(site: Site) -> str | None:
    """Single matrix products with one position per example behind a mask of single entries."""
    if len(site.terms) != 1:
        return f"the parameter is used {len(site.terms)} times, so cross terms count"
    found = site.terms[0].contraction
    if not isinstance(found, Dense) or found.groups != 1 or found.positions != 1:
        return "it needs a single matrix product with one position per example"
    entries = entries_of(site)
    if entries is None or len(value(entries[0]).shape) != 2 or len(value(found.node).shape) != 2:
        return "what comes after the sum over the batch is no mask of single entries"
    return None


def emit(site: Site, emitter: Emitter) -> SquaredNorm:
    """Squared norm and its rounding bound."""
    contraction, found = site.terms[0].contraction, entries_of(site)
    assert isinstance(contraction, Dense) and found is not None
    entries, flipped = found
    entries = emitter.call(aten.t.default, entries) if flipped else entries
    pair = emitter.call(masked.sqnorm_masked, emitter.flat(contraction.a), emitter.flat(contraction.g), entries)
    gamma = masked.masked_gamma(contraction.d, contraction.p, dtype_of(contraction.g.node))
    return SquaredNorm(emitter.item(pair, 0), ((emitter.item(pair, 1), gamma),))


MASKED = NormStrategy("masked", "elementary", declines, lambda site: COST, emit)
