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

Loss = Callable[..., Tensor]


def mean_over_records(loss: Loss, is_masked: bool = False) -> Loss:
    """The loss of examples [B, K, ...] from `loss(model, *batch) -> f[B K]` of single records.

    Every tensor of the batch has examples first and records second. is_masked: the last tensor is bool[B, K] and says which
    records are there; an example without any has loss 0.
    """

    def of_examples(model: nn.Module, *batch: Tensor) -> Tensor:
        """Losses f[B]."""
        records = batch[:-1] if is_masked else batch
        copies = records[0].shape[1]
        losses = loss(model, *(tensor.flatten(0, 1) for tensor in records)).unflatten(0, (-1, copies))
        if not is_masked:
            return losses.mean(1)
        present = batch[-1]
        counted = torch.where(present, losses, torch.zeros_like(losses))
        return counted.sum(1) / present.sum(1).clamp(min=1)

    return of_examples
