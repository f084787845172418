"""Functions of torch that are traced in another form than their own, with the same values."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class DenseGradients(TorchFunctionMode):
    """Lookups with sparse=True get dense gradients: a sparse one would be summed before it could be clipped."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        place = {torch.embedding: 4, F.embedding: 6}.get(func)
        if place is not None:
            args, kwargs = args[:place], {**kwargs, "sparse": False}
        return func(*args, **kwargs)


class DistributionTargets(TorchFunctionMode):
    """Cross entropy against probabilities, element by element: torch 2.11's own fixes the batch size while tracing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target = args[1] if len(args) > 1 else kwargs.get("target")
        soft = func is F.cross_entropy and isinstance(target, Tensor) and target.is_floating_point()
        return (soft_cross_entropy if soft else func)(*args, **kwargs)


def soft_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """F.cross_entropy for targets f[B, classes, ...] that are distributions; torch's own for every other reduction than
    "none", and for bad shapes, which it reports."""
    if reduction != "none" or size_average is not None or reduce is not None or input.dim() != target.dim() or input.dim() < 2:
        return F.cross_entropy(input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)
    smooth = target * (1 - label_smoothing) + label_smoothing / input.shape[1] if label_smoothing else target
    if weight is not None:
        smooth = smooth * weight.view(-1, *[1] * (input.dim() - 2))
    return -(F.log_softmax(input, 1) * smooth).sum(1)
