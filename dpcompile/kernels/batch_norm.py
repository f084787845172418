"""Normalisation whose gradient meets its input in one memory format.

torch's kernel for the gradient of batch normalisation on CPUs (2.11 to 2.15) compares the formats that strides suggest. In a
batch of one the stride of the example axis says nothing, so that channels-last images pass for contiguous ones, and the two
are multiplied element by element in different orders: the result is wrong, without a warning. Any attention behind a
convolution and its normalisation (flatten(2).transpose(1, 2)) gives such gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def format_of(x: Tensor) -> torch.memory_format:
    """The memory format that a tensor is dense in; contiguous if in none."""
    other = FORMATS.get(x.dim(), torch.contiguous_format)
    return torch.contiguous_format if x.is_contiguous() or not x.is_contiguous(memory_format=other) else other


def with_gradient_in_format(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function, with the incoming gradient in the memory format of the result."""

    def normalised(*args: Any, **kwargs: Any) -> Tensor:
        result = own(*args, **kwargs)
        if result.requires_grad:
            memory_format = format_of(result)
            result.register_hook(lambda gradient: gradient.contiguous(memory_format=memory_format))
        return result

    return normalised


BATCH_NORM: dict[Callable[..., Any], Callable[..., Tensor]] = {
    own: with_gradient_in_format(own) for own in (F.batch_norm, torch.batch_norm)
}
NORMS = BATCH_NORM | {own: with_gradient_in_format(own) for own in (F.instance_norm, torch.instance_norm)}


class ContiguousNorms(TorchFunctionMode):
    """Normalisations of contiguous inputs, for a plain run on single examples."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in NORMS:
            return func(*args, **kwargs)
        if args:
            args = (args[0].contiguous(), *args[1:])
        else:
            kwargs["input"] = kwargs["input"].contiguous()
        return NORMS[func](*args, **kwargs)
