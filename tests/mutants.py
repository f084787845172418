"""Broken rules by kind, and whether the samples notice: `python -m mutants`, with tests/ on the path.

A mutant is a row of the rules with one typical mistake. It is

    caught      if a sample contradicts what it says, or if it fails aloud
    idle        if it says what the right rule says, on every sample: the mistake finds nothing to change in this row
                (a rule that never says Summed cannot say Batched instead), or no sample shows the difference
    tolerated   if it says something else that is true as well, or refuses what a rule may refuse
    survives    if it is wrong by comparison with the right rule, and nothing contradicts it

Idle mutants that should have had something to change are listed too: rows with a dimension argument that is misread, and
operands whose examples are overlooked, without a sample that shows it, nor one with an operand in another state
(`other_states`). Overlooking an operand is said to change nothing where in every sample another operand holds the examples, too:
the row takes the layout from that one (a recurrent layer's inputs and states, queries and keys).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import typer
from meaning import REFUSED, Sample, claim, has_truth, runs, verdict
from other_states import sizes_are_linear, variants
from rich.console import Console
from rich.table import Table
from samples import SAMPLES

from dpcompile.ir.axis import SHARED, SUMMED, Batched, BatchSize, Constant, Mixes, Position, State, Summed, Uniform
from dpcompile.rules import OPS
from dpcompile.rules.rule import LAID, Result, Rule, Use

Mutation = Callable[[Rule], Rule]
FAILED = "failed aloud"
EXPLAINED = {
    "refuses every call, so that no mistake can make it accept one": ("_weight_norm_interface", "_embedding_bag"),
    "reads the form of its operand and not its values": ("new_", "_like", "zero", "fill"),
}
"""Why idle mutants of rows with these words in their names change nothing."""
DIMENSIONS = ("dim", "dims", "dim0", "dim1", "dim2", "axis")


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


def where_refused(answer: Callable[[Use], State]) -> Mutation:
    """Where the rule would refuse, it says this."""

    def mutation(rule: Rule) -> Rule:
        def wrapped(use: Use) -> Result:
            try:
                return rule(use)
            except Mixes:
                return results(use, answer(use))

        return wrapped

    return mutation


def operands_layout(use: Use) -> State:
    """The layout of the first operand that has one, or a sum."""
    laid = [use.state(node) for node in use.tensors() if isinstance(use.state(node), LAID)]
    return laid[0] if laid else SUMMED


def by_shape(use: Use) -> State:
    """Examples where the result's shape has the batch size, or a sum."""
    fake = use.node.meta["val"]
    shape = use.result_shape(None if isinstance(fake, torch.Tensor) else 0)
    dims = [dim for dim, size in enumerate(shape) if use.has_batch(size)]
    return Batched(dims[0], 1, use.folded(shape[dims[0]])) if len(dims) == 1 else SUMMED


def changed(kinds: type | tuple[type, ...], change: Callable[[Any], State]) -> Mutation:
    """Answers of these kinds are replaced."""

    def one(state: State) -> State:
        return change(state) if isinstance(state, kinds) else state

    def mutation(rule: Rule) -> Rule:
        def wrapped(use: Use) -> Result:
            said = rule(use)
            return tuple(map(one, said)) if isinstance(said, tuple) else one(said)

        return wrapped

    return mutation


def refuses(kinds: type | tuple[type, ...]) -> Mutation:
    """The rule declines where it should answer in one of these kinds."""

    def wrong(state: Any) -> State:
        raise Mixes("mutation")

    return changed(kinds, wrong)


def blind_to(place: int) -> Mutation:
    """The rule takes one operand for a value without examples."""

    def mutation(rule: Rule) -> Rule:
        def wrapped(use: Use) -> Result:
            nodes = use.node.all_input_nodes
            if place >= len(nodes):
                return rule(use)
            return rule(replace(use, states={**use.states, nodes[place]: SHARED}))

        return wrapped

    return mutation


