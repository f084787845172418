"""From what the user asked for to masks: pruned once, dropped anew every few steps, always within what is left."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dpcompile.ir.errors import InvalidInput
from dpcompile.losses import Program
from dpcompile.selection.criteria import Known, parameters_of
from dpcompile.selection.passes import Choice, GradientDropping, PrePruning, kept_of
from dpcompile.selection.selection import Layout, Selection
from dpcompile.selection.units import Units, units_of

Masks = dict[str, Tensor]


class Chooser:
    """Chooses for one module. step: how many steps were taken."""

    def __init__(self, passes: Sequence[Choice], program: Program) -> None:
        self.pruning, self.dropping = of_kind(passes, PrePruning), of_kind(passes, GradientDropping)
        self.program, self.step = program, 0
        self.parameters = parameters_of(program)
        self.released: Masks = {}
        self.generators = {id(choice): generator_of(choice) for choice in passes}
        self.left = self.pruned()
        self.units = self.units_for(self.dropping) if self.dropping is not None else []
        self.selection = Selection(self.layouts(), self.parameters)
        self.selection.select(self.masks())
        self.set_pruned_to_zero()

    def pruned(self) -> Masks:
        """{parameter: what pruning leaves}."""
        if self.pruning is None:
            return {}
        if self.pruning.masks is not None:
            return given_masks(self.pruning.masks, self.parameters)
        units, rate = self.units_for(self.pruning), self.pruning.rate_at(0)
        if not self.pruning.rule().is_iterative:
            return self.best(self.pruning, units, rate, {})
        left: Masks = {}
        for iteration in range(1, self.pruning.iterations + 1):  # the share that is left falls exponentially
            with weights_masked(self.parameters, left):
                left = self.best(self.pruning, units, 1 - (1 - rate) ** (iteration / self.pruning.iterations), left)
        return left

    def units_for(self, choice: Choice) -> list[Units]:
        """What a pass chooses among."""
        return units_of(self.parameters, choice.parameters, choice.granularity)

    def best(self, choice: Choice, units: Sequence[Units], rate: float, within: Mapping[str, Tensor]) -> Masks:
        """The masks of the units with the largest scores; the rate counts units of which anything is left `within`."""
        known = Known(self.program, choice.public_batch, choice.example, self.released, self.generators[id(choice)])
        scores, eligible = choice.rule().scores(known), [layer.eligible(within) for layer in units]
        if choice.rule().is_iterative:  # its rate is of all units, however many the last iteration has left
            totals = [layer.count for layer in units]
        else:
            totals = [int(those.sum()) for those in eligible]
        rows = [torch.where(those.to(row.device), row, -torch.inf) for layer, those in zip(units, eligible, strict=True)
                for row in [layer.scores(scores)]]  # fmt: skip
        if choice.scope == "global":
            flags = largest(torch.cat([row.cpu() for row in rows]), kept_of(rate, sum(totals))).split([len(row) for row in rows])
        else:
            flags = tuple(largest(row, kept_of(rate, total)) for row, total in zip(rows, totals, strict=True))
        shapes, found = {name: tuple(p.shape) for name, p in self.parameters.items()}, dict[str, Tensor]()
        for layer, flag in zip(units, flags, strict=True):
            found |= {n: m.to(self.parameters[n].device) for n, m in layer.masks(flag, shapes).items()}
        return {name: mask & within[name] if name in within else mask.clone() for name, mask in found.items()}

    def masks(self) -> Masks:
        """What is trained now."""
        if self.dropping is None:
            return self.left
        dropped = self.best(self.dropping, self.units, self.dropping.rate_at(self.step), self.left)
        return {**self.left, **dropped}

    def advance(self) -> bool:
        """One step was taken; choose anew if it is time, and say whether it was."""
        self.step += 1
        if self.dropping is None or self.step % self.dropping.every:
            return False
        self.selection.select(self.masks())
        return True

    @torch.no_grad()
    def observe(self, released: Mapping[str, Tensor]) -> None:
        """Remember gradients that were released with noise, where they were trained."""
        if self.dropping is None or self.dropping.criterion != "released gradient":
            return
        for name, gradient in released.items():
            mask = self.selection.mask(name)
            known = self.released.setdefault(name, torch.full_like(gradient, torch.inf))
            known.copy_(gradient if mask is None else torch.where(mask, gradient, known))

    def layouts(self) -> dict[str, Layout]:
        """How the trained part of every parameter is told."""
        static = {name: static_layout(mask) for name, mask in self.left.items()}
        moving: dict[str, Layout] = {}
        for layer in self.units:
            layout = self.moving_layout(layer)
            moving |= dict.fromkeys(layer.members, layout) | {n: along_only(layout) for n in layer.members[1:]}
        return {name: joined(static.get(name, Layout()), moving.get(name, Layout())) for name in {**static, **moving}}

    def moving_layout(self, layer: Units) -> Layout:
        """Room for the most units of one layer that dropping will ever keep."""
        assert self.dropping is not None
        rate, is_global = self.dropping.lowest_rate(), self.dropping.scope == "global"
        every = [int(other.eligible(self.left).sum()) for other in (self.units if is_global else [layer])]
        most = min(layer.count, kept_of(rate, sum(every)))
        return layer.layout(most, varies=is_global or self.dropping.rate_at(0) != self.dropping.rate, is_static=False)

    @torch.no_grad()
    def set_pruned_to_zero(self) -> None:
        """The network is pruned: what is not left is zero."""
        for name, mask in self.left.items():
            parameter = self.parameters[name]
            parameter.copy_(torch.where(mask, parameter, torch.zeros_like(parameter)))


def of_kind(passes: Sequence[Any], kind: type) -> Any:
    """The one pass of a kind, or None."""
    found = [given for given in passes if isinstance(given, kind)]
    if len(found) > 1:
        raise InvalidInput(f"passes= has {len(found)} {kind.__name__}; give one")
    return found[0] if found else None


def generator_of(choice: Choice) -> torch.Generator:
    """Random numbers of a pass."""
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(os.urandom(8)) >> 1 if choice.seed is None else choice.seed)
    return generator


def largest(scores: Tensor, count: int) -> Tensor:
    """bool[n] with `count` True where scores are largest; never one that is not eligible (-inf), ties by position."""
    order = torch.argsort(scores, descending=True, stable=True)[:count]
    flags = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    flags[order] = True
    return flags & (scores > -torch.inf)


def static_layout(mask: Tensor) -> Layout:
    """How a mask that never changes is told best: gone, all, whole rows or columns, or single entries."""
    if not bool(mask.any()):
        return Layout(is_gone=True)
    if bool(mask.all()):
        return Layout()
    for dim in range(min(mask.dim(), 2)):
        others = [d for d in range(mask.dim()) if d != dim]
        used = mask.any(dim=others, keepdim=True) if others else mask
        if bool((used.expand_as(mask) == mask).all()):
            return Layout(dim, int(used.sum()))
    return Layout(entries=True)


def along_only(layout: Layout) -> Layout:
    """The layout of a bias that is cut as the rows of its weight."""
    return layout


def joined(static: Layout, moving: Layout) -> Layout:
    """One layout for a part that is chosen within another: the smaller of two cuts along one dimension, else entries besides."""
    if static.is_gone or moving == Layout():
        return static
    if static == Layout():
        return moving
    if static.dim == moving.dim and static.dim is not None:
        return moving if moving.capacity <= static.capacity else Layout(static.dim, static.capacity, True, moving.entries)
    cut = static if static.dim is not None else moving
    return Layout(cut.dim, cut.capacity, varies=cut.dim is not None, entries=True)


def given_masks(masks: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Masks:
    """The user's own masks, checked."""
    unknown = sorted(set(masks) - set(parameters))
    if unknown:
        raise InvalidInput(f"masks= names {', '.join(unknown)}, which the model does not train; its parameters are {', '.join(parameters)}")
    for name, mask in masks.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != parameters[name].shape:
            raise InvalidInput(f"masks[{name!r}] must be bool{list(parameters[name].shape)}, True where the entry is trained")
    return {name: mask.to(parameters[name].device) for name, mask in masks.items()}


class weights_masked:
    """The weights with what is pruned so far at zero, for scores that look at the pruned network; put back afterwards."""

    def __init__(self, parameters: Mapping[str, Tensor], left: Mapping[str, Tensor]) -> None:
        self.pairs = [(parameters[name], mask, parameters[name].data) for name, mask in left.items()]

    def __enter__(self) -> None:
        for parameter, mask, data in self.pairs:
            parameter.data = torch.where(mask, data, torch.zeros_like(data))

    def __exit__(self, *error: object) -> None:
        for parameter, _, data in self.pairs:
            parameter.data = data
