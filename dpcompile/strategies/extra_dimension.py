"""Convolutions materialised as Rochette et al. (2019) do it: one grouped convolution of one dimension more.

||G_b||^2 of G[b, d, c, k] = sum over t of x[b, c, stride t + dilation k - padding] g[b, d, t], where the channels c are one
more spatial dimension and the examples are groups. The sum reuses G.
"""

from __future__ import annotations

from dpcompile.ir.cost import Work
from dpcompile.ir.site import Convolution, Site
from dpcompile.kernels.extra_dimension import MOST_DIMENSIONS
from dpcompile.strategies import materialize
from dpcompile.strategies.emitter import Emitter
from dpcompile.strategies.strategy import NormStrategy, SquaredNorm

EXTRA = materialize.grouped_work("grouped convolution, one more dimension")


def declines(site: Site) -> str | None:
    """Convolutions in one and two dimensions."""
    for term in site.terms:
        if not isinstance(term.contraction, Convolution):
            return "it needs a convolution"
        dimensions = len(term.contraction.geometry.kernel)
        if dimensions > MOST_DIMENSIONS:
            return f"a convolution in {dimensions} dimensions would need one in {dimensions + 1}, which no library has"
    return None


def work(contraction: Convolution) -> Work:
    """One convolution whose groups are the examples."""
    return EXTRA


def emit(site: Site, emitter: Emitter) -> SquaredNorm:
    """Squared norm of the materialised gradients."""
    return materialize.emit_with(site, emitter, "grouped-extra")


EXTRA_DIMENSION = NormStrategy(
    "grouped-extra", "Rochette et al. 2019", declines, lambda site: materialize.cost(site, work), emit, materializes=True
)
