"""Embeddings: gradients of equal rows are added per example, then squared; no table per example is formed.

||G_b||^2 = sum over distinct rows v of ||sum over t with id_t = v of g_t||^2: segment sums, O(B T d).
"""

from __future__ import annotations

from dpcompile.ir.cost import BYTES, WIDTH, B, Cost, T, Work
from dpcompile.ir.site import Rows, Site
from dpcompile.kernels import embedding
from dpcompile.strategies.emitter import Emitter
from dpcompile.strategies.per_example import row_operands
from dpcompile.strategies.scaling import scaled
from dpcompile.strategies.strategy import NormStrategy, SquaredNorm, only

WORK = Work(
    "rows",
    other_flops=4 * B * T * WIDTH,
    bytes_moved=4 * BYTES * B * T * WIDTH,
    fresh_bytes=BYTES * B * T * WIDTH,
    launches=20,
    features=(B, T, WIDTH),
)
COST = Cost((WORK,), workspace_bytes=BYTES * B * T * WIDTH)


def declines(site: Site) -> str | None:
    """Only tables that are looked up."""
    found = only(site, Rows)
    return found if isinstance(found, str) else None


def emit(site: Site, emitter: Emitter) -> SquaredNorm:
    """Segment sums per example, then their squared norm."""
    contraction = site.terms[0].contraction
    assert isinstance(contraction, Rows)
    emitter.at(contraction.node)
    ids, g = row_operands(contraction, emitter)
    squared = emitter.call(embedding.sqnorm_rows, ids, g, contraction.padding_idx)
    return SquaredNorm(scaled(emitter, squared, site.terms[0].scale))


ROWS = NormStrategy("rows", "Kong & Munoz Medina 2023", declines, lambda site: COST, emit)
