"""The methods of the founding papers as data: for every kind of site the norms in order, a sum, and a schedule.

    strategy="ghost"    resolved by `resolve` into {parameter: (norm, sum)}, which is what the rest of the compiler works with

A method is what its paper does, site by site. Where the paper itself forms a parameter's gradients directly (biases, scales
of normalisations), the table says "materialize"; where the paper has no way, the method does not apply to the model and says
which parameter stands in the way. Behind weight norm and weight standardisation, which the papers on Gram matrices do not
treat, their methods take "projected", a Gram norm and a few inner products; so does "reweight", whose sum is computed apart from
materialised gradients. Parameters are of these kinds, by the contractions
that their gradients come from:

    product       a matrix product
    convolution   a convolution, or several uses of one
    lookup        rows of a table
    reused        several of these that share a parameter
    other         sums, scales of normalisations, what has no closed form, or several uses of these
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from dpcompile.cost.prices import contraction_sizes
from dpcompile.ir.errors import StrategyError
from dpcompile.ir.site import Convolution, Cut, Dense, Rows, Site
from dpcompile.strategies import NORMS, SUMS
from dpcompile.strategies.apart import misfit
from dpcompile.strategies.projected import PROJECTED
from dpcompile.strategies.reweight import PLACE

KINDS: Final = ("product", "convolution", "lookup", "reused", "other")
Norms = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Method:
    """One method of the literature.

    source: author and year. norms: for every kind of site the norm strategies in order; the first that can be applied is
    taken. sums: the sum strategies in the same way. schedule: of `dpcompile()`; "microbatch" means one example at a time.
    is_mixed: Gram norms only where 2 T^2 <= p d, and "materialize" elsewhere. copies: the whole step runs with one copy of
    the parameters for every example. instead: what to ask for where the method does not apply. text: what it is.
    """

    name: str
    source: str
    norms: Norms
    sums: tuple[str, ...]
    schedule: str
    instead: str
    text: str
    is_mixed: bool = False
    copies: bool = False

    def __str__(self) -> str:
        return f'strategy="{self.name}" ({self.source}): {self.text}'

    def norms_for(self, site: Site) -> tuple[str, ...]:
        """The norm strategies in order, for a tail that changes norms or for one that keeps them."""
        kind = kind_of(site)
        is_product = kind in ("product", "convolution") and site.isometric
        large = self.is_mixed and is_product and not is_gram_smaller(site)
        norms = ("materialize",) if large else self.norms[kind]
        return tuple(norm for norm in norms if norm != PROJECTED.name or not site.isometric)


def of_each(materialized: str = "materialize", **others: tuple[str, ...]) -> Norms:
    """Norms by kind: materialised by this strategy unless something else is said."""
    return MappingProxyType({**dict.fromkeys(KINDS, (materialized,)), **others})


GHOST: Final = of_each(
    product=("outer", "gram", "projected"), convolution=("gram", "projected"), lookup=("rows",), reused=("cross",)
)
MIXED: Final = of_each(
    product=("outer", "gram", "projected", "materialize"), convolution=("gram", "projected", "materialize"),
    lookup=("rows", "materialize"),
)  # fmt: skip

REWEIGHTED: Final = of_each(
    product=("outer", "materialize", "projected"), convolution=("materialize", "projected"), lookup=("rows", "materialize")
)

METHODS: Final[Mapping[str, Method]] = {
    method.name: method
    for method in (
        Method("naive", "Rochette et al. 2019", of_each("ordinary"), ("scale",), "microbatch", "crb-unfold",
               "a loop over examples, one at a time: the ordinary forward and backward, and its gradient clipped"),
        Method("multi", "Rochette et al. 2019", of_each(), ("reuse",), "one-pass", "crb-unfold",
               "one copy of the parameters for every example, and one batched pass through all copies (vmap)", copies=True),
        Method("crb", "Rochette et al. 2019", of_each(convolution=("grouped-extra",)), ("reuse",), "one-pass", "crb-nd",
               "per-example gradients by the chain rule, convolutions as a grouped convolution of one dimension more"),
        Method("crb-nd", "Rochette et al. 2019", of_each(convolution=("grouped",)), ("reuse",), "one-pass", "crb-unfold",
               "the same without the extra dimension: channels become the batch, which covers three dimensions"),
        Method("crb-unfold", "Rochette et al. 2019", of_each(), ("reuse",), "one-pass", "auto",
               "the same with convolutions as batched matrix products of the unfolded input"),
        Method("reweight", "Lee and Kifer 2021", REWEIGHTED,
               ("reweight",), "two-pass", "crb-unfold",
               "norms from a first backward, layer by layer, then a backward of the losses times the clip factors"),
        Method("ghost", "Li et al. 2021", GHOST, ("reweight",), "two-pass", "mixed-ghost",
               "norms from Gram matrices at every site then a second backward (Opacus, private-transformers)"),
        Method("mixed-ghost", "Bu et al. 2022", MIXED, ("reweight",), "two-pass", "crb-unfold",
               "Gram matrices where 2 T^2 <= p d, else per-example gradients; then a second backward", is_mixed=True),
        Method("bookkeep", "Bu et al. 2023", GHOST, ("bookkeep", "reuse"), "one-pass", "auto",
               "norms from Gram matrices in one backward; sums from the operands that were kept"),
    )
}  # fmt: skip


def kind_of(site: Site) -> str:
    """What a parameter's gradient comes from."""
    kinds = {type(term.contraction) for term in site.terms}
    names = {Dense: "product", Convolution: "convolution", Rows: "lookup"}
    found = {names.get(kind, "other") for kind in kinds}
    return found.pop() if len(site.terms) == 1 or found in ({"convolution"}, {"other"}) else "reused"


