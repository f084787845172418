"""A chooser in a checkpoint: tensors and numbers. Nothing in it is private that the weights are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dpcompile.criteria.chooser import Chooser
from dpcompile.criteria.statement import identity
from dpcompile.ir.errors import InvalidInput
from dpcompile.losses import SELECTION

Masks = dict[str, Tensor]


def state_of(chooser: Chooser) -> dict[str, Any]:
    """What `restore` goes on from."""
    selection = chooser.selection
    return {
        "passes": list(map(identity, chooser.choices)),
        "step": chooser.step,
        "left": chooser.left,
        "masks": {name: selection.mask(name) for name in selection.layouts},
        "released": chooser.released,
        "generators": [generator.get_state() for generator in chooser.generators],
    }


def is_own(chooser: Chooser, state: Mapping[str, Any]) -> bool:
    """Whether a state is of a chooser with passes like these on a model like this, so that it can go on from it."""
    shapes = {name: tuple(p.shape) for name, p in chooser.parameters.items()}
    kinds = ("left", "masks", "released")
    if state["passes"] != list(map(identity, chooser.choices)) or any(
        tuple(tensor.shape) != shapes.get(name) for kind in kinds for name, tensor in state[kind].items()
    ):
        return False
    left, masks, _ = here(chooser, state)
    try:
        return set(chooser.begun(left, masks).layouts) == set(masks)
    except (InvalidInput, KeyError):
        return False


def here(chooser: Chooser, state: Mapping[str, Any]) -> tuple[Masks, Masks, Masks]:
    """What pruning leaves, what is trained, what was released, on the parameters' devices."""
    left, masks, released = (
        {name: tensor.to(chooser.parameters[name].device) for name, tensor in state[kind].items()}
        for kind in ("left", "masks", "released")
    )
    return left, masks, released


def restore(chooser: Chooser, state: Mapping[str, Any]) -> None:
    """Go on from such a state; steps are traced anew where its parts have other sizes."""
    left, masks, chooser.released = here(chooser, state)
    chooser.step, chooser.taken = state["step"], None
    for generator, saved in zip(chooser.generators, state["generators"], strict=True):
        generator.set_state(saved)
    chooser.begin(left, masks)
    for program in chooser.programs:
        program.add_module(SELECTION, chooser.selection)
