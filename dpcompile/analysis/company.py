"""The batches on which a graph is compared with itself, and what must be equal on them.

    base    examples 0, 1, 2
    moved   examples 2, 3        0 and 1 removed, 3 added, 2 at another place
    single  example 1            alone
    last    example 3            alone  } only where sums over examples
    first   example 0            alone  } are judged as well

An example that is seen twice has another position, other neighbours and another batch size, which shows every
way in which one example can influence another: also h / B, h + arange(B) and h * (arange(B) == 0), to which
changing values is blind, and flip(0), which leaves pairs together. A sum over examples must satisfy
base + last = moved + single + first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dpcompile.ir.axis import Batched, Constant, Position, Summed, Uniform

RUNS = ((0, 1, 2), (2, 3), (1,), (3,), (0,))
BASE, MOVED, SINGLE, LAST, FIRST = range(len(RUNS))
# (run, position) of one example in two runs; the first is the original, whose value the second one takes
# over.
COPIES = (((SINGLE, 0), (BASE, 1)), ((BASE, 2), (MOVED, 0)), ((LAST, 0), (MOVED, 1)), ((FIRST, 0), (BASE, 0)))
Values = list[Any]


def pairs_of(state: Any, values: Values) -> Iterator[tuple[Tensor, Tensor]]:
    """Tensors that must be equal if the state is true; the first of a pair is the original."""
    if isinstance(state, (Batched, Uniform)):
        views = [
            value.unflatten(state.dim, (state.outer, len(rows), state.inner)) for value, rows in zip(values, RUNS, strict=False)
        ]
        for (run, position), (other, place) in COPIES[: len(values) - 1]:
            yield views[run].select(state.dim + 1, position), views[other].select(state.dim + 1, place)
        if isinstance(state, Uniform):
            first = views[SINGLE].select(state.dim + 1, 0)
            yield from ((first, views[BASE].select(state.dim + 1, place)) for place in range(len(RUNS[BASE])))
    elif isinstance(state, Constant):
        yield from ((value.reshape(-1)[:1].expand(value.numel()), value.reshape(-1)) for value in values)
        filled = [value.reshape(-1)[:1] for value in values if value.numel()]
        yield from ((filled[0], value) for value in filled[1:])
        if filled and state.value == state.value:
            yield torch.full_like(filled[0], state.value), filled[0]
    elif isinstance(state, Position):
        for value in values:
            counted = torch.arange(value.shape[state.dim], device=value.device).to(value.dtype)
            shape = [-1 if dim == state.dim else 1 for dim in range(value.dim())]
            yield counted.view(shape).expand_as(value), value
    elif isinstance(state, Summed):
        yield values[MOVED] + values[SINGLE] + values[FIRST] - values[LAST], values[BASE]
    else:
        yield from ((values[SINGLE], value) for run, value in enumerate(values) if run != SINGLE)


def explain(state: Any, off: float) -> str:
    """What a deviation means, in words."""
    size = f"by up to {off:.2g}" if off < float("inf") else "without bound"
    if isinstance(state, Summed):
        return f"a sum over examples differs {size} from the sum of what the examples give in other batches"
    if isinstance(state, Batched):
        return f"one example's value changes {size} with the other examples, its position, or their number"
    return f"a value that should be {state} changes {size} with the examples, their position, or their number"
