"""One example made of several records: augmentation multiplicity, and users as the unit of privacy.

    loss = mean_over_records(per_record_loss)     # batch tensors [B, K, ...] -> losses f[B]

Every example carries K records (K augmented copies, or up to K records of one user, the rest masked); its loss is the mean over
its records, so that its gradient is the mean of theirs and is clipped once (De et al., 2022, for augmentations). Sampling and
accounting then speak of examples, that is of users, if the dataset's items are users.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dpcompile.ir.errors import InvalidInput

Loss = Callable[..., Tensor]


def mean_over_records(loss: Loss, is_masked: bool | str = False) -> Loss:
    """The loss of examples [B, K, ...] from `loss(model, *batch, **named) -> f[B K]` of single records.

    Every tensor of the batch has examples first and records second. is_masked: the last tensor, or the one of this name in
    batches by name, is bool[B, K] and says which records are there. The others are replaced by zeros, whatever they held (NaN
    too), and an example without any record has loss 0.
    """

    def of_examples(model: nn.Module, *batch: Tensor, **named: Tensor) -> Tensor:
        """Losses f[B]."""
        present = taken_mask(batch, named, is_masked)
        if is_masked is True:
            batch = batch[:-1]
        records = {name: tensor for name, tensor in named.items() if tensor is not present}
        copies = next(iter((*batch, *records.values()))).shape[1]
        flat = [single(tensor, present) for tensor in batch]
        flat_named = {name: single(tensor, present) for name, tensor in records.items()}
        losses = loss(model, *flat, **flat_named).unflatten(0, (-1, copies))
        if present is None:
            return losses.mean(1)
        counted = torch.where(present, losses, torch.zeros_like(losses))
        return counted.sum(1) / present.sum(1).clamp(min=1)

    return of_examples


def taken_mask(batch: tuple[Tensor, ...], named: dict[str, Tensor], is_masked: bool | str) -> Tensor | None:
    """Which records are there, bool[B, K]; None for all."""
    if is_masked is True:
        if not batch:
            raise InvalidInput(f'the batch comes by names ({", ".join(named)}); say which is the mask: is_masked="name"')
        return batch[-1]
    if not is_masked:
        return None
    if is_masked not in named:
        raise InvalidInput(f"the batch has no {is_masked!r}, which is to say which records are there, but {', '.join(named)}")
    return named[is_masked]


def single(tensor: Tensor, present: Tensor | None) -> Tensor:
    """Records one behind the other, [B K, ...]; zeros for those that are not there."""
    if present is not None:
        there = present.reshape(*present.shape, *(1 for _ in tensor.shape[2:]))
        tensor = torch.where(there, tensor, torch.zeros_like(tensor))
    return tensor.flatten(0, 1)
