"""What a strategy is: a way to get the squared norm of a site, and a way to get the clipped sum of a contraction.

Formula, price and emission of one strategy stand in one file, so that they cannot drift apart. A strategy that does
not fit says why; it is never applied anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from dpcompile.ir.cost import Cost
from dpcompile.ir.site import Contraction, Site
from dpcompile.strategies.emitter import Emitter


@dataclass(frozen=True, slots=True)
class SquaredNorm:
    """Emitted squared norm f64[B] of one site, with the rounding bound |error| <= gamma * bound where there is one."""

    squared: fx.Node
    bounds: tuple[tuple[fx.Node, float], ...] = ()


@dataclass(frozen=True, slots=True)
class NormStrategy:
    """A way to the per-example squared norm.

    declines(site): the reason why it cannot be applied, or None. cost(site): formulas in the site's sizes.
    emit(site, emitter): the nodes. source: where the formula comes from.
    materializes: it leaves the per-example gradient in memory, so that the sum can reuse it.
    """

    name: str
    source: str
    declines: Callable[[Site], str | None]
    cost: Callable[[Site], Cost]
    emit: Callable[[Site, Emitter], SquaredNorm]
    materializes: bool = False


@dataclass(frozen=True, slots=True)
class SumStrategy:
    """A way to the clipped sum of one contraction, given the clip factors f[B].

    is_apart: the gradients are formed once more, and not those added up that were measured.
    """

    name: str
    source: str
    declines: Callable[[Contraction, NormStrategy], str | None]
    cost: Callable[[Contraction, NormStrategy], Cost]
    emit: Callable[[Contraction, NormStrategy, fx.Node, Emitter], fx.Node]
    is_apart: bool = True


def only(site: Site, *families: type) -> Contraction | str:
    """The one contraction of a site whose tail keeps norms, or why there is none of these families."""
    if len(site.terms) != 1:
        return f"the parameter is used {len(site.terms)} times, so cross terms count"
    if not site.isometric:
        return "the gradient is transformed after the sum over the batch in a way that changes norms"
    contraction = site.terms[0].contraction
    if not isinstance(contraction, families):
        wanted = " or ".join(family.__name__ for family in families)
        return f"it needs a contraction of the family {wanted}, this is {type(contraction).__name__}"
    return contraction
