"""What is inside the clock: the step alone, or all that the first paper's programs timed; and in which precision products run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from benchmarks.cases import MAX_GRAD_NORM, Case
from benchmarks.measure import Step

NOISE_MULTIPLIER = 1.1


def as_published(step: Step, case: Case, model: nn.Module, x: Tensor, y: Tensor, is_private: bool) -> Step:
    """One training step as Rochette et al. time it: a new batch drawn on the CPU and copied, the step, noise, and SGD's update.

    x, y: the tensors that `step` reads. The learning rate is zero, so that every method stays on the same weights; noise and
    update cost what they always cost, and are written once for all methods.
    """
    generator = torch.Generator().manual_seed(2)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    deviation = NOISE_MULTIPLIER * MAX_GRAD_NORM / case.batch_size

    def published() -> Mapping[str, Tensor]:
        inputs, targets = case.draw(case.batch_size, generator)
        x.copy_(inputs)
        y.copy_(targets)
        gradients = step()
        for name, parameter in parameters.items():
            update = gradients[name] / case.batch_size
            if is_private:
                update = update.add_(torch.randn_like(update), alpha=deviation)
            parameter.add_(update, alpha=0.0)
        return gradients

    return published


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Products of float32 matrices and convolutions: "highest" in float32, "high" in TF32 where the GPU has it."""
    matrices, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matrices)
        torch.backends.cudnn.allow_tf32 = convolutions
