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


class Criteria(TorchFunctionMode):
    """Two criteria in elementary operations: torch 2.11's cross entropy against probabilities fixes the batch size while
    tracing, and torch's decomposition of multilabel_margin_loss counts padded targets."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target = args[1] if len(args) > 1 else kwargs.get("target")
        if func is F.cross_entropy and isinstance(target, Tensor) and target.is_floating_point():
            return soft_cross_entropy(*args, **kwargs)
        return (multilabel_margin_loss if func is F.multilabel_margin_loss else func)(*args, **kwargs)


GLOBAL_POOLS = {F.adaptive_avg_pool1d: 1, F.adaptive_avg_pool2d: 2, F.adaptive_avg_pool3d: 3}


class GlobalPools(TorchFunctionMode):
    """Adaptive pooling to a single place is traced as the mean that it is: for permuted inputs torch rewrites the strides of
    that mean in place, and the gradient of such a rewriting is a scatter over the storage of the whole batch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        size = args[1] if len(args) > 1 else kwargs.get("output_size")
        count = GLOBAL_POOLS.get(func, 0)
        if count and isinstance(size, (int, tuple, list)) and set(size if isinstance(size, (tuple, list)) else [size]) == {1}:
            image = args[0] if args else kwargs["input"]
            return image.mean([-place for place in range(1, count + 1)], keepdim=True)
        return func(*args, **kwargs)


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


def multilabel_margin_loss(
    input: Tensor, target: Tensor, size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean"
) -> Tensor:
    """F.multilabel_margin_loss f[B] for input f[B, C] and target i64[B, C], whose labels end at the first -1."""
    if reduction != "none" or size_average is not None or reduce is not None or input.dim() != 2 or input.shape != target.shape:
        return F.multilabel_margin_loss(input, target, size_average, reduce, reduction)
    counted = ((target < 0).cumsum(1) == 0).unsqueeze(2)
    labels = target.clamp(min=0)
    is_label = ((labels.unsqueeze(2) == torch.arange(input.shape[1], device=input.device)) & counted).any(1)
    margins = (1 - input.gather(1, labels).unsqueeze(2) + input.unsqueeze(1)).clamp(min=0)
    return torch.where(counted & ~is_label.unsqueeze(1), margins, 0.0).sum((1, 2)) / input.shape[1]
