"""One example at a time: the model's own ordinary backward pass gives the gradient, and its norm and factor are numbers.

The oldest way ("naive" in Rochette et al. 2019, nxBP in Lee and Kifer 2021). Nothing is contracted a second time: the
squared norm is read off the ordinary gradient, and the clipped sum of the one example is that gradient times the factor.
A plan may take it only where examples come one at a time.
"""

from __future__ import annotations

from torch import fx

from dpcompile.ir.cost import Cost
from dpcompile.ir.site import Contraction, Site
from dpcompile.kernels import alone, reduction
from dpcompile.strategies.emitter import Emitter
from dpcompile.strategies.materialize import NORM
from dpcompile.strategies.reweight import cost as contraction_cost
from dpcompile.strategies.strategy import NormStrategy, SquaredNorm, SumStrategy
from dpcompile.strategies.sums import WEIGHTED

REASON = "the ordinary gradient is an example's own only where examples come one at a time: give microbatch=1"


def norm_cost(site: Site) -> Cost:
    """The ordinary contractions, which every other way leaves out, and one more reading of the result."""
    cost = Cost((NORM,))
    for index, term in enumerate(site.terms):
        cost += Cost(tuple(work.of(index) for work in contraction_cost(term.contraction, ORDINARY).work))
    return cost


def emit_norm(site: Site, emitter: Emitter) -> SquaredNorm:
    """The squared norm of the only example."""
    losses = emitter.joint.output("losses")
    assert losses is not None
    emitter.at(site.gradient)
    return SquaredNorm(emitter.call(reduction.sqnorm, emitter.call(alone.only_example, site.gradient, losses)))


def scaled_gradient(site: Site, factors: fx.Node, emitter: Emitter) -> fx.Node:
    """The clipped sum of the parameter: what the norm was taken of, times the factor."""
    found = next(user for user in site.gradient.users if user.target is alone.only_example)
    return emitter.call(reduction.weighted_sum, found, factors)


def declines_sum(contraction: Contraction, norm: NormStrategy) -> str | None:
    """Only beside the norm of the same gradient."""
    return None if norm.name == ORDINARY.name else f"the norm by {norm.name} does not look at the ordinary gradient"


def sum_cost(contraction: Contraction, norm: NormStrategy) -> Cost:
    """The gradient times a number."""
    return Cost((WEIGHTED,))


def emit_sum(contraction: Contraction, norm: NormStrategy, factors: fx.Node, emitter: Emitter) -> fx.Node:
    """Not for one contraction by itself."""
    raise AssertionError("the gradient of a whole parameter is scaled, see scaled_gradient")


ORDINARY = NormStrategy("ordinary", "Rochette et al. 2019, naive", lambda site: REASON, norm_cost, emit_norm)
SCALE = SumStrategy("scale", "Rochette et al. 2019, naive", declines_sum, sum_cost, emit_sum, is_apart=False)
