"""Which sums can follow a norm: of the very gradients that were measured, or computed apart from them where rounding is bounded.

`reuse` adds up the gradients whose norms were taken: however these were rounded, no example contributes more than C.
Book-keeping and a second backward pass form the gradients once more. What this may differ by is bounded (`strategies.interval`),
but not in four cases, which decline any other sum than `reuse`:

- Convolutions of the library add up an example's positions in float32, one after another. Sums of n equal terms came out low
  by up to 1.4e-8 n (oneDNN on an AMD EPYC: 1.3e-5 for 1,024, 7e-4 for 65,536, 1.4e-2 for 1,046,529), those of a large one and
  n small ones by up to 6e-8 n: systematically, and not at random. Matrix products are added up in blocks, or in float64
  (`kernels.dense.products`), and so are rows of tables.
- torch may round the operands of float32 products and convolutions to TensorFloat-32 or bfloat16, where its settings allow it;
  cuDNN's do unless they are changed. A norm of such operands declines, and so does one of half types, whose sum is of float32
  operands; of a sum by a convolution of such operands, behind other norms, the interval tells.
- A tail may enlarge what rounding left, compared with the gradient (a weight less its mean, behind inputs far from zero), by a
  number that is not known (`strategies.growth`).
- Nothing is known of how an operation without a formula rounds.
"""

from __future__ import annotations

from typing import Final

from dpcompile.ir.site import Contraction, Convolution, Dense, Opaque, Site
from dpcompile.strategies.growth import enlargements
from dpcompile.strategies.interval import OWN
from dpcompile.strategies.operand_rounding import convolution_unit, is_wide, product_unit
from dpcompile.strategies.reweight import REWEIGHT
from dpcompile.strategies.strategy import NormStrategy, SumStrategy

MOST_POSITIONS: Final = 128
"""That may be added up in float32 one after another: every addition loses 2^-24 of the sum at most, all of them 7.6e-6
(`kernels.clipping.SLACK` is 1e-5)."""
BY_CONVOLUTION: Final = ("grouped", "grouped-extra", "grouped-gradient", "single", "fused-single")
BY_PRODUCT: Final = ("materialize", "fused")


def misfit(site: Site, norm: NormStrategy, total: SumStrategy) -> str | None:
    """Why a sum cannot follow a norm at some use of a parameter; a second backward is a matter of the whole graph."""
    uses = [] if total is REWEIGHT else [term.contraction for term in site.terms]
    reasons = (total.declines(use, norm) for use in uses)
    return next(filter(None, reasons), None) or (unbounded(site, norm, total) if total.is_apart else None)


def unbounded(site: Site, norm: NormStrategy, total: SumStrategy) -> str | None:
    """Why the sum that belongs to this norm has to be of the same gradients; None where it may be this one, computed apart."""
    if norm.name in OWN:
        return None
    if any(isinstance(term.contraction, Opaque) for term in site.terms):
        return f"the norm by {norm.name} is of an operation without a formula, so that the sum must be of the same gradients"
    if enlargements(site) is None:
        return f"the norm by {norm.name} is taken behind a change of the weight, so that the sum must be of the same gradients"
    return next(filter(None, (too_coarse(term.contraction, norm.name) for term in site.terms)), None)


def too_coarse(contraction: Contraction, norm: str) -> str | None:
    """The same, for how a contraction is added up and its operands are rounded."""
    if norm not in (*BY_CONVOLUTION, *BY_PRODUCT) or not isinstance(contraction, (Convolution, Dense)):
        return None
    if norm in BY_CONVOLUTION and contraction.positions > MOST_POSITIONS and not is_wide(contraction):
        count = f"{contraction.positions:,} positions"
        return f"the norm by {norm} adds up {count} in float32, so that the sum must be of the same gradients"
    if not (convolution_unit if norm in BY_CONVOLUTION else product_unit)(contraction):
        return None
    return f"the norm by {norm} is of operands that torch's settings may round, so that the sum must be of the same gradients"
