"""From what the user asked for to masks: pruned once, dropped anew every few steps, always within what is left."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dpcompile.criteria.choices import Choice, GradientDropping, PrePruning, kept_of
from dpcompile.criteria.public import check_memory, public_tensors
from dpcompile.criteria.scores import Known, parameters_of
from dpcompile.criteria.statement import assumptions, described
from dpcompile.criteria.units import Units, units_of
from dpcompile.ir.errors import InvalidInput
from dpcompile.losses import SELECTION, Program
from dpcompile.selection import Layout, Selection

Masks = dict[str, Tensor]


class Chooser:
    """Chooses for one module. step: how many steps were taken."""

    def __init__(self, passes: Sequence[Choice], program: Program) -> None:
        self.pruning, self.dropping = of_kind(passes, PrePruning), of_kind(passes, GradientDropping)
        self.program, self.step, self.choices = program, 0, tuple(passes)
        self.parameters = parameters_of(program)
        self.released: Masks = {}
        self.generators = [generator_of(choice) for choice in passes]
        self.programs: list[Program] = []
        self.units = self.units_for(self.dropping) if self.dropping is not None else []
        self.left = self.pruned()
        self.selection = self.begun(self.masks())
        self.set_pruned_to_zero()
        self.attach(program)

    def begun(self, masks: Masks) -> Selection:
        """A selection with room for what will be chosen, and what is trained now."""
        selection = Selection(self.layouts(), self.parameters)
        selection.select(masks)
        return selection

    def attach(self, program: Program) -> None:
        """Let the steps of a program (of the same model) train what is chosen."""
        self.programs.append(program)
        program.add_module(SELECTION, self.selection)

    def state(self) -> dict[str, Any]:
        """Tensors and numbers for a checkpoint. Nothing in it is private that the weights are not."""
        masks = {name: self.selection.mask(name) for name in self.selection.layouts}
        generators = [generator.get_state() for generator in self.generators]
        passes = [described(choice) for choice in self.choices]
        return {
            "passes": passes,
            "step": self.step,
            "left": self.left,
            "masks": masks,
            "released": self.released,
            "generators": generators,
        }

    def is_own(self, state: Mapping[str, Any]) -> bool:
        """Whether a state is of a chooser with passes like these on a model like this."""
        shapes = {name: tuple(p.shape) for name, p in self.parameters.items()}
        fits = all(tuple(mask.shape) == shapes.get(name) for kind in ("left", "masks") for name, mask in state[kind].items())
        return fits and state["passes"] == [described(choice) for choice in self.choices]

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state; steps are traced anew where its parts have other sizes."""
        device = {name: p.device for name, p in self.parameters.items()}
        self.left, self.released, masks = (
            {name: tensor.to(device[name]) for name, tensor in state[kind].items()} for kind in ("left", "released", "masks")
        )
        self.step = state["step"]
        for generator, saved in zip(self.generators, state["generators"], strict=True):
            generator.set_state(saved)
        self.selection = self.begun(masks)
        for program in self.programs:
            program.add_module(SELECTION, self.selection)

    def follow(self) -> None:
        """Be where the parameters have been moved; they may be other objects there."""
        self.parameters = parameters_of(self.program)
        self.selection.follow(self.parameters)
        self.left, self.released = ({name: tensor.to(self.parameters[name].device) for name, tensor in known.items()}
                                    for known in (self.left, self.released))  # fmt: skip

    def notes(self) -> list[str]:
        """For the report: what was asked for, what it was chosen by, and how much is trained."""
        kept = sum(int(mask.sum()) for mask in map(self.selection.mask, self.selection.layouts) if mask is not None)
        known = sum(self.parameters[name].numel() for name in self.selection.layouts)
        total = sum(p.numel() for p in self.parameters.values())
        told = [described(choice) for choice in (self.pruning, self.dropping) if choice is not None]
        share = f"{kept + total - known:,} of {total:,} entries are trained in each step, and get noise"
        return [*told, f"{share}: {(kept + total - known) / max(total, 1):.0%} of the noise's energy"]

    def document(self) -> dict[str, Any]:
        """For the certificate: the passes, how the trained part of every parameter is told, and what that takes for granted."""
        parts = {name: dataclasses.asdict(layout) for name, layout in self.selection.layouts.items()}
        assumed = [text for choice in self.choices for text in assumptions(choice)]
        return {"passes": list(map(described, self.choices)), "parts": parts, "assumptions": assumed}

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
            with WeightsMasked(self.parameters, left):
                left = self.best(self.pruning, units, 1 - (1 - rate) ** (iteration / self.pruning.iterations), left)
        return left

    def units_for(self, choice: Choice) -> list[Units]:
        """What a pass chooses among."""
        return units_of(self.parameters, choice.parameters, choice.granularity)

    def best(self, choice: Choice, units: Sequence[Units], rate: float, within: Mapping[str, Tensor]) -> Masks:
        """The masks of the units with the largest scores; the rate counts units of which anything is left `within`."""
        known = Known(
            self.program, choice.public_batch, choice.example, self.released, self.generators[self.choices.index(choice)]
        )
        scores, eligible = choice.rule().scores(known), [layer.eligible(within) for layer in units]
        of_all = choice.rule().is_iterative  # its rate is of all units, however many the last iteration has left
        totals = [layer.count if of_all else int(those.sum()) for layer, those in zip(units, eligible, strict=True)]
        rows = [torch.where(those.to(row.device), row, -torch.inf) for layer, those in zip(units, eligible, strict=True)
                for row in [layer.scores(scores)]]  # fmt: skip
        flags = dict[int, Tensor]()
        for members in pools(choice, units):
            joined_rows = torch.cat([rows[i].cpu() for i in members])
            kept = largest(joined_rows, kept_of(rate, sum(totals[i] for i in members)))
            flags |= dict(zip(members, kept.split([len(rows[i]) for i in members]), strict=True))
        shapes, found = {name: tuple(p.shape) for name, p in self.parameters.items()}, dict[str, Tensor]()
        for i, layer in enumerate(units):
            found |= {n: m.to(self.parameters[n].device) for n, m in layer.masks(flags[i], shapes).items()}
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
            moving |= dict.fromkeys(layer.members, layout)
        return {name: joined(static.get(name, Layout()), moving.get(name, Layout())) for name in {**static, **moving}}

    def moving_layout(self, layer: Units) -> Layout:
        """Room for the most units of one layer that dropping will ever keep."""
        assert self.dropping is not None
        pool = next(members for members in pools(self.dropping, self.units) if layer in [self.units[i] for i in members])
        eligible = [int(self.units[i].eligible(self.left).sum()) for i in pool]
        most = min(layer.count, kept_of(self.dropping.lowest_rate(), sum(eligible)))
        return layer.layout(most, varies=len(pool) > 1 or not isinstance(self.dropping.rate, (int, float)), is_static=False)

    @torch.no_grad()
    def set_pruned_to_zero(self) -> None:
        """The network is pruned: what is not left is zero."""
        for name, mask in self.left.items():
            parameter = self.parameters[name]
            parameter.copy_(torch.where(mask, parameter, torch.zeros_like(parameter)))


