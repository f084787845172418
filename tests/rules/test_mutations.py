"""Broken rules are found: for every row, each of some typical mistakes is contradicted by at least one sample.

Not every change is a mistake. A copy does keep the state of its first operand; a rule that refuses with caution (a sum
over the batch that enters a pooling, say) may as well say what is true; and for random draws any folding is true.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from meaning import REFUSED, Sample, claim, has_truth, verdict
from samples import SAMPLES

from dpcompile.ir.axis import SHARED, SUMMED, Batched, Constant, Mixes, State, Uniform
from dpcompile.rules import OPS
from dpcompile.rules.rule import LAID, Result, Rule, Use

Mutation = Callable[[Rule], Rule]


def results(use: Use, state: State) -> Result:
    """The same state for every result."""
    fakes = use.node.meta["val"]
    return state if isinstance(fakes, torch.Tensor) else (state,) * len(fakes)


def always(state: State) -> Mutation:
    """The rule says one thing whatever it is given."""
    return lambda rule: lambda use: results(use, state)


def first_operand(rule: Rule) -> Rule:
    """The rule repeats the state of its first operand."""
    return lambda use: results(use, use.state(use.tensors()[0])) if use.tensors() else rule(use)


def never_refuses(rule: Rule) -> Rule:
    """Where the rule would refuse, it names the layout of an operand, or a sum."""

    def wrapped(use: Use) -> Result:
        try:
            return rule(use)
        except Mixes:
            laid = [use.state(node) for node in use.tensors() if isinstance(use.state(node), LAID)]
            return results(use, laid[0] if laid else SUMMED)

    return wrapped


def always_refuses(rule: Rule) -> Rule:
    """The rule declines everything."""

    def wrapped(use: Use) -> Result:
        raise Mixes("mutation")

    return wrapped


def forgets_folding(rule: Rule) -> Rule:
    """The rule drops how positions are folded into the examples' dimension, or exchanges inner and outer."""
    return lambda use: mapped(rule(use), lambda s: type(s)(s.dim, s.inner, s.outer) if isinstance(s, LAID) else s)


def equal_for_all(rule: Rule) -> Rule:
    """The rule says that examples have equal values."""
    return lambda use: mapped(rule(use), lambda s: Uniform(s.dim, s.outer, s.inner) if isinstance(s, Batched) else s)


def mapped(said: Result, change: Callable[[State], State]) -> Result:
    """A result with every state changed."""
    return tuple(map(change, said)) if isinstance(said, tuple) else change(said)


MUTATIONS: dict[str, Mutation] = {
    "always Batched(0)": always(Batched(0)),
    "always Shared": always(SHARED),
    "always Summed": always(SUMMED),
    "first operand": first_operand,
    "never refuses": never_refuses,
    "always refuses": always_refuses,
    "forgets folding": forgets_folding,
    "equal for all": equal_for_all,
}


@pytest.mark.parametrize("op", SAMPLES, ids=str)
def test_broken_rules_are_found(op: Any) -> None:
    survivors = []
    for name, mutate in MUTATIONS.items():
        broken = mutate(OPS[op])
        said = {sample: claim(sample, broken) for sample in SAMPLES[op]}
        mistaken = any(is_mistake(sample, claim(sample, OPS[op]), found) for sample, found in said.items())
        if mistaken and not any(verdict(sample, found) for sample, found in said.items()):
            survivors.append(name)
    assert not survivors, f"{op}: not contradicted by any sample: {', '.join(survivors)}"


def is_mistake(sample: Sample, right: Result | str, found: Result | str) -> bool:
    """Whether a broken rule differs from the right one where that matters."""
    if found == right or (sample.drawn and REFUSED not in (right, found)):
        return False
    if right == REFUSED:
        return not has_truth(sample)
    if found == REFUSED:
        return not sample.allows_refusal()
    return any(not is_refinement(*pair) for pair in zip(states(right), states(found), strict=True))


def states(said: Any) -> tuple[State, ...]:
    """What is said of every result."""
    return said if isinstance(said, tuple) else (said,)


def is_refinement(right: State, found: State) -> bool:
    """Whether both may be true, one of them saying more: equal elements, equal examples, or neither."""
    return (
        right == found
        or isinstance(found, Constant)
        or (isinstance(right, (Constant, Uniform)) and isinstance(found, (Batched, Uniform)))
    )


def test_a_removed_row_is_found() -> None:
    samples = SAMPLES[torch.ops.aten.mm.default]
    assert any(verdict(sample, REFUSED) for sample in samples)
