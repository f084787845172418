"""The units with the largest scores, among those that compete with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dpcompile.criteria.choices import Choice, kept_of
from dpcompile.criteria.units import Units
from dpcompile.ir.errors import InvalidInput

Masks = dict[str, Tensor]


def best(choice: Choice, units: Sequence[Units], scores: Mapping[str, Tensor], rate: float, within: Masks,
         generator: torch.Generator) -> Masks:  # fmt: skip
    """{parameter: bool} of what a pass keeps at a rate, which counts the units of which anything is left `within`.

    scores: a number for every entry of every parameter that is chosen among; infinite where nothing is known.
    """
    check_finite(choice, units, scores)
    eligible = [layer.eligible(within) for layer in units]
    of_all = choice.rule().is_iterative  # its rate is of all units, however many the last iteration has left
    totals = [layer.count if of_all else int(those.sum()) for layer, those in zip(units, eligible, strict=True)]
    ordered = [in_random_order(layer.scores(scores), choice, generator) for layer in units]
    rows = [torch.where(those.to(row.device), row, -torch.inf) for row, those in zip(ordered, eligible, strict=True)]
    found = Masks()
    for members in pools(choice, units):
        pooled = torch.cat([rows[i].to(rows[members[0]].device) for i in members])  # sorted where the weights are
        kept = largest(pooled, kept_of(rate, sum(totals[i] for i in members)))
        for i, flags in zip(members, kept.split([len(rows[i]) for i in members]), strict=True):
            found |= units[i].masks(flags, {name: tuple(scores[name].shape) for name in units[i].members})
    return {name: mask & within[name].to(mask.device) if name in within else mask for name, mask in found.items()}


def check_finite(choice: Choice, units: Sequence[Units], scores: Mapping[str, Tensor]) -> None:
    """Refuse numbers that put nothing in order: with them everything would be taken away, or anything."""
    names = [name for layer in units for name in layer.members]
    wrong = [name for name in names if not bool(torch.isfinite(scores[name]).all())]
    if wrong and not choice.rule().is_random:
        raise InvalidInput(
            f"criterion={choice.criterion!r} finds no finite score for entries of {', '.join(wrong[:3])}: weights, buffers or "
            "public batch hold NaN or numbers that overflow. Mend them, or use another criterion"
        )


def in_random_order(row: Tensor, choice: Choice, generator: torch.Generator) -> Tensor:
    """f64[count] with random numbers above all others in place of infinite ones."""
    if not choice.rule().is_random:
        return row
    drawn = torch.rand(len(row), generator=generator, dtype=torch.float64).to(row.device)
    return torch.where(row == torch.inf, torch.finfo(torch.float64).max / 2 * (1 + drawn), row)


def pools(choice: Choice, units: Sequence[Units]) -> list[list[int]]:
    """Which layers' units compete with each other: all, or those of each layer; whole layers always compete among themselves."""
    if choice.scope == "global":
        return [list(range(len(units)))]
    whole = [i for i, layer in enumerate(units) if layer.is_whole]
    return [*([whole] if whole else []), *([i] for i, layer in enumerate(units) if not layer.is_whole)]


def largest(scores: Tensor, count: int) -> Tensor:
    """bool[n] with `count` True where scores are largest; never one that is not eligible (-inf), ties by position.

    By the smallest score that is in, which is found without sorting: 200,000 weights take 3 ms, and 17 ms when they are sorted.
    """
    if count <= 0:
        return torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    last = scores.kthvalue(len(scores) - count + 1).values
    above, equal = scores > last, scores == last
    return (above | (equal & (equal.cumsum(0) <= count - above.sum()))) & (scores > -torch.inf)


class WeightsMasked:
    """The weights with what is pruned so far at zero, for scores that look at the pruned network; put back afterwards."""

    def __init__(self, parameters: Mapping[str, Tensor], left: Mapping[str, Tensor]) -> None:
        self.pairs = [(parameters[name], mask, parameters[name].data) for name, mask in left.items()]

    def __enter__(self) -> None:
        for parameter, mask, data in self.pairs:
            parameter.data = torch.where(mask, data, torch.zeros_like(data))

    def __exit__(self, *error: object) -> None:
        for parameter, _, data in self.pairs:
            parameter.data = data