def blind_to_numbers(rule: Rule) -> Rule:
    """The rule overlooks that a batch size or a position is used as a value."""

    def wrapped(use: Use) -> Result:
        seen = {n: SHARED if isinstance(s, (BatchSize, Position)) else s for n, s in use.states.items()}
        return rule(replace(use, states=seen))

    return wrapped


def blind_to_sums(rule: Rule) -> Rule:
    """The rule takes a sum over examples for a value without examples."""

    def wrapped(use: Use) -> Result:
        seen: Mapping[Any, Result] = {n: SHARED if isinstance(s, Summed) else s for n, s in use.states.items()}
        said = rule(replace(use, states=seen))
        summed = any(isinstance(s, Summed) for s in use.states.values())
        return results(use, SUMMED) if summed and not isinstance(said, tuple) and said == SHARED else said

    return wrapped


class Misread(Use):
    """Sees every dimension argument one further on."""

    def __getitem__(self, name: str) -> Any:
        """The argument, or the wrong dimension."""
        given = super().__getitem__(name)
        if name not in DIMENSIONS or isinstance(given, bool):
            return given
        if isinstance(given, (list, tuple)):
            return [self.shifted(item) for item in given]
        return self.shifted(given) if isinstance(given, int) else given

    def shifted(self, dim: int) -> int:
        """The next dimension of the first operand."""
        return (dim + 1) % max(len(self.shape(self.tensors()[0])), 1)


def misreads_dimension(rule: Rule) -> Rule:
    """The rule looks at another dimension than the operation works along."""
    return lambda use: rule(Misread(use.node, use.states, use.symbol)) if use.tensors() else rule(use)


def results_exchanged(rule: Rule) -> Rule:
    """Several results in the wrong order."""

    def wrapped(use: Use) -> Result:
        said = rule(use)
        return said[::-1] if isinstance(said, tuple) else said

    return wrapped


def folding(change: Callable[[int, int], tuple[int, int]]) -> Mutation:
    """Positions folded into the examples' dimension are reported another way."""
    return changed(LAID, lambda s: type(s)(s.dim, *change(s.outer, s.inner)))


MUTATIONS: dict[str, dict[str, Mutation]] = {
    "one answer for everything": {
        "Batched(0)": always(Batched(0)), "Shared": always(SHARED), "Summed": always(SUMMED), "first operand": first_operand,
    },
    "wrong dimension": {
        "of the result": changed(LAID, lambda s: type(s)(s.dim + 1, s.outer, s.inner)),
        "of the argument": misreads_dimension,
    },
    "wrong folding": {
        "outer and inner exchanged": folding(lambda outer, inner: (inner, outer)),
        "all inner": folding(lambda outer, inner: (1, outer * inner)),
        "all outer": folding(lambda outer, inner: (outer * inner, 1)),
        "none": folding(lambda outer, inner: (1, 1)),
    },
    "Shared for Batched": {"": changed(Batched, lambda s: SHARED)},
    "Summed for Batched": {"": changed(Batched, lambda s: SUMMED)},
    "Uniform for Batched": {"": changed(Batched, lambda s: Uniform(s.dim, s.outer, s.inner))},
    "Constant for Batched": {"": changed(LAID, lambda s: Constant(float("nan")))},
    "Batched for Summed": {"": changed(Summed, lambda s: Batched(0))},
    "Shared for Summed": {"": changed(Summed, lambda s: SHARED)},
    "Batched for Mixed": {"an operand's layout": where_refused(operands_layout), "by shape": where_refused(by_shape)},
    "Summed for Mixed": {"": where_refused(lambda use: SUMMED)},
    "Shared for Mixed": {"": where_refused(lambda use: SHARED)},
    "an operand overlooked": {f"number {place}": blind_to(place) for place in range(6)},
    "a state overlooked": {"numbers of the batch": blind_to_numbers, "sums": blind_to_sums},
    "results exchanged": {"": results_exchanged},
    "refuses too much": {"everything": refuses(object), "Batched": refuses(Batched)},
}  # fmt: skip


