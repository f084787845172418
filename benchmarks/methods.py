"""The methods that are timed: ordinary training and dpcompile here, the peers in peers.py.

A method takes a case, a model of its own and a batch, and returns a step: a function without arguments that
runs forward and backward (with norms, clipping and sums where it is private) and returns {parameter name:
gradient}.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.cases import MAX_GRAD_NORM, OURS, Case
from dpcompile import dpcompile
from dpcompile.plan.methods import METHODS as PAPERS

Step = Callable[[], Mapping[str, Tensor]]
Make = Callable[[Case, nn.Module, Tensor, Tensor], Step]


@dataclass(frozen=True)
class Method:
    """A way to make a step. is_private: it returns clipped sums; otherwise sums of plain gradients."""

    make: Make
    is_private: bool = True


def ordinary_eager(case: Case, model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """Forward and backward of the summed loss."""
    return ordinary_step(model, lambda: case.losses(model, x, y).sum())


def ordinary_inductor(case: Case, model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """The same with model and loss compiled by torch.compile for this batch size."""
    total = torch.compile(lambda inputs, targets: case.losses(model, inputs, targets).sum(), dynamic=False)
    return ordinary_step(model, lambda: total(x, y))


def ordinary_step(model: nn.Module, total: Callable[[], Tensor]) -> Step:
    """Gradients of a total loss, in fresh tensors as after zero_grad(set_to_none=True)."""
    parameters = dict(model.named_parameters())
    return lambda: dict(zip(parameters, torch.autograd.grad(total(), list(parameters.values())), strict=True))


def dpcompile_on(backend: str, strategy: str = "auto") -> Make:
    """dpcompile with its own choice of strategies, or with a method of the literature."""

    def make(case: Case, model: nn.Module, x: Tensor, y: Tensor) -> Step:
        private = dpcompile(model, loss=case.losses, max_grad_norm=MAX_GRAD_NORM, strategy=strategy, backend=backend)
        return lambda: private(x, y).grads

    return make


def careful_loop(case: Case, model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """What a careful user would write: one backward per example, its norm, and its gradient times the factor added up."""
    parameters = dict(model.named_parameters())

    def step() -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for index in range(len(x)):
            loss = case.losses(model, x[index : index + 1], y[index : index + 1]).sum()
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            factor = min(1.0, MAX_GRAD_NORM / float(nn.utils.get_total_norm(gradients)))
            for name, gradient in zip(parameters, gradients, strict=True):
                total[name] = total[name].add_(gradient, alpha=factor) if name in total else gradient * factor
        return total

    return step


METHODS = {
    "ordinary eager": Method(ordinary_eager, is_private=False),
    "ordinary inductor": Method(ordinary_inductor, is_private=False),
    "dpcompile eager": Method(dpcompile_on("eager")),
    "dpcompile inductor": Method(dpcompile_on("inductor")),
    "vmap(grad) eager": Method(peers.vmap_eager),
    "vmap(grad) inductor": Method(peers.vmap_inductor),
    "ExpandedWeights": Method(peers.expanded_weights),
    "Opacus hooks": Method(peers.opacus_hooks),
    "Opacus ghost": Method(peers.opacus_ghost),
}
"""What is measured unless something else is asked for."""

LITERATURE = {name + OURS: Method(dpcompile_on("eager", name)) for name in (*PAPERS, "autotune")} | {
    "careful loop": Method(careful_loop)
}
"""The methods of the founding papers in this compiler, its own measured choice, and the loop that "naive" is measured against."""

OTHERS = {"Opacus functorch": Method(peers.opacus_functorch), "BackPACK": Method(peers.backpack_gradients)}
"""Peers that `make bench` leaves out and the papers' experiments take in."""

ALL_METHODS = METHODS | LITERATURE | OTHERS
