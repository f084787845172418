"""The plain loop over single examples: the meaning that every compiled step is compared with."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpcompile.analysis.examples import example_dims, take
from dpcompile.analysis.plain_run import run_plainly
from dpcompile.batch import Batch
from dpcompile.losses import Program


@dataclass(frozen=True)
class Loop:
    """What the loop finds: losses and norms f[n], clipped sums in float64, the largest clipped gradient."""

    losses: Tensor
    norms: Tensor
    sums: Mapping[str, Tensor]
    scale: float


Factors = Callable[[int, Mapping[str, float]], Mapping[str, float]]
"""An example's number and the norms of its gradients by parameter -> the factor of every parameter."""


def loop(program: Program, batch: Batch, factors_of: Factors) -> Loop:
    """One example at a time."""
    losses, norms, scale = [], [], 0.0
    sums: dict[str, Tensor] = {}
    for row, leaves in enumerate(singles(batch)):
        plain = run_plainly(program, batch.layout, leaves, 1)
        gradients = {name: program.trained_part(name, g) for name, g in plain.gradients.items() if g is not None}
        own = {name: float(torch.linalg.vector_norm(g.to(wide(g.dtype)))) for name, g in gradients.items()}
        factors = factors_of(row, own)
        losses.append(plain.losses)
        norms.append(math.hypot(*own.values()))
        scale = max([scale, math.hypot(*(factor * own[name] for name, factor in factors.items() if factor > 0))])
        for name, gradient in gradients.items():
            if factors[name] > 0:
                part = gradient.to(wide(gradient.dtype)) * factors[name]
                sums[name] = sums[name] + part if name in sums else part
    return Loop(torch.cat(losses), torch.tensor(norms, dtype=torch.float64), sums, scale)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type in float64 precision."""
    return torch.complex128 if dtype.is_complex else torch.float64


def singles(batch: Batch) -> list[list[Tensor]]:
    """Every example of a batch as a batch of one."""
    return [take(batch.tensors, example_dims(batch), [row]) for row in range(batch.size)]


def as_batch(batch: Batch, tensors: Sequence[Tensor], size: int) -> Batch:
    """The same layout with other examples."""
    return Batch(batch.layout, list(tensors), size, batch.key)


def in_float64(program: Program, batch: Batch) -> tuple[Program, Batch]:
    """A float64 copy of the program, and the batch for it."""
    doubled = copy.deepcopy(program).double()
    return doubled, as_batch(batch, [t.double() if t.is_floating_point() else t for t in batch.tensors], batch.size)
