"""Samples with one operand in another state: whatever the rule says of them must be true as well.

Nobody wrote these calls down, so nothing is demanded but truth: a refusal is fine, and so is a call that cannot run.
`python -m other_states [part of an operation's name]`, with tests/ on the path, prints what is not true.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import typer
from meaning import HINT, N, Operand, Runs, Sample, claim, runs, use_of, verdict
from samples import SAMPLES
from torch import Tensor, fx

from dpcompile.ir.axis import SHARED, SUMMED, Batched, Constant, Position, State, Uniform

UNCHECKED = ("_backward", "batch_norm", "_weight_norm")
"""In the names of operations whose kernels read past the end of operands that do not fit; autograd's own calls always fit."""
ODD = 5
"""How many rows stand in for the examples where an operand has none; no little batch has as many."""


def variants(sample: Sample) -> Iterator[Sample]:
    """The sample with each of its operands in each other state that its shape allows."""
    operands = [operand for operand in sample.operands() if isinstance(operand, Operand)]
    checks_sizes = not any(word in sample.op._schema.name for word in UNCHECKED)
    for operand in operands:
        for other in others(operand):
            if checks_sizes or len(other.shape) == 0 or (N in other.shape) == (N in operand.shape):
                yield exchanged(sample, operand, other)


def exchanged(sample: Sample, operand: Operand, other: Operand) -> Sample:
    """The same call with another operand in this place."""
    given: Any = (sample.args, sample.kwargs)
    replaced: Any = lambda argument: other if argument is operand else argument  # noqa: E731  (fx knows no operands)
    args, kwargs = fx.node.map_aggregate(given, replaced)
    return replace(sample, args=args, kwargs=kwargs)


def others(operand: Operand) -> Iterator[Operand]:
    """The operand in other states: without examples, summed over them, equal for all, folded differently, counting."""
    state, shape = operand.state, operand.shape
    if N in shape:
        for size in (1, ODD):
            rest = tuple(size if s is N else s for s in shape)
            yield from (replace(operand, state=kind, shape=rest) for kind in (SHARED, SUMMED))
        yield from (replace(operand, state=other) for other in folded(state, shape.index(N)))
    else:
        yield from (replace(operand, state=kind) for kind in (SHARED, SUMMED) if kind != state)
        for dim in range(len(shape)):
            yield replace(operand, state=Batched(dim), shape=(*shape[:dim], N, *shape[dim + 1 :]))


def folded(state: State, dim: int) -> Iterator[State]:
    """Other states of an operand with examples along this dimension."""
    outer, inner = getattr(state, "outer", 1), getattr(state, "inner", 1)
    found: list[State] = [Uniform(dim, outer, inner), Batched(dim, outer, inner)]
    if outer * inner > 1:
        found += [Batched(dim, inner, outer), Uniform(dim, inner, outer)]
    else:
        found += [Constant(1.0), Constant(0.0), Position(dim)]
    yield from (other for other in found if other != state)


def untruths(sample: Sample) -> list[str]:
    """What the rule says of the variants and is not true."""
    return [why for variant in variants(sample) if (why := untruth(variant))]


def untruth(variant: Sample) -> str:
    """Why what the rule says is not true; empty if it is, or if the call cannot run or is refused."""
    found = runs(variant)
    if not all(found.values()) or not sizes_are_linear(found):
        return ""
    said: Any = claim(variant)
    return "" if isinstance(said, str) else verdict(variant, said)


def sizes_are_linear(found: Runs) -> bool:
    """Whether there are equally many results for every batch, with sizes that grow evenly and do not fall below zero at the
    size of a trace: others no rule would see like this."""
    one, two, three = (next(outputs for examples, outputs in found.items() if len(examples) == n) for n in (1, 2, 3))
    if not len(one) == len(two) == len(three):
        return False
    rows = [r for r in zip(one, two, three, strict=True) if isinstance(r[0], Tensor)]
    if any(not a.dim() == b.dim() == c.dim() for a, b, c in rows):
        return False
    sizes = [size for r in rows for size in zip(*(t.shape for t in r), strict=True)]
    return all(c - b == b - a and a + (HINT - 1) * (b - a) >= 0 for a, b, c in sizes)


def main(part: str = typer.Argument("")) -> None:
    """Go through the samples of every operation whose name holds this part."""
    count, wrong = 0, 0
    for op in SAMPLES:
        if part in str(op):
            found = [why for sample in SAMPLES[op] for why in untruths(sample)]
            count, wrong = count + 1, wrong + len(found)
            print("\n".join(dict.fromkeys(found)), end="\n" if found else "", flush=True)
            runs.cache_clear()
            use_of.cache_clear()
    print(f"{wrong} untrue statements about variants of the samples of {count} operations")
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
