"""The operations on the part of a parameter that is trained (`kernels.kept_part`): indices and masks are the same for all
examples."""

from __future__ import annotations

from dpcompile.ir.axis import Constant, Mixes, Shared
from dpcompile.kernels import kept_part
from dpcompile.rules.families import linear_in
from dpcompile.rules.rule import LAID, Result, Rule, Use, differing


def choose(use: Use) -> Result:
    """Rows of an operand, away from the examples."""
    state, dim = use.state(use["x"]), use["dim"] % len(use.shape(use["x"]))
    told = [use.state(use[name]) for name in ("index", "valid") if use[name] is not None]
    is_alike = all(isinstance(other, Shared) for other in told)
    if isinstance(state, LAID) and state.dim != dim and is_alike:
        return state
    if isinstance(state, Constant) and not use.has_batch(use.shape(use["x"])[dim]) and is_alike:
        return differing(use, state, use.result_shape())
    raise Mixes("examples are chosen, or chosen by")


def of_sums_only(use: Use) -> Result:
    """Only gradients, which are sums over the examples, are put in place."""
    raise Mixes("a part of a parameter's gradient is put in place before it is summed over the examples")


RULES: dict[object, Rule] = {
    kept_part.choose: linear_in("x")(choose),
    kept_part.place: linear_in("small")(of_sums_only),
    kept_part.keep: linear_in("x")(of_sums_only),
}
