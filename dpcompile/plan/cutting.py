"""Which cut the user asked for, by schedule or by strategies, and which ones are worth trying."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dpcompile.ir.errors import StrategyError
from dpcompile.ir.site import Cut, Site
from dpcompile.plan.select import Wanted, check_names, wanted_for
from dpcompile.strategies.reweight import PLACE, REWEIGHT

MOST: Final = 4
"""Cuts that are tried for a memory budget: each costs one rewriting of the graph."""


def asked_cut(schedule: str, strategy: Wanted, sites: Sequence[Site], cuts: Sequence[Cut]) -> Cut | None:
    """The cut of schedule="two-pass", or the one behind which exactly the parameters with the sum "reweight" are; None where
    backward runs once."""
    check_names(strategy, sites)
    named = {site.parameter for site in sites if wanted_for(site, strategy)[1] == REWEIGHT.name}
    if (schedule != "two-pass" and not named) or not sites:  # without a gradient there is nothing to run backward for
        return None
    if schedule == "one-pass":
        raise StrategyError('the sum "reweight" takes a second backward, which schedule="one-pass" excludes')
    if not cuts:
        raise StrategyError(
            f"backward cannot be run a second time for this model: no value that all gradients flow through has {PLACE}. "
            'Use schedule="one-pass" or "microbatch"'
        )
    if not named:
        return cuts[0]
    found = next((cut for cut in cuts if set(cut.parameters) == named), None)
    if found is None:
        nearest = min(cuts, key=lambda cut: len(named.symmetric_difference(cut.parameters)))
        raise StrategyError(
            'the sum "reweight" must be asked for exactly the parameters behind one cut of the backward pass; the nearest cut '
            f"has {', '.join(nearest.parameters)}, asked for are {', '.join(sorted(named))}"
        )
    return found


def worth_trying(cuts: Sequence[Cut]) -> tuple[Cut, ...]:
    """A few cuts, evenly from the losses on."""
    step = max(1, -(-len(cuts) // MOST))
    return tuple(cuts[::step])
