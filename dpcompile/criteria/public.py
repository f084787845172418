"""Guards against choosing by the training data: a public batch must not be, or share memory with, what is trained on.

They find mistakes, not malice: nothing can tell from numbers alone whether they are public.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from dpcompile.criteria.choices import Choice
from dpcompile.ir.errors import InvalidInput

LOOKED_AT = 2000
"""Examples of a dataset that has no tensors of its own that are compared with the public batch, evenly spread over it."""
WAY_OUT = "take public data, or a criterion that needs none (random, magnitude, synflow)"


def public_tensors(choices: Iterable[Choice]) -> list[Tensor]:
    """All tensors of the public batches."""
    return [leaf for choice in choices for leaf in leaves(choice.public_batch)]


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of nested tuples, lists and dicts."""
    if isinstance(tree, dict):
        return leaves(list(tree.values()))
    if isinstance(tree, (tuple, list)):
        return [leaf for item in tree for leaf in leaves(item)]
    return [tree] if isinstance(tree, Tensor) else []


def check_memory(public: Sequence[Tensor], private: Iterable[Tensor]) -> None:
    """Refuse tensors that share memory."""
    known = {place(tensor) for tensor in public if tensor.numel()}
    if any(place(tensor) in known for tensor in private if tensor.numel()):
        raise InvalidInput(f"public_batch shares memory with data that is trained on, so that it is not public: {WAY_OUT}")


def place(tensor: Tensor) -> int:
    """The address of a tensor's memory."""
    return tensor.untyped_storage().data_ptr()


def check_dataset(public: Sequence[Tensor], dataset: Dataset[Any]) -> None:
    """Refuse a public batch of which an example (its largest tensor) is in the dataset too."""
    if not public:
        return
    known = {key(row) for tensor in public if tensor.dim() > 1 for row in tensor}
    for tensor in examples(dataset, public):
        if key(tensor) in known:
            raise InvalidInput(
                f"an example of public_batch is in the data that is trained on, so that it is not public: {WAY_OUT}"
            )


def key(row: Tensor) -> tuple[Any, ...]:
    """What equal examples have in common."""
    return tuple(row.shape), row.detach().cpu().double().numpy().tobytes()


def examples(dataset: Dataset[Any], public: Sequence[Tensor]) -> Iterator[Tensor]:
    """Tensors of the dataset's examples; all of a dataset of tensors, some of another one."""
    if isinstance(dataset, Subset) and isinstance(dataset.dataset, TensorDataset):
        chosen = torch.as_tensor(dataset.indices)
        yield from (row for tensor in dataset.dataset.tensors if tensor.dim() > 1 for row in tensor[chosen])
        return
    if isinstance(dataset, TensorDataset):
        yield from (row for tensor in dataset.tensors if tensor.dim() > 1 for row in tensor)
        return
    count = len(dataset)  # type: ignore[arg-type]
    for number in range(0, count, max(1, count // LOOKED_AT)):
        yield from (leaf for leaf in leaves(dataset[number]) if leaf.dim() > 0)
