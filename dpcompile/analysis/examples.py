"""A few examples for the numeric checks, drawn from the user's batch, which may hold one example only.

Values stay plausible: floating-point numbers get noise on the scale of their tensor and stay within its
range; integers and booleans are those of one of the given examples as a whole. Nothing else is known to be in range: a
column of categories, or what a length or an end of a span points to, would be out of range at another place, and padding
before it; and a kernel that does not look first writes to memory that is not its own. So there are no more different
integers than given examples; what embeddings make of them differs nevertheless, by noise (`Lockstep`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpcompile.batch import Batch

COUNT = 4
NOISE = 0.5  # in standard deviations of the tensor: large enough to be seen, small enough to stay plausible
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def example_dims(batch: Batch) -> list[int | None]:
    """The example axis of every tensor of the batch."""
    return [dim for _, dim in batch.layout.tensor_dims()]


def draw_examples(batch: Batch, attempt: int) -> list[Tensor]:
    """The tensors of a batch with COUNT examples; shared tensors as they are."""
    generator = torch.Generator().manual_seed(attempt)
    rows = [attempt * COUNT + number for number in range(COUNT)]
    pairs = zip(batch.tensors, example_dims(batch), strict=True)
    return [leaf if dim is None else varied(leaf, dim, rows, generator) for leaf, dim in pairs]


def varied(leaf: Tensor, dim: int, rows: Sequence[int], generator: torch.Generator) -> Tensor:
    """Examples made from the rows (modulo the batch size) of one tensor, in its memory format; only floats become distinct."""
    size = leaf.shape[dim]
    source = leaf if size else leaf.new_zeros([1 if axis == dim else n for axis, n in enumerate(leaf.shape)])
    chosen = source.index_select(dim, torch.tensor([row % max(size, 1) for row in rows], device=leaf.device))
    if chosen.is_complex():
        parts = torch.view_as_real(chosen)
        changed = torch.view_as_complex(noisy(parts, parts, generator))
    elif chosen.is_floating_point():
        changed = noisy(chosen, source, generator)
    else:
        changed = chosen
    return changed.contiguous() if leaf.is_contiguous() else changed.contiguous(memory_format=FORMATS[leaf.dim()])


def noisy(chosen: Tensor, source: Tensor, generator: torch.Generator) -> Tensor:
    """Noise on the scale of the tensor, within its range; a constant tensor is raised by up to a tenth."""
    values = source.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    if values.numel() == 0:
        return chosen
    low, high = values.min(), values.max()
    noise = torch.randn(chosen.shape, generator=generator).to(chosen)
    if bool(low == high):
        return chosen + 0.1 * noise.abs().clamp(max=1.0)
    spread = values.double().std(correction=0).to(chosen.dtype)
    return (chosen + NOISE * spread * noise).clamp(low, high)


def take(tensors: Sequence[Tensor], dims: Sequence[int | None], rows: Sequence[int]) -> list[Tensor]:
    """The batch that holds these examples, in this order; every tensor keeps its memory format."""
    chosen = []
    for leaf, dim in zip(tensors, dims, strict=True):
        if dim is None:
            chosen.append(leaf)
            continue
        part = leaf.index_select(dim, torch.tensor(rows, dtype=torch.long, device=leaf.device))
        chosen.append(part.contiguous() if leaf.is_contiguous() else part.contiguous(memory_format=FORMATS[leaf.dim()]))
    return chosen
