"""Functions that pick or move examples by their place in the batch, count them, or use how many there are."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from mixing_case import FIXED, OTHER, flat, sequences, with_targets
from torch import Tensor
from zoo_case import integers

PLACE = r"by their place in the batch"
NUMBER = r"batch size is used as a value"
POSITION = r"position in the batch"
CUT = r"losses have shape"


def loop_over_rows(h: Tensor) -> Tensor:
    """A running sum, written as a loop over the examples."""
    rows, total = [], torch.zeros(5)
    for row in h:
        total = total + row
        rows.append(total)
    return torch.stack(rows)


def shifted_in_place(h: Tensor) -> Tensor:
    """Every example takes up a part of the one before it, by writing into a copy."""
    out = h.clone()
    out[1:] += 0.5 * h[:-1]
    return out


def first_row_zero(h: Tensor) -> Tensor:
    """The first example of the batch is written over."""
    out = h.clone()
    out[0] = 0.0
    return out


def copied_backwards(h: Tensor) -> Tensor:
    """The batch in the opposite order, by copy_."""
    return torch.empty_like(h).copy_(h.flip(0))


MOVED = flat({
    "roll without dims": (r"carries values from one example into another", lambda h: h.roll(1)),
    "roll over the batch": (r"carries values from one example into another", lambda h: h.roll(1, 0)),
    "roll over the batch and back in features": (r"carries values from one example into another", lambda h: h.roll((2, 1), (0, 1))),
    "roll by minus one from behind": (r"carries values from one example into another", lambda h: h.roll(-1, -2)),
    "flip over the batch": (r"order of the examples is reversed", lambda h: h.flip(0)),
    "flip of both axes": (r"order of the examples is reversed", lambda h: h.flip(0, 1)),
    "flipud": (r"order of the examples is reversed", lambda h: torch.flipud(h)),
    "rot90 twice": (r"order of the examples is reversed|the rotation turns the batch", lambda h: torch.rot90(h, 2)),
    "negative step by flip of a slice": (CUT + "|" + PLACE + "|" + OTHER, lambda h: h[::2].flip(0).repeat(2, 1)[: h.shape[0]]),
    "neighbours by cat of slices": (PLACE, lambda h: h + torch.cat([h[1:], h[:1]])),
    "shift by padding": (r"batch is padded", lambda h: h + F.pad(h, (0, 0, 1, 0))[:-1]),
    "circular shift by index": (r"position in the batch|batch size", lambda h: h[(torch.arange(h.shape[0]) + 1) % h.shape[0]]),
    "in place from the example before": (PLACE, shifted_in_place),
    "first example written over": (PLACE, first_row_zero),
    "copy_ of the reversed batch": (r"order of the examples is reversed", copied_backwards),
    "running sum by a loop": (FIXED, loop_over_rows),
    "random permutation": (r"randperm", lambda h: h[torch.randperm(h.shape[0])]),
    "mixup with a permutation": (r"randperm", lambda h: 0.7 * h + 0.3 * h[torch.randperm(h.shape[0])]),
    "order by random keys": (r"holds the examples", lambda h: h[torch.rand(h.shape[0]).argsort()]),
    "constant permutation": (r"index|fixed number|picked", lambda h: h + h[torch.tensor([2, 0, 1])].mean(0)),
})  # fmt: skip

PICKED = flat({
    "every second example": (CUT + "|" + PLACE + "|" + OTHER, lambda h: h + h[::2].repeat_interleave(2, 0)[: h.shape[0]]),
    "all but the first": (PLACE, lambda h: h + F.pad(h[1:], (0, 0, 0, 1))),
    "all but the last": (PLACE, lambda h: h - F.pad(h[:-1], (0, 0, 0, 1))),
    "the first example for all": (PLACE, lambda h: h + h[0]),
    "the last example for all": (PLACE, lambda h: h * h[-1].tanh()),
    "the first example expanded": (PLACE, lambda h: h[:1].expand_as(h)),
    "narrow": (PLACE, lambda h: h + h.narrow(0, 0, 1)),
    "select": (PLACE, lambda h: h + h.select(0, 1)),
    "take of the flattened batch": (r"take", lambda h: h + torch.take(h, torch.tensor([0, 1, 2, 3, 4]))),
    "index_select by constants": (r"examples are picked by an index", lambda h: h + h.index_select(0, torch.tensor([1]))),
    "index_select by a permutation that is counted down": (
        r"counted over the whole batch|position|batch", lambda h: h.index_select(0, torch.arange(h.shape[0] - 1, -1, -1))),
    "chunks of the batch": (PLACE + "|fixed number", lambda h: torch.cat(h.chunk(2)[::-1])),
    "split in two": (CUT + "|" + PLACE + "|" + OTHER, lambda h: torch.cat(h.tensor_split(2)[::-1])),
    "split at a third": (PLACE + "|fixed number", lambda h: torch.cat(torch.split(h, [1, h.shape[0] - 1])[::-1])),
    "unbind": (PLACE + "|fixed number", lambda h: torch.stack(h.unbind(0)[::-1])),
    "halves exchanged": (CUT + "|" + PLACE, lambda h: torch.cat([h[h.shape[0] // 2 :], h[: h.shape[0] // 2]])),
    "diagonal of batch and features": (r"diagonal pairs examples", lambda h: h + h.diagonal().sum()),
    "index_fill": (r"index_fill|across examples|picked", lambda h: h.index_fill(0, torch.tensor([0]), 0.0)),
    "index_copy": (PLACE + r"|across examples", lambda h: h.index_copy(0, torch.tensor([0]), h[:1] * 0)),
    "select_scatter": (PLACE, lambda h: torch.select_scatter(h, torch.zeros(5), 0, 0)),
    "slice_scatter": (PLACE, lambda h: torch.slice_scatter(h, torch.zeros(1, 5), 0, 0, 1)),
    "windows over the batch": (r"windows slide over the batch|" + FIXED, lambda h: h + F.pad(h.unfold(0, 2, 1).sum(2), (0, 0, 0, 1))),
    "as_strided across examples": (r"as_strided reads across examples|became a fixed number|" + OTHER, lambda h: h.contiguous().as_strided((h.shape[0], 5), (1, 1))),
    "as_strided of the first example": (r"as_strided reads across examples", lambda h: h.contiguous().as_strided(h.shape, (0, 1))),
    "repeated and cut": (r"batch|blocks|" + PLACE, lambda h: h.repeat(2, 1)[1 : h.shape[0] + 1]),
    "interleaved and cut": (PLACE + "|repeat", lambda h: h.repeat_interleave(2, 0)[: h.shape[0]]),
    "two batches and cut": (PLACE, lambda h: torch.cat([h, 2 * h])[1 : h.shape[0] + 1]),
})  # fmt: skip

COUNTED = flat({
    "division by the batch size": (NUMBER, lambda h: h / h.shape[0]),
    "division by len": (FIXED, lambda h: h / len(h)),
    "times the root of the batch size": (NUMBER, lambda h: h * h.shape[0] ** 0.5),
    "math.sqrt of the batch size": (NUMBER + "|" + FIXED, lambda h: h * math.sqrt(h.shape[0])),
    "plus the number of elements": (NUMBER, lambda h: h + h.numel()),
    "two to the batch size": (NUMBER + "|" + FIXED, lambda h: h * 2.0 ** h.shape[0]),
    "batch size as a tensor": (r"batch|fixed", lambda h: h / torch.tensor(h.shape[0])),
    "batch size by full": (r"batch", lambda h: h / torch.full((), h.shape[0], dtype=h.dtype)),
    "batch size by scalar_tensor": (r"batch", lambda h: h / torch.scalar_tensor(h.shape[0])),
    "batch size by a sum of ones": (r"sum over the batch", lambda h: h / torch.ones(h.shape[0]).sum()),
    "batch size by a sum of ones_like": (r"sum over the batch", lambda h: h / torch.ones_like(h[:, 0]).sum()),
    "batch size by the norm of ones": (r"how many examples there are", lambda h: h / torch.ones(h.shape[0]).norm()),
    "batch size by cumsum of ones": (r"holds the examples", lambda h: h * torch.ones(h.shape[0]).cumsum(0)[:, None]),
    "batch size by nonzero": (r"depends on the data|nonzero|trace", lambda h: h * len(torch.nonzero(torch.ones(h.shape[0])))),
    "batch size as a clamp": (NUMBER, lambda h: h.clamp(max=1.0 / h.shape[0])),
    "batch size as a fill value": (NUMBER, lambda h: h.masked_fill(h > 0, h.shape[0])),
    "batch size in softmax temperature": (NUMBER, lambda h: (h / h.shape[0]).softmax(1)),
    "batch size as a roll of features": (NUMBER, lambda h: h.roll(h.shape[0], 1)),
    "batch size as the end of a slice of features": (NUMBER + r"|shape of slice\w* .* depends on", lambda h: h[:, : h.shape[0] - 20]),
    "stride of a transposed batch": (NUMBER, lambda h: h / h.t().contiguous().stride(0)),
    "plus the position": (POSITION, lambda h: h + torch.arange(h.shape[0])[:, None]),
    "times the position in float": (POSITION, lambda h: h * torch.arange(h.shape[0], dtype=h.dtype)[:, None]),
    "times whether first": (POSITION, lambda h: h * (torch.arange(h.shape[0]) == 0)[:, None]),
    "where the position is odd": (POSITION, lambda h: torch.where(torch.arange(h.shape[0])[:, None] % 2 == 0, h, -h)),
    "position as an index of features": (POSITION, lambda h: h + torch.arange(9.0)[torch.arange(h.shape[0]) % 9][:, None]),
    "linspace over the batch": (r"linspace|position|counted|batch", lambda h: h * torch.linspace(0, 1, h.shape[0])[:, None]),
    "identity matrix of the batch": (r"eye|position|batch", lambda h: torch.eye(h.shape[0]) @ h),
    "lower triangle over the batch": (r"examples lie there|batch", lambda h: torch.tril(torch.ones(h.shape[0], h.shape[0])) @ h),
    "triu_indices of the batch": (r"triu|batch|fixed", lambda h: h + h[torch.triu_indices(h.shape[0], h.shape[0])[0][:1]]),
    "positions counted by cumsum": (r"holds the examples", lambda h: h[torch.ones(h.shape[0]).long().cumsum(0) - 1]),
})  # fmt: skip

FOLDED = sequences({
    "view as [T, B]": (r"cuts across examples", lambda h: h.view(7, -1, 5).transpose(0, 1)),
    "view as [T, B] by shape": (r"cuts across examples", lambda h: h.reshape(h.shape[1], h.shape[0], 5).transpose(0, 1)),
    "unflatten in the wrong order": (r"cuts across examples", lambda h: h.flatten(0, 1).unflatten(0, (7, -1)).transpose(0, 1)),
    "sequence-first folded, batch-first unfolded": (
        r"cuts across examples", lambda h: h.transpose(0, 1).flatten(0, 1).view(-1, 7, 5)),
    "transposed without transposing": (r"cuts across examples", lambda h: h.transpose(1, 2).reshape(5, -1, 7).transpose(0, 1)),
    "batch folded into features": (r"cuts across examples|holds the examples|runs over", lambda h: h.reshape(7, -1).softmax(1).view(-1, 7, 5)),
    "shift in the folded batch": (r"carries values from one example", lambda h: h.flatten(0, 1).roll(1, 0).view(-1, 7, 5)),
    "cumsum in the folded batch": (r"holds the examples", lambda h: h.flatten(0, 1).cumsum(0).view(-1, 7, 5)),
    "first token of the folded batch": (PLACE, lambda h: h + h.flatten(0, 1)[0]),
    "folded with another order added": (
        r"different axes", lambda h: (h.flatten(0, 1) + h.transpose(0, 1).flatten(0, 1)).view(-1, 7, 5)),
    "every seventh of the flattened batch": (PLACE, lambda h: h[:, 0] + h.transpose(0, 1).flatten(0, 1)[::7]),
    "attention mask by position in the batch": (POSITION, lambda h: h.masked_fill((torch.arange(h.shape[0]) < 3)[:, None, None], 0.0)),
})  # fmt: skip

PAIRED = flat({
    "pairs by view": (r"invalid for input|cuts across", lambda h: h.view(-1, 2, 5).flip(1).reshape(-1, 5)),
    "features and batch exchanged": (r"cuts across examples", lambda h: h.t().reshape(-1, 5)),
    "batch as rows of five": (r"cuts across examples", lambda h: h.reshape(5, -1).t()),
    "flat with a shift": (r"carries values", lambda h: h.flatten().roll(1).view(-1, 5)),
    "transposed and flattened": (r"cuts across examples", lambda h: h.t().flatten().view(-1, 5)),
    "resized in column order": (r"cuts across examples", lambda h: h.t().contiguous().view(h.shape[0], 5)),
})  # fmt: skip

GIVEN = (
    with_targets("permutation among the inputs", r"examples are picked by an index", lambda h, p: h + h[p], integers(2)),
    with_targets("index_select by an input", r"examples are picked by an index", lambda h, p: h.index_select(0, p), integers(2)),
    with_targets("embedding of other examples", r"embedding table depends on the batch", lambda h, p: F.embedding(p, h), integers(2)),
    with_targets("take_along_dim over the batch", r"looked up across examples|" + FIXED,
                 lambda h, p: h.take_along_dim(p[:, None], 0), integers(2)),
    with_targets("gather over the batch", r"looked up across examples", lambda h, p: h.gather(0, p[:, None].expand(-1, 5)), integers(2)),
)  # fmt: skip

ORDER = MOVED + PICKED + COUNTED + FOLDED + PAIRED + GIVEN
