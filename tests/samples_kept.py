"""Samples of the operations on trained parts: choosing rows of operands, putting gradients in place, masks."""

from __future__ import annotations

import torch
from meaning import N, Sample, batched, booleans, call, constant, shared, summed, uniform

from dpcompile.kernels import kept_part

INDEX = shared(2, draw=lambda generator, shape: torch.tensor([2, 0]))
SWAPPED = shared(2, draw=lambda generator, shape: torch.tensor([1, 0]))
VALID = shared(2, draw=booleans)

KEPT: tuple[Sample, ...] = (
    *(call(kept_part.choose, x, INDEX, valid, dim) for valid in (None, VALID) for x, dim in (
        (batched(N, 5), 1), (batched(4, N), 0), (batched(4, N, 5), 2), (batched(N, 5, inner=3), 1), (uniform(N, 5), 1),
        (constant(1.0, N, 5), 1), (batched(N, 5), -1))),
    *(call(kept_part.choose, summed(5, 3), INDEX, valid, dim, must=True) for valid in (None, VALID) for dim in (0, 1)),
    call(kept_part.choose, batched(N, 5), SWAPPED, None, 0),
    call(kept_part.choose, shared(5, 3), batched(N, draw=lambda generator, shape: torch.zeros(*shape, dtype=torch.int64)), None, 0,
         cautious=True),
    *(call(kept_part.place, summed(2, 3), INDEX, dim, 7, must=True) for dim in (0,)),
    call(kept_part.place, summed(3, 2), INDEX, 1, 7, must=True),
    call(kept_part.place, batched(N, 2), INDEX, 1, 7, cautious=True),
    call(kept_part.place, batched(2, N), INDEX, 0, 7, cautious=True),
    call(kept_part.keep, summed(3, 5), shared(3, 5, draw=booleans), must=True),
    call(kept_part.keep, batched(N, 5), shared(5, draw=booleans), cautious=True),
    call(kept_part.keep, shared(5), batched(N, 5, draw=booleans), cautious=True),
    call(kept_part.keep, summed(5), batched(N, 5, draw=booleans)),
)  # fmt: skip
