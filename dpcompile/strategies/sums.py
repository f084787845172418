"""Clipped sums of contractions, given the clip factors.

    bookkeep  scale the kept output gradient by the factor and run the ordinary contraction (Bu et al. 2023)
    unfold    the same for a convolution, as one matrix product on the unfolded input that the norm formed
    reuse     weighted sum of the materialised per-example gradients; no second contraction

The tail of a site is linear, so it runs once on the sum, as in the ordinary backward pass. Only `reuse` behind a tail that
changes norms, or of several uses, adds up what comes out of the tail for every example: that is what was measured, and what
cancels in the tail is rounded once and not twice.
"""

from __future__ import annotations

import operator

import sympy
import torch
from torch import fx

from dpcompile.ir.cost import BYTES, D_IN, D_OUT, GROUPS, PARAMETERS, ROWS, T_IN, TAPS, WIDTH, B, Cost, T, Work
from dpcompile.ir.site import Contraction, Convolution, Dense, Rows, Site
from dpcompile.kernels import convolution, dense, embedding, reduction
from dpcompile.strategies.emitter import Emitter
from dpcompile.strategies.gram import unfolded_input, unfolding
from dpcompile.strategies.materialize import DENSE, DEPTHWISE, is_same_norm, measured_gradient
from dpcompile.strategies.per_example import CONVOLUTION_FORMS, per_example_gradient, row_operands
from dpcompile.strategies.strategy import NormStrategy, SumStrategy
from dpcompile.strategies.tail import copied_tail

Sums = dict[fx.Node, fx.Node]
"""Clipped sums by the contractions that they are of."""

PRODUCT = Work(
    "contract",
    matrix_flops=2 * B * T * D_IN * D_OUT,
    bytes_moved=BYTES * B * T * (D_IN + 2 * D_OUT),
    fresh_bytes=BYTES * (B * T * sympy.Min(D_IN, D_OUT) + PARAMETERS),
    launches=8,
    product=(1, D_OUT, D_IN, B * T),
    features=(B * T, D_IN, D_OUT),
)
UNFOLDED_PRODUCT = Work(
    "unfolded contract",
    matrix_flops=2 * B * GROUPS * T * D_IN * D_OUT,
    bytes_moved=BYTES * B * GROUPS * T * (D_IN + 2 * D_OUT),
    fresh_bytes=BYTES * B * GROUPS * T * sympy.Min(D_IN, D_OUT),
    launches=8,
    product=(GROUPS, D_OUT, D_IN, B * T),
    features=(B, T, D_IN, D_OUT, GROUPS),
)
WEIGHT_GRADIENT = Work(  # an input has T_in * d / K elements per group: d counts every tap of the kernel
    "convolution weight gradient",
    matrix_flops=2 * B * GROUPS * T * D_IN * D_OUT,
    bytes_moved=BYTES * B * GROUPS * (T_IN * D_IN / TAPS + 2 * T * D_OUT),
    fresh_bytes=BYTES * B * GROUPS * sympy.Min(T_IN * D_IN / TAPS, T * D_OUT),
    launches=8,
    product=(GROUPS, D_OUT, D_IN, B * T),
    features=(B, T, D_IN / TAPS, D_OUT, TAPS, GROUPS),
)
SCATTER = Work(
    "contract rows",
    other_flops=2 * B * T * WIDTH,
    bytes_moved=3 * BYTES * B * T * WIDTH + 2 * BYTES * PARAMETERS,
    fresh_bytes=BYTES * (B * T * WIDTH + PARAMETERS),
    launches=3,
    features=(B * T, WIDTH, ROWS),
)
WEIGHTED = Work(
    "weighted sum",
    matrix_flops=2 * B * PARAMETERS,
    bytes_moved=BYTES * B * PARAMETERS,
    launches=5,
    product=(1, 1, PARAMETERS, B),
    features=(B, PARAMETERS),
)


def bookkeep_declines(contraction: Contraction, norm: NormStrategy) -> str | None:
    """Contractions that can be run again with one scaled operand."""
    if isinstance(contraction, Rows) or (isinstance(contraction, Dense) and contraction.groups == 1):
        return None
    if isinstance(contraction, Convolution):
        return "several images per example share a clip factor" if contraction.x.folded != 1 else None
    return "the per-example gradient is no larger than what would be kept instead"


def bookkeep_cost(contraction: Contraction, norm: NormStrategy) -> Cost:
    """The ordinary contraction with one scaled operand."""
    if isinstance(contraction, Convolution):
        return convolution_cost(contraction)
    if isinstance(contraction, Dense):
        return Cost((PRODUCT,))
    return Cost((SCATTER,))


def convolution_cost(contraction: Convolution) -> Cost:
    """What `convolution.contract` does for these sizes."""
    way = convolution.way_to_contract(contraction.geometry, contraction.weight_shape, contraction.positions)
    ways = {
        "depthwise": (DEPTHWISE, WEIGHTED),
        "unfold": (*unfolding(contraction).work, UNFOLDED_PRODUCT),
        "weight gradient": (WEIGHT_GRADIENT,),
    }
    return Cost(ways[way])


