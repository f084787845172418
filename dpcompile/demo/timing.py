"""Step times side by side: the ordinary step, the private step and vmap(grad), in one interleaved run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from dpcompile import PrivateModule
from dpcompile.demo.task import Task
from dpcompile.losses import make_program

ROUNDS = 15


def step_times(private: PrivateModule, task: Task) -> dict[str, float]:
    """Median seconds of one step of each method; forward and backward, clipping where it is private."""
    x, y = task.first_examples(task.batch_size)
    methods: dict[str, Callable[[], object]] = {
        "ordinary (not private)": lambda: ordinary_step(task, x, y),
        "dpcompile": lambda: private(x, y),
        "vmap(grad)": lambda: vmap_step(task, x, y),
    }
    samples: dict[str, list[float]] = {name: [] for name in methods}
    for round_number in range(-2, ROUNDS):  # two rounds to warm up
        for name, method in methods.items():
            start = time.perf_counter()
            method()
            if round_number >= 0:
                samples[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in samples.items()}


def ordinary_step(task: Task, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the mean loss, as in ordinary training."""
    losses = make_program(task.model, task.loss)(x, y)
    return torch.autograd.grad(losses.mean(), list(task.model.parameters()))


def vmap_step(task: Task, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The clipped sum by materialising every example's gradient."""
    program = make_program(task.model, task.loss)
    parameters = {name: p.detach() for name, p in program.named_parameters()}

    def loss_of_one(values: dict[str, Tensor], one_x: Tensor, one_y: Tensor) -> Tensor:
        return functional_call(program, values, (one_x[None], one_y[None])).squeeze(0)

    # vmap has no rule for the fused attention kernels and would run them one example at a time.
    with sdpa_kernel(SDPBackend.MATH):
        gradients: dict[str, Tensor] = vmap(grad(loss_of_one), in_dims=(None, 0, 0))(parameters, x, y)
    squares = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1).square() for g in gradients.values()])
    factors = (task.max_grad_norm / squares.sum(0).sqrt()).clamp(max=1)
    return {name: torch.tensordot(factors, g, dims=1) for name, g in gradients.items()}
