"""Guards against choosing by the training data: a public batch must not be, or share memory with, what is trained on.

They find mistakes, not malice: nothing can tell from numbers alone whether they are public, and numbers that were rounded or
changed in any way are other numbers. Examples are compared by their numbers in order, whatever their shape and type, in tensors
of two or more dimensions: of labels there are too few to tell anything. Tensors that tell no examples apart do not count, unless
the batch has no others: those of two values (masks of attention, one-hot labels), whole numbers that count up (positions), and
rows that are all alike.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from dpcompile.batch import Batch, flatten_batch
from dpcompile.criteria.choices import Choice
from dpcompile.ir.errors import InvalidInput

LOOKED_AT = 2000
"""Examples of a dataset that has no tensors of its own that are compared with the public batch, evenly spread over it."""
PROBES = 64
"""Numbers of an example of a step that are compared first, evenly spread over it."""
WAY_OUT = "take public data and a new model, or a criterion that needs none (random, magnitude, synflow)"
IN_DATA = f"an example of public_batch is in the data that is trained on, so that it is not public: {WAY_OUT}"


class Public:
    """The examples of the passes' public batches. keys: what equal examples have in common. probes: {numbers per example: i64[P],
    what their probes have in common}."""

    def __init__(self, choices: Iterable[Choice], batch_dim: Any) -> None:
        batches = [flatten_batch(tuple(one.public_batch), {}, batch_dim) for one in choices if one.public_batch is not None]
        if any(leaves(constant) for batch in batches for constant in batch.layout.constants.values()):
            raise InvalidInput("public_batch holds arrays, or tensors in a container that torch cannot look into: give tensors")
        self.tensors = [tensor for batch in batches for tensor in batch.tensors]
        rows = [own for batch in batches for own in telling(examples_of(batch)) if len(own)]
        self.keys = {key(row) for own in rows for row in own}
        self.probes: dict[int, Tensor] = {}
        for own in rows:
            size = own[0].numel()
            known = self.probes.get(size, torch.zeros(0, dtype=torch.int64))
            self.probes[size] = torch.cat([known, probes(own).cpu()])

    def check_batch(self, batch: Batch) -> None:
        """Refuse a batch of a step that shares memory with a public one or holds one of its examples."""
        if not self.tensors:
            return
        places = [place(tensor) for tensor in self.tensors if tensor.numel()]
        if any(overlap(place(tensor), own) for tensor in batch.tensors if tensor.numel() for own in places):
            raise InvalidInput(f"public_batch shares memory with data that is trained on, so that it is not public: {WAY_OUT}")
        for own in examples_of(batch):
            known = self.probes.get(own[0].numel()) if len(own) else None
            if known is None:
                continue
            found = torch.isin(probes(own), known.to(own.device))
            if bool(found.any()) and any(key(row) in self.keys for row in own[found]):
                raise InvalidInput(IN_DATA)

    def check_dataset(self, dataset: Dataset[Any]) -> None:
        """Refuse a dataset that holds an example of a public batch; some examples of a large one that is not made of tensors."""
        if self.keys and any(key(leaf) in self.keys for leaf in dataset_examples(dataset)):
            raise InvalidInput(IN_DATA)


def examples_of(batch: Batch) -> list[Tensor]:
    """Tensors of the batch with one row per example, those with several numbers in each."""
    pairs = zip(batch.tensors, (dim for _, dim in batch.layout.tensor_dims()), strict=True)
    rows = [real(tensor.movedim(dim, 0)) for tensor, dim in pairs if dim is not None and tensor.dim() > 1]
    return [own for own in rows if own.numel() > len(own)]


def telling(rows: list[Tensor]) -> list[Tensor]:
    """Those that tell examples apart; all if none does."""
    return [own for own in rows if not (is_alike(own) or is_counting(own) or len(own.unique()) <= 2)] or rows


def is_alike(own: Tensor) -> bool:
    """Whether there are several examples with the same numbers in each."""
    return len(own) > 1 and bool((own == own[:1]).all())


def is_counting(own: Tensor) -> bool:
    """Whether whole numbers go up by one or stay in every example, as those of positions and segments do."""
    steps = own.flatten(1).diff(dim=1)
    return not own.is_floating_point() and bool(((steps == 0) | (steps == 1)).all())


def probes(rows: Tensor) -> Tensor:
    """i64[B]: a sum over some numbers of every example, exact and so the same wherever it is computed."""
    flat = rows.detach().flatten(1)
    count = min(PROBES, flat.shape[1])
    places = torch.arange(count, device=flat.device) * (flat.shape[1] - 1) // max(count - 1, 1)
    bits = (flat[:, places].double() + 0.0).contiguous().view(torch.int64)  # + 0.0: there are two zeros
    odd = 2 * torch.arange(len(places), device=flat.device, dtype=torch.int64) + 1
    return (bits * (odd * 0x9E3779B97F4A7C1 + 2)).sum(1)


def key(row: Tensor) -> tuple[int, bytes]:
    """What equal examples have in common."""
    numbers = (real(row).detach().cpu().double() + 0.0).contiguous().numpy()
    return numbers.size, hashlib.blake2b(numbers.tobytes(), digest_size=16).digest()


def real(tensor: Tensor) -> Tensor:
    """Complex numbers as pairs."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def place(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor's memory begins and ends."""
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.data_ptr() + storage.nbytes()


def overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two places have memory in common."""
    return one[0] < other[1] and other[0] < one[1]


def leaves(tree: Any) -> list[Tensor]:
    """The numbers in an item of a dataset: tensors, arrays, lists of numbers, in nested containers."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, np.ndarray):
        return [torch.from_numpy(np.ascontiguousarray(tree, dtype=float))] if tree.dtype.kind in "biuf" else []
    if isinstance(tree, Mapping):
        return [leaf for item in tree.values() for leaf in leaves(item)]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return leaves(vars(tree))
    if isinstance(tree, (list, tuple)) and not any(isinstance(item, (Tensor, np.ndarray)) for item in tree):
        try:
            return [torch.as_tensor(np.asarray(tree, dtype=float))]
        except (ValueError, TypeError):
            return [leaf for item in tree for leaf in leaves(item)]
    return [leaf for item in tree for leaf in leaves(item)] if isinstance(tree, (tuple, list)) else []


def dataset_examples(dataset: Dataset[Any]) -> Iterator[Tensor]:
    """Tensors of the dataset's examples: all of a dataset of tensors, some of another one."""
    indices: Sequence[int] | None = None
    while isinstance(dataset, Subset):
        indices = list(dataset.indices) if indices is None else [dataset.indices[i] for i in indices]
        dataset = dataset.dataset
    if isinstance(dataset, TensorDataset):
        rows = slice(None) if indices is None else torch.as_tensor(indices, dtype=torch.int64)
        yield from (row for tensor in dataset.tensors if tensor.dim() > 1 for row in tensor[rows])
        return
    looked_through = range(len(cast(Sized, dataset))) if indices is None else indices
    for position in range(0, len(looked_through), max(1, len(looked_through) // LOOKED_AT)):
        yield from leaves(dataset[looked_through[position]])
