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
from benchmarks.cases import MAX_GRAD_NORM, Case
from dpcompile import dpcompile

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


def loop_of_examples(case: Case, model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """What a careful user writes without any library: one backward per example, clipped and added in place."""
    parameters = dict(model.named_parameters())

    def step() -> dict[str, Tensor]:
        sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        for example in range(len(x)):
            loss = case.losses(model, x[example : example + 1], y[example : example + 1]).sum()
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))  # as torch's clip_grad_norm_ does
            factor = (MAX_GRAD_NORM / norm).clamp(max=1.0)
            for total, gradient in zip(sums.values(), gradients, strict=True):
                total.addcmul_(gradient, factor)
        return sums

    return step


def dpcompile_on(backend: str, strategy: str = "auto") -> Make:
    """dpcompile with its own choice of strategies, or by the name of a paper's method."""

    def make(case: Case, model: nn.Module, x: Tensor, y: Tensor) -> Step:
        private = dpcompile(model, loss=case.losses, max_grad_norm=MAX_GRAD_NORM, strategy=strategy, backend=backend)
        return lambda: private(x, y).grads

    return make


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

PAPERS = ("naive", "multi", "crb", "crb-nd", "crb-unfold", "reweight", "ghost", "mixed-ghost", "bookkeep", "auto")
"""The founding papers' methods, by the names that dpcompile's strategy= takes."""
ALL = {
    **METHODS,
    "loop of single examples": Method(loop_of_examples),
    **{name: Method(dpcompile_on("eager", name)) for name in PAPERS},
}
"""Everything that can be timed; `make bench` takes METHODS, the experiments choose."""
