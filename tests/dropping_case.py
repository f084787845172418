"""What a step of which only a part is trained must return: the loop's gradients with the mask applied to each of them."""

from __future__ import annotations

from typing import Any

import torch
from oracle import Expected, clipped_sum, per_example_gradients

from dpcompile.module import PrivateModule


def expect_parts(private: PrivateModule, loss: Any, batch: tuple[Any, ...], kwargs: Any = None, batch_dim: Any = 0,
                 max_grad_norm: float | None = None) -> Expected:  # fmt: skip
    """The expected step; without a clip norm it is the mean norm of what is trained. Masks are the module's own."""
    losses, gradients = per_example_gradients(private.model, loss, batch, kwargs, batch_dim)
    parts = {name: gradient * mask_of(private, name) for name, gradient in gradients.items()}
    if max_grad_norm is None:
        max_grad_norm = float(clipped_sum(parts, 1.0)[0].mean()) or 1.0
    return Expected(max_grad_norm, losses, *clipped_sum(parts, max_grad_norm))


def mask_of(private: PrivateModule, name: str) -> torch.Tensor:
    """1 where trained, 0 elsewhere."""
    assert private.program.selection is not None
    mask = private.program.selection.mask(name)
    return torch.ones(()) if mask is None else mask.double()
