"""Clipped sums of contractions, given the clip factors.

    bookkeep  scale the kept output gradient by the factor and run the ordinary contraction (Bu et al. 2023)
    unfold    the same for a convolution, as one matrix product on the unfolded input that the norm formed
    reuse     weighted sum of the materialised per-example gradients; no second contraction

The tail of a site is linear, so it runs once on the sum, as in the ordinary backward pass.
"""

from __future__ import annotations

import torch
from torch import fx

from dpcompile.ir.cost import BYTES, D_IN, D_OUT, GROUPS, PARAMETERS, T_IN, TAPS, WIDTH, B, Cost, T
from dpcompile.ir.site import Contraction, Convolution, Dense, Rows
from dpcompile.kernels import convolution, dense, embedding, reduction
from dpcompile.strategies.emitter import Emitter
from dpcompile.strategies.gram import unfolded_input
from dpcompile.strategies.per_example import per_example_gradient, row_operands
from dpcompile.strategies.strategy import NormStrategy, SumStrategy

PRODUCT = Cost(
    matrix_flops=2 * B * GROUPS * T * D_IN * D_OUT,
    bytes_moved=BYTES * B * GROUPS * T * (D_IN + 2 * D_OUT),
    resident_bytes=BYTES * B * GROUPS * T * (D_IN + D_OUT),
    launches=2,
)
WEIGHT_GRADIENT = Cost(  # an input has T_in * d / K elements per group: d counts every tap of the kernel
    matrix_flops=2 * B * GROUPS * T * D_IN * D_OUT,
    bytes_moved=BYTES * B * GROUPS * (T_IN * D_IN / TAPS + 2 * T * D_OUT),
    resident_bytes=BYTES * B * GROUPS * (T_IN * D_IN / TAPS + T * D_OUT),
    launches=2,
    form="convolution weight gradient",
)
SCATTER = Cost(
    other_flops=2 * B * T * WIDTH,
    bytes_moved=3 * BYTES * B * T * WIDTH,
    resident_bytes=BYTES * B * T * WIDTH,
    launches=2,
)
WEIGHTED = Cost(
    other_flops=2 * B * PARAMETERS,
    bytes_moved=BYTES * B * PARAMETERS,
    resident_bytes=BYTES * B * PARAMETERS,
    launches=1,
)


def bookkeep_declines(contraction: Contraction, norm: NormStrategy) -> str | None:
    """Contractions that can be run again with one scaled operand."""
    if isinstance(contraction, Rows) or (isinstance(contraction, Dense) and contraction.groups == 1):
        return None
    if isinstance(contraction, Convolution):
        return None if contraction.x.folded == 1 else "several images per example share a clip factor"
    return "the per-example gradient is no larger than what would be kept instead"


def bookkeep_cost(contraction: Contraction) -> Cost:
    """The ordinary contraction with one scaled operand."""
    if isinstance(contraction, Dense):
        return PRODUCT
    return SCATTER if isinstance(contraction, Rows) else WEIGHT_GRADIENT


def emit_bookkeep(contraction: Contraction, norm: NormStrategy, factors: fx.Node, emitter: Emitter) -> fx.Node:
    """Run the contraction on scaled operands."""
    if isinstance(contraction, Rows):
        ids, g = row_operands(contraction, emitter)
        table = emitter.call(embedding.contract_rows, ids, g, factors, contraction.rows, contraction.padding_idx)
        return emitter.call(torch.ops.aten.view.default, table, list(contraction.node.meta["val"].shape))
    if isinstance(contraction, Convolution):
        return emitter.call(convolution.contract, contraction.x.node, contraction.g.node, factors, contraction.geometry)
    assert isinstance(contraction, Dense)
    product = emitter.call(dense.contract, emitter.rows(contraction.a), emitter.rows(contraction.g), factors)
    stacked = len(contraction.node.meta["val"].shape) == 3
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


def reuse_declines(contraction: Contraction, norm: NormStrategy) -> str | None:
    """Only where the norm has materialised the gradients."""
    return None if norm.materializes else f"the norm by {norm.name} does not materialise per-example gradients"


def emit_reuse(contraction: Contraction, norm: NormStrategy, factors: fx.Node, emitter: Emitter) -> fx.Node:
    """Weighted sum of the materialised gradients."""
    anchor = emitter.anchor
    gradients = per_example_gradient(contraction, emitter, "grouped" if norm.name == "grouped" else "unfold")
    emitter.anchor = anchor
    return emitter.call(reduction.weighted_sum, gradients, factors)


BOOKKEEP = SumStrategy("bookkeep", "Bu et al. 2023", bookkeep_declines, bookkeep_cost, emit_bookkeep)
UNFOLD = SumStrategy("unfold", "Bu et al. 2022", unfold_declines, lambda contraction: PRODUCT, emit_unfold)
REUSE = SumStrategy("reuse", "Bu et al. 2023, MixOpt", reuse_declines, lambda contraction: WEIGHTED, emit_reuse)
