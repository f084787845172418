"""Replace nn.EmbeddingBag during capture by a lookup and a reduction within each bag.

    with RegularBags():
        model(...)

torch flattens the bags of all examples into one list with offsets, which hides where an example ends. Bags
of one size need no offsets: ids int[N, k] become rows f[N, k, d] by an ordinary embedding, reduced over k.
That is exact for sum, mean and max, with per_sample_weights and padding_idx: padded entries count neither
in the sum nor in the mean nor in the maximum, and a bag of padding alone is zero.

A flat list ids int[N * k] is taken as such bags only if its offsets are known to be 0, k, 2k, ... for every
batch size: the very tensor that `torch.arange(0, ids.numel(), k)` returned. Other offsets along the batch are
refused.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import sympy
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dpcompile.ir.errors import UnsupportedOperation, refusal
from dpcompile.ir.graph import size_expression


class Call(NamedTuple):
    """The arguments of torch.nn.functional.embedding_bag, in their order."""

    input: Tensor
    weight: Tensor
    offsets: Tensor | None = None
    max_norm: float | None = None
    norm_type: float = 2.0
    scale_grad_by_freq: bool = False
    mode: str = "mean"
    sparse: bool = False
    per_sample_weights: Tensor | None = None
    include_last_offset: bool = False
    padding_idx: int | None = None


class Steps(NamedTuple):
    """Where a tensor of regular numbers came from: arange(start, end, step), not written to since."""

    tensor: weakref.ref[Tensor]
    version: int
    start: Any
    end: Any
    step: Any


class RegularBags(TorchFunctionMode):
    """While active, bags of one size are lookups and reductions; raises UnsupportedOperation for others."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: dict[int, Steps] = {}

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.arange:
            result = func(*args, **kwargs)
            self.remember(result, args, kwargs)
            return result
        if func is not F.embedding_bag:
            return func(*args, **kwargs)
        call = Call(*args, **kwargs)
        bag = self.bag_size(call)
        if bag is None or (call.per_sample_weights is not None and call.mode != "sum"):
            return func(*args, **kwargs)  # not along the batch, or an error, which torch explains
        return reduced(call, bag)

    def remember(self, result: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what an arange counted."""
        bounds = (0, *args) if len(args) == 1 else args
        start, end, step = (*bounds, 1)[:3] if len(bounds) in (2, 3) else (None, None, None)
        named = [kwargs.get(name, given) for name, given in (("start", start), ("end", end), ("step", step))]
        self.counted[id(result)] = Steps(weakref.ref(result), result._version, *named)

    def bag_size(self, call: Call) -> int | None:
        """The size that all bags share; None where torch itself should be asked."""
        if call.input.dim() == 2:
            return int(call.input.shape[1]) if call.offsets is None else None
        if call.input.dim() != 1 or call.offsets is None or not follows_batch(call.input, call.offsets):
            return None
        steps = self.counted.get(id(call.offsets))
        if steps is None or steps.tensor() is not call.offsets or call.offsets._version != steps.version:
            raise UnsupportedOperation(irregular("its offsets are numbers that are known at run time only"))
        if not isinstance(steps.step, int) or steps.step < 1 or steps.start != 0:
            raise UnsupportedOperation(irregular("its offsets are not 0, k, 2k, ..."))
        count, beyond = (
            expression(call.input.shape[0]),
            sympy.expand(expression(steps.end) - expression(call.input.shape[0])),
        )
        low, high = (1, steps.step) if call.include_last_offset else (1 - steps.step, 0)
        if sympy.Mod(count, steps.step) != 0 or not beyond.is_Integer or not low <= int(beyond) <= high:
            raise UnsupportedOperation(irregular(f"its bags of {steps.step} do not cover the input exactly"))
        return steps.step


def expression(size: Any) -> sympy.Expr:
    """A number or symbolic size as a sympy expression."""
    return size_expression(size) if isinstance(size, (int, torch.SymInt)) else sympy.nan


def follows_batch(*tensors: Tensor) -> bool:
    """Whether a size of one of the tensors contains the batch size."""
    return any(isinstance(size, torch.SymInt) for tensor in tensors for size in tensor.shape)


def reduced(call: Call, bag: int) -> Tensor:
    """Rows f[N, k, d] of every bag, reduced over the bag: f[N, d]."""
    ids = call.input.reshape(-1, bag)
    rows = F.embedding(ids, call.weight, call.padding_idx, call.max_norm, call.norm_type, call.scale_grad_by_freq)
    if bag == 0:
        return rows.sum(1)
    if call.per_sample_weights is not None:
        rows = rows * call.per_sample_weights.reshape(-1, bag, 1)
    if call.padding_idx is None:
        return rows.max(1).values if call.mode == "max" else rows.sum(1) if call.mode == "sum" else rows.mean(1)
    kept = (ids != call.padding_idx % call.weight.shape[0]).unsqueeze(2)
    if call.mode == "max":
        return torch.where(kept.any(1), rows.masked_fill(~kept, -torch.inf).max(1).values, 0.0)
    total = torch.where(kept, rows, 0.0).sum(1)
    return total if call.mode == "sum" else total / kept.sum(1).clamp(min=1)


def irregular(why: str) -> str:
    """The refusal of a flat list of bags."""
    return refusal(
        "embedding_bag on a flat list of indices",
        "",
        f"{why}, so it is not known which entries belong to which example",
        "pass the 2-D input [B, bag] (with padding_idx where bags differ in size), or write "
        "offsets=torch.arange(0, ids.numel(), bag)",
    )
