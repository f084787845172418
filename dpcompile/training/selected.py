"""Releases of a part of the parameters: noise on what is trained and on nothing else, and an update that leaves the rest as it
is, bit by bit, whatever momentum, weight decay or another rule of the optimizer would do to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import Optimizer

from dpcompile import torch_private
from dpcompile.module import PrivateModule
from dpcompile.training.session import Parameters


def trained_masks(private: PrivateModule, parameters: Parameters) -> dict[str, Tensor]:
    """{name: bool[*shape]} of the parameters that are not trained as a whole."""
    selection = private.program.selection
    found = {} if selection is None else {name: selection.mask(name) for name, _ in parameters}
    return {name: mask for name, mask in found.items() if mask is not None}


def compact(sums: dict[str, Tensor], masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sums with the trained entries alone, f[trained], where a mask is."""
    return {name: total[masks[name]] if name in masks else total for name, total in sums.items()}


def spread(gradient: Tensor, mask: Tensor) -> Tensor:
    """f[*shape] with the trained entries f[trained] in their places, and zeros."""
    return gradient.new_zeros(mask.shape).masked_scatter_(mask, gradient)


@contextlib.contextmanager
def others_unchanged(optimizer: Optimizer, parameters: Parameters, masks: dict[str, Tensor]) -> Iterator[None]:
    """Put back what is not trained, whatever the step does to it: before hooks behind the step look at the weights, and behind
    them."""
    before = [(p, masks[name].clone(), p.detach().clone()) for name, p in parameters if name in masks]

    @torch.no_grad()
    def put_back(*_: object) -> None:
        for parameter, mask, value in before:
            parameter.copy_(torch.where(mask, parameter, value))

    handle = torch_private.first_post_hook(optimizer, put_back) if before else None
    try:
        yield
    finally:
        put_back()
        if handle is not None:
            handle.remove()
