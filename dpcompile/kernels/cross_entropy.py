"""Cross entropy of logits x: f[N, V] and its gradient, from two numbers per row instead of a second matrix [N, V].

    loss_i = (m_i - x_i[t_i]) + l_i,    d loss_i / d x_i = exp((x_i - m_i) - l_i) - onehot(t_i)

with m_i = max_v x_iv and l_i = log sum_v exp(x_iv - m_i). Subtracting m before l keeps the accuracy of log_softmax
where the logits are large. A class weight multiplies a row's loss and gradient; rows whose target is ignore_index
have neither. Rows are taken in blocks that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import torch
from torch import Tensor

BLOCK: Final = 2**19
"""Elements per block of rows: 2 MiB of float32, about one core's second-level cache."""


def blocks_of(x: Tensor) -> Iterator[slice]:
    """Slices of the rows of x: f[N, V]; one for an empty x."""
    step = max(1, BLOCK // max(1, x.shape[1]))
    return (slice(start, start + step) for start in range(0, max(1, x.shape[0]), step))


def row_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """(m, l), both f[N, 1], of logits f[N, V]."""
    parts = [row_statistics_traceable(x[block]) for block in blocks_of(x)]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([m for m, _ in parts]), torch.cat([log for _, log in parts])


def row_statistics_traceable(x: Tensor) -> tuple[Tensor, Tensor]:
    """row_statistics in one block; rows that hold an infinity give nan, as log_softmax does."""
    m = x.amax(1, keepdim=True)
    return m, (x - m).exp().sum(1, keepdim=True).log()


def row_weights(target: Tensor, weight: Tensor | None, ignore_index: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(targets with ignored ones at class 0, i64[N, 1]; class weights, 0 for ignored rows, f[N, 1])."""
    counts = (target != ignore_index).unsqueeze(1)
    safe = torch.where(counts, target.unsqueeze(1), 0)
    return safe, counts.to(dtype) if weight is None else torch.where(counts, weight[safe], 0.0)


def cross_entropy(x: Tensor, m: Tensor, log: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """Losses f[N]; targets i64[N]."""
    safe, scale = row_weights(target, weight, ignore_index, x.dtype)
    losses = (m - x.gather(1, safe)) + log
    counts = (target != ignore_index).unsqueeze(1)
    return torch.where(counts, losses * scale, 0.0).squeeze(1)  # an ignored row's loss is 0 even where x is infinite


def cross_entropy_backward(gradient: Tensor, x: Tensor, m: Tensor, log: Tensor, target: Tensor, weight: Tensor | None,
                           ignore_index: int) -> Tensor:  # fmt: skip
    """Gradient f[N, V] of sum_i gradient[i] * loss_i."""
    return backward_into(torch.empty_like(x), gradient, x, m, log, target, weight, ignore_index)


def cross_entropy_backward_(gradient: Tensor, x: Tensor, m: Tensor, log: Tensor, target: Tensor, weight: Tensor | None,
                            ignore_index: int) -> Tensor:  # fmt: skip
    """The same, written over the logits."""
    return backward_into(x, gradient, x, m, log, target, weight, ignore_index)


def backward_into(out: Tensor, gradient: Tensor, x: Tensor, m: Tensor, log: Tensor, target: Tensor, weight: Tensor | None,
                  ignore_index: int) -> Tensor:  # fmt: skip
    """Block by block into `out`, which may be x."""
    safe, scale = row_weights(target, weight, ignore_index, x.dtype)
    scale = scale * gradient.unsqueeze(1)
    for block in blocks_of(x):
        rows = out[block]
        torch.sub(x[block], m[block], out=rows).sub_(log[block]).exp_().mul_(scale[block])
    return out.scatter_add_(1, safe, -scale)


def cross_entropy_backward_traceable(gradient: Tensor, x: Tensor, m: Tensor, log: Tensor, target: Tensor,
                                     weight: Tensor | None, ignore_index: int) -> Tensor:  # fmt: skip
    """cross_entropy_backward as one expression."""
    safe, scale = row_weights(target, weight, ignore_index, x.dtype)
    scale = scale * gradient.unsqueeze(1)
    columns = torch.arange(x.shape[1], device=x.device)
    return scale * (((x - m) - log).exp() - (columns == safe).to(x.dtype))


TRACEABLE: Final[dict[Callable[..., object], Callable[..., object]]] = {
    row_statistics: row_statistics_traceable,
    cross_entropy_backward: cross_entropy_backward_traceable,
    cross_entropy_backward_: cross_entropy_backward_traceable,
}