def said_of(sample: Sample, rule: Rule) -> Result | str:
    """The answer of a mutant; one that fails on a call that the right rule answers would be seen by anybody."""
    try:
        return claim(sample, rule)
    except Exception:
        return FAILED


def fate(op: Any, mutation: Mutation) -> str:
    """What becomes of a mutant: "caught", "survives", "tolerated" or "idle"."""
    broken, worst = mutation(OPS[op]), "idle"
    for sample in SAMPLES[op]:
        said, right = said_of(sample, broken), claim(sample, OPS[op])
        if said == FAILED or verdict(sample, said):
            return "caught"
        if is_mistake(sample, right, said):
            worst = "survives"
        elif said != right and worst == "idle":
            worst = "tolerated"
    return worst


def fate_of_idle(op: Any, mutation: Mutation) -> str:
    """The same for one that should have had something to change: calls that nobody wrote down may show it."""
    broken = mutation(OPS[op])
    return "caught" if any(is_untrue(v, broken) for s in SAMPLES[op] for v in variants(s)) else "idle, suspicious"


def is_untrue(variant: Sample, broken: Rule) -> bool:
    """Whether a mutant says something else than the right rule of a call that nobody wrote down, and it is not true."""
    said = said_of(variant, broken)
    if said in (FAILED, REFUSED) or said == claim(variant, OPS[variant.op]):
        return False
    found = runs(variant)
    return all(found.values()) and sizes_are_linear(found) and bool(verdict(variant, said))


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


def has_something_to_change(op: Any, kind: str, name: str) -> bool:
    """Whether a mistake that changes nothing on any sample should have: a misread dimension, an overlooked operand."""
    if name == "of the argument":
        return any(argument.name in DIMENSIONS for argument in op._schema.arguments)
    if kind == "an operand overlooked":
        place = int(name.removeprefix("number "))
        return any(is_alone(sample.operands(), place) for sample in SAMPLES[op])
    return False


def is_alone(operands: Sequence[Any], place: int) -> bool:
    """Whether this operand differs from example to example, and no other one does."""
    return [n for n, operand in enumerate(operands) if holds_examples(operand)] == [place]


def holds_examples(operand: Any) -> bool:
    """Whether an operand differs from example to example."""
    return isinstance(getattr(operand, "state", None), (Batched, Summed))


def main(every: bool = False) -> None:
    """Count the mutants of every rule by kind, and list those to look at; `every` lists the tolerated and idle ones too."""
    fates: dict[str, Counter[str]] = defaultdict(Counter)
    for kind, mutations in MUTATIONS.items():
        for name, mutation in mutations.items():
            for op in SAMPLES:
                found = fate(op, mutation)
                if found == "idle" and has_something_to_change(op, kind, name):
                    found = fate_of_idle(op, mutation)
                fates[kind][found] += 1
                if found in ("survives", "idle, suspicious") or (every and found != "caught"):
                    print(f"{found}: {kind}{f' ({name})' if name else ''}: {op}{explained(op) if 'idle' in found else ''}")
    Console(width=110).print(as_table(fates))


def explained(op: Any) -> str:
    """Why a mistake in this row changes nothing, where that is known."""
    return next((f", which {why}" for why, words in EXPLAINED.items() if any(word in str(op) for word in words)), "")


def as_table(fates: Mapping[str, Counter[str]]) -> Table:
    """One row per kind, and the sum."""
    table = Table("kind of mistake", "caught", "survive", "idle, suspicious", "caught of these", "tolerated", "idle")
    for kind, found in [*fates.items(), ("all", sum(fates.values(), Counter()))]:
        counted = [found[name] for name in ("caught", "survives", "idle, suspicious")]
        share = f"{100 * counted[0] / max(sum(counted), 1):.1f} %"
        table.add_row(kind, *map(str, counted), share, str(found["tolerated"]), str(found["idle"]))
    return table


if __name__ == "__main__":
    typer.run(main)