def is_gram_smaller(site: Site) -> bool:
    """2 T^2 <= p d at every use: two Gram matrices take no more memory than the gradient (Bu et al. 2022).

    Per group, for groups multiply both sides alike.
    """
    sizes = [contraction_sizes(term.contraction) for term in site.terms]
    return all(2 * s["T"] ** 2 <= s["p"] * s["d"] for s in sizes)


def method_of(strategy: Any) -> Method | None:
    """The method of this name; None for whatever else a strategy may be."""
    return METHODS.get(strategy) if isinstance(strategy, str) else None


def resolve(method: Method, sites: Sequence[Site], cuts: Sequence[Cut]) -> dict[str, tuple[str, str]]:
    """{parameter: (norm, sum)} for these sites; StrategyError names the parameter that the method has no way for."""
    if method.schedule == "two-pass":
        check_cuts(method, sites, cuts)
    return {site.parameter: way(method, site) for site in sites}


def check_cuts(method: Method, sites: Sequence[Site], cuts: Sequence[Cut]) -> None:
    """Refuse a second backward that cannot be run, or that some parameter's gradient does not come from."""
    behind = set(cuts[0].parameters) if cuts else set()
    missing = next((site.parameter for site in sites if site.parameter not in behind), None)
    if missing is not None:
        raise StrategyError(
            f'strategy="{method.name}" runs backward a second time, which does not give the gradient of {missing}: no value that '
            f'it flows through has {PLACE}. Use strategy="bookkeep", which runs backward once'
        )


def way(method: Method, site: Site) -> tuple[str, str]:
    """The first norm that can be applied, with the first sum that fits it."""
    for norm in method.norms_for(site):
        reason = None if norm == "ordinary" else NORMS[norm].declines(site)
        reasons = [reason or misfit(site, NORMS[norm], SUMS[total]) for total in method.sums]
        if None in reasons:
            return norm, method.sums[reasons.index(None)]
    raise StrategyError(
        f'strategy="{method.name}" does not apply to {site.parameter} by {norm}: {reasons[-1]}. '
        f'Use strategy="{method.instead}", or choose for this parameter: strategy={{"{site.parameter}": "materialize"}}'
    )