def pools(choice: Choice, units: Sequence[Units]) -> list[list[int]]:
    """Which layers' units compete with each other: all, or those of each layer; whole layers always compete among themselves."""
    if choice.scope == "global":
        return [list(range(len(units)))]
    whole = [i for i, layer in enumerate(units) if layer.is_whole]
    return [*([whole] if whole else []), *([i] for i, layer in enumerate(units) if not layer.is_whole)]


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
        raise InvalidInput(
            f"masks= names {', '.join(unknown)}, which the model does not train; its parameters are {', '.join(parameters)}"
        )
    for name, mask in masks.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != parameters[name].shape:
            raise InvalidInput(f"masks[{name!r}] must be bool{list(parameters[name].shape)}, True where the entry is trained")
    return {name: mask.to(parameters[name].device) for name, mask in masks.items()}


def chooser_of(passes: Sequence[Choice], program: Program) -> Chooser | None:
    """Choose for a program and tell it what is trained; None without passes."""
    for given in passes:
        if not isinstance(given, (PrePruning, GradientDropping)):
            raise InvalidInput(f"passes= takes PrePruning(...) and GradientDropping(...), got {given!r}")
    if not passes:
        return None
    return Chooser(passes, program)


def before_step(chooser: Chooser | None, tensors: Sequence[Tensor]) -> None:
    """Refuse to train on a public batch; the selection is where the parameters have been moved since."""
    if chooser is not None:
        check_memory(public_tensors(chooser.choices), tensors)
        chooser.follow()


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
