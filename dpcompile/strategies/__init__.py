"""Ways to get a squared norm and a clipped sum for one site, in tables that can be read aloud."""

from __future__ import annotations

from dpcompile.strategies.cross import CROSS
from dpcompile.strategies.extra_dimension import EXTRA_DIMENSION
from dpcompile.strategies.fused import FUSED
from dpcompile.strategies.gram import GRAM
from dpcompile.strategies.masked import MASKED
from dpcompile.strategies.materialize import GROUPED_CONVOLUTION, MATERIALIZE
from dpcompile.strategies.ordinary import ORDINARY, SCALE
from dpcompile.strategies.outer import OUTER
from dpcompile.strategies.own_gradient import FUSED_SINGLE, GROUPED_GRADIENT, SINGLE
from dpcompile.strategies.projected import PROJECTED
from dpcompile.strategies.reweight import REWEIGHT
from dpcompile.strategies.rows import ROWS
from dpcompile.strategies.strategy import NormStrategy, SumStrategy
from dpcompile.strategies.sums import BOOKKEEP, REUSE, UNFOLD

NORMS: dict[str, NormStrategy] = {
    s.name: s
    for s in (
        OUTER,
        MASKED,
        GRAM,
        MATERIALIZE,
        GROUPED_CONVOLUTION,
        EXTRA_DIMENSION,
        GROUPED_GRADIENT,
        SINGLE,
        FUSED,
        FUSED_SINGLE,
        ROWS,
        CROSS,
        PROJECTED,
        ORDINARY,
    )
}
SUMS: dict[str, SumStrategy] = {s.name: s for s in (BOOKKEEP, UNFOLD, REUSE, REWEIGHT, SCALE)}