def emit_bookkeep(contraction: Contraction, norm: NormStrategy, factors: fx.Node, emitter: Emitter) -> fx.Node:
    """Run the contraction on scaled operands."""
    if isinstance(contraction, Rows):
        ids, g = row_operands(contraction, emitter)
        table = emitter.call(embedding.contract_rows, ids, g, factors, contraction.rows, contraction.padding_idx)
        return emitter.call(torch.ops.aten.view.default, table, list(contraction.node.meta["val"].shape))
    if isinstance(contraction, Convolution):
        return emitter.call(convolution.contract, contraction.x.node, contraction.g.node, factors, contraction.geometry)
    assert isinstance(contraction, Dense)
    stacked = len(contraction.node.meta["val"].shape) == 3
    operands = emitter.flat if contraction.positions == 1 and not stacked else emitter.rows
    product = emitter.call(dense.contract, operands(contraction.a), operands(contraction.g), factors)
    return emitter.call(torch.ops.aten.unsqueeze.default, product, 0) if stacked else product


def unfold_declines(contraction: Contraction, norm: NormStrategy) -> str | None:
    """Convolutions whose input the norm has unfolded anyway."""
    if not isinstance(contraction, Convolution) or contraction.x.folded != 1:
        return "it needs a convolution"
    return None if norm.name in ("gram", "materialize") else f"the norm by {norm.name} does not unfold the input"


def emit_unfold(contraction: Contraction, norm: NormStrategy, factors: fx.Node, emitter: Emitter) -> fx.Node:
    """One matrix product on the unfolded input."""
    assert isinstance(contraction, Convolution)
    other = contraction.x if contraction.geometry.transposed else contraction.g
    unfolded = unfolded_input(contraction, emitter)
    return emitter.call(convolution.contract_unfolded, unfolded, other.node, factors, contraction.geometry)


def unfold_cost(contraction: Contraction, norm: NormStrategy) -> Cost:
    """The product, and the unfolding where the norm has not left it in memory."""
    assert isinstance(contraction, Convolution)
    again = Cost() if norm.name == "gram" else unfolding(contraction)
    product = (DENSE, WEIGHTED) if contraction.geometry.groups > 1 else (UNFOLDED_PRODUCT,)
    return Cost((*again.work, *product))


def reuse_cost(contraction: Contraction, norm: NormStrategy) -> Cost:
    """One product of a vector with the materialised gradients."""
    return Cost((WEIGHTED,))


def reuse_declines(contraction: Contraction, norm: NormStrategy) -> str | None:
    """Only where the norm has materialised the gradients."""
    return None if norm.materializes else f"the norm by {norm.name} does not materialise per-example gradients"


def emit_reuse(contraction: Contraction, norm: NormStrategy, factors: fx.Node, emitter: Emitter) -> fx.Node:
    """Weighted sum of the materialised gradients."""
    anchor = emitter.anchor
    gradients = per_example_gradient(contraction, emitter, form_of(norm.name))
    emitter.anchor = anchor
    return emitter.call(reduction.weighted_sum, gradients, factors)


def form_of(norm: str) -> str:
    """How a norm materialises convolutions."""
    return norm if norm in CONVOLUTION_FORMS else "unfold"


def emit_site(site: Site, norm: NormStrategy, total: SumStrategy, factors: fx.Node, emitter: Emitter, sums: Sums) -> fx.Node:
    """The clipped sum of a parameter; sites that share a contraction share its sum, which `sums` holds."""
    if total is REUSE and not is_same_norm(site):
        anchor = emitter.anchor
        measured = measured_gradient(site, emitter, form_of(norm.name))
        emitter.anchor = anchor
        return emitter.call(reduction.weighted_sum, measured, factors)
    for term in site.terms:
        if term.contraction.node not in sums:
            sums[term.contraction.node] = emit_one(term.contraction, norm, total, factors, emitter)
    return copied_tail(site, sums, emitter)


def emit_one(contraction: Contraction, norm: NormStrategy, total: SumStrategy, factors: fx.Node, emitter: Emitter) -> fx.Node:
    """The clipped sum of one contraction, at the place in the user's program that it comes from."""
    call = contraction.node.args[0] if contraction.node.target is operator.getitem else contraction.node
    assert isinstance(call, fx.Node)
    emitter.place = call.meta.get("module_path", ""), call.meta.get("source_line", "")
    return total.emit(contraction, norm, factors, emitter)


BOOKKEEP = SumStrategy("bookkeep", "Bu et al. 2023", bookkeep_declines, bookkeep_cost, emit_bookkeep)
UNFOLD = SumStrategy("unfold", "Bu et al. 2022", unfold_declines, unfold_cost, emit_unfold)
REUSE = SumStrategy("reuse", "Bu et al. 2023, MixOpt", reuse_declines, reuse_cost, emit_reuse, is_apart=False)
