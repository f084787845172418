"""From what the user asked for to masks: pruned once, dropped anew every few steps, always within what is left."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils.data import Dataset

from dpcompile.batch import Batch
from dpcompile.criteria.choices import Choice, GradientDropping, PrePruning
from dpcompile.criteria.layouts import layouts
from dpcompile.criteria.public import WAY_OUT, Public
from dpcompile.criteria.ranking import WeightsMasked, best
from dpcompile.criteria.scores import Known, buffers_kept, parameters_of
from dpcompile.criteria.units import Units, units_of
from dpcompile.ir.errors import InvalidInput
from dpcompile.losses import SELECTION, Program, public_name
from dpcompile.selection import Selection

Masks = dict[str, Tensor]


class Chooser:
    """Chooses for one module.

    step: how many steps were taken. taken: what pruning has set to zero, until a step is run: a refusal of the public batch puts
    it back, so that the network does not stay pruned by data that is not public. is_driven: whether a private optimizer says when
    a step was taken, and nobody else may.
    """

    def __init__(self, passes: Sequence[Choice], program: Program, batch_dim: Any) -> None:
        self.pruning, self.dropping = of_kind(passes, PrePruning), of_kind(passes, GradientDropping)
        self.program, self.step, self.choices = program, 0, tuple(passes)
        self.parameters, self.public = parameters_of(program), Public(passes, batch_dim)
        self.batch_dim, self.is_driven, self.is_refused = batch_dim, False, False
        self.released: Masks = {}
        self.generators = [generator_of(choice) for choice in passes]
        self.programs: list[Program] = []
        self.units = self.units_for(self.dropping) if self.dropping is not None else []
        self.left = self.pruned()
        self.begin(self.left, self.masks())
        self.taken: Masks | None = {}
        self.take()
        self.check_reparametrized()
        self.attach(program)

    def begun(self, left: Masks, masks: Masks) -> Selection:
        """A selection with room for what will be chosen, and what is trained now. left: what pruning leaves."""
        selection = Selection(layouts(left, self.units, self.dropping), self.parameters)
        selection.select(masks)
        return selection

    def begin(self, left: Masks, masks: Masks) -> None:
        """Train these parts from now on. What pruning leaves and dropping does not choose among is told in one place."""
        self.selection, moving = self.begun(left, masks), {name for layer in self.units for name in layer.members}
        fixed = {name: mask for name in left if name not in moving and (mask := self.selection.mask(name)) is not None}
        self.left = {**left, **fixed}

    def attach(self, program: Program) -> None:
        """Let the steps of a program (of the same model) train what is chosen."""
        self.programs.append(program)
        program.add_module(SELECTION, self.selection)

    def follow(self) -> None:
        """Be where the parameters have been moved; they may be other objects there. Refuses what is trained no more."""
        known = parameters_of(self.program)
        frozen = [name for name in self.selection.layouts if name not in known]
        if frozen:
            raise InvalidInput(
                f"{', '.join(frozen)} is chosen by passes= and is trained no more (requires_grad is False): leave it trainable, "
                "or freeze it before dpcompile(...)"
            )
        self.parameters = known
        self.selection.follow(self.parameters)
        self.left, self.released = ({name: tensor.to(self.parameters[name].device) for name, tensor in held.items()}
                                    for held in (self.left, self.released))  # fmt: skip

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
        return units_of(self.parameters, choice.parameters, choice.granularity, self.owners())

    def owners(self) -> dict[str, nn.Module]:
        """{parameter: the module that holds it}."""
        modules = dict(self.program.named_modules())
        return {public_name(name): modules[name.rpartition(".")[0]] for name, _ in self.program.named_parameters()}

    def best(self, choice: Choice, units: Sequence[Units], rate: float, within: Masks) -> Masks:
        """The masks of the units with the largest scores by a pass's criterion."""
        known = Known(self.program, choice.public_batch, choice.example, self.released, self.batch_dim)
        found = best(choice, units, choice.rule().scores(known), rate, within, self.generators[self.choices.index(choice)])
        return {name: mask.to(self.parameters[name].device) for name, mask in found.items()}

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

    def advance_by_hand(self, released: Mapping[str, Tensor] | None) -> bool:
        """The same where no private optimizer does it. released: {parameter: noisy gradient} of the step."""
        if self.is_driven:
            raise InvalidInput(
                "reselect() is called by the optimizer that make_private returned, once per step: another choice in between "
                "would put noise where the step's sums are not"
            )
        self.follow()
        if self.reads_released and released is None:
            raise InvalidInput(
                'criterion="released gradient" chooses by what was released: call reselect(released={parameter: noisy gradient})'
            )
        self.check_released(released or {})
        self.observe(released or {})
        return self.advance()

    def check_released(self, released: Mapping[str, Tensor]) -> None:
        """Refuse gradients that are not those of the parameters that are chosen among."""
        if not self.reads_released:
            return
        names = {name for layer in self.units for name in layer.members}
        shapes = {name: tensor.shape for name, tensor in released.items()}
        wrong = sorted((names ^ set(shapes)) | {n for n in names & set(shapes) if shapes[n] != self.parameters[n].shape})
        if wrong:
            told = ", ".join(sorted(names))
            raise InvalidInput(f"released= must hold the noisy gradients of {told}, in their shapes; see {', '.join(wrong)}")

    @property
    def reads_released(self) -> bool:
        """Whether what was released decides."""
        return self.dropping is not None and self.dropping.criterion == "released gradient"

    def check_updated(self, names: set[str]) -> None:
        """Refuse to choose by released gradients among parameters of which none are released, which would come first for ever."""
        unknown = sorted({name for layer in self.units for name in layer.members} - names) if self.reads_released else []
        if unknown:
            raise InvalidInput(
                f'criterion="released gradient" chooses among {", ".join(unknown)}, which the optimizer does not update: name '
                "the others in parameters=, or give them to the optimizer"
            )

    @torch.no_grad()
    def observe(self, released: Mapping[str, Tensor]) -> None:
        """Remember gradients that were released with noise, where they were trained."""
        if not self.reads_released:
            return
        for name, gradient in released.items():
            mask = self.selection.mask(name)
            known = self.released.setdefault(name, torch.full_like(gradient, torch.inf))
            known.copy_(gradient if mask is None else torch.where(mask, gradient, known))

    def check_batch(self, batch: Batch) -> None:
        """Refuse to train on a public batch."""
        with self.undone_if_refused():
            self.public.check_batch(batch)

    def check_dataset(self, dataset: Dataset[Any]) -> None:
        """Refuse to train on a dataset that holds an example of a public batch."""
        with self.undone_if_refused():
            self.public.check_dataset(dataset)

    @contextlib.contextmanager
    def undone_if_refused(self) -> Iterator[None]:
        """After a refusal the weights are again what they were before pruning, if no step was run, and no step will be."""
        if self.is_refused:
            raise InvalidInput(f"passes= chose by data that is not public, which was refused before: {WAY_OUT}")
        try:
            yield
        except InvalidInput:
            self.is_refused = True
            self.put_back()
            raise

    @torch.no_grad()
    def put_back(self) -> None:
        """Undo the pruning of the weights; of those that are no longer zero others have been loaded."""
        for name, values in (self.taken or {}).items():
            parameter, taken = self.parameters[name], ~self.left[name]
            own = parameter[taken]
            parameter[taken] = torch.where(own == 0, values.to(parameter), own)
        self.taken = None

    @torch.no_grad()
    def take(self) -> None:
        """The network is pruned: what is not left is zero; what it was is kept as long as pruning can be undone."""
        parameters = {public_name(name): p for name, p in self.program.named_parameters()}
        for name, left in self.left.items():
            parameter, mask = parameters[name], left.to(parameters[name].device)
            if self.taken is not None:
                self.taken[name] = parameter[~mask]
            parameter.copy_(torch.where(mask, parameter, torch.zeros_like(parameter)))

    def check_reparametrized(self) -> None:
        """Refuse to prune what a weight is computed from if that leaves no weight: weight norm divides a row by its length."""
        owners = self.owners()
        computed = {name: owner for name in self.left if isinstance(owner := owners[name], ParametrizationList)}
        with torch.no_grad(), buffers_kept(self.program):
            wrong = [name for name, owner in computed.items() if not bool(owner().isfinite().all())]
        if wrong:
            self.put_back()
            raise InvalidInput(
                f"the weights that are computed from {', '.join(wrong)} are no numbers once so much of it is zero (weight norm "
                "divides rows by their lengths): leave it out of parameters=, or take less away"
            )


def of_kind(passes: Sequence[Any], kind: type) -> Any:
    """The one pass of a kind, or None."""
    found = [given for given in passes if isinstance(given, kind)]
    if len(found) > 1:
        raise InvalidInput(f"passes= has {len(found)} {kind.__name__}; give one")
    return found[0] if found else None


def generator_of(choice: Choice) -> torch.Generator:
    """Random numbers of a pass. Its seed is mixed with what it is for: numbers drawn elsewhere from the same seed, initial
    weights or noise, must have nothing to do with what is chosen."""
    generator = torch.Generator()
    text = f"dpcompile {type(choice).__name__} {choice.seed}".encode()
    seed = os.urandom(8) if choice.seed is None else hashlib.sha256(text).digest()[:8]
    generator.manual_seed(int.from_bytes(seed) >> 1)
    return generator


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
    return {name: mask.to(parameters[name].device, copy=True) for name, mask in masks.items()}
