"""A scan whose form does not depend on the size of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def doubling_scan(leaves_of: Callable[[Any], list[Tensor]], operator: Callable[..., Any], leaves: Sequence[Tensor], dim: int = 0,
                  *rest: Any, **more: Any) -> list[Tensor]:  # fmt: skip
    """An inclusive scan of an associative operation in rounds of doubling distance (Hillis & Steele 1986).

    Takes the place of torch's own, which asks for the number of elements of the whole batch. leaves_of: the tensors of what
    the operation returns.
    """
    additional = rest[0] if rest else more.get("additional_inputs", ())
    length, distance, found = leaves[0].shape[dim], 1, list(leaves)
    while distance < length:
        left = [leaf.narrow(dim, 0, length - distance) for leaf in found]
        right = [leaf.narrow(dim, distance, length - distance) for leaf in found]
        joined = leaves_of(operator(*left, *right, *additional))
        pairs = zip(found, joined, strict=True)
        found = [torch.cat([leaf.narrow(dim, 0, distance), new], dim) for leaf, new in pairs]
        distance *= 2
    return found
