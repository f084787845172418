"""Rows of operations that the other tables and the random models do not reach; draws are multiplied by zero, so that the loop draws
what it likes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributions as D
import torch.nn.functional as F
from operations import Row, row
from torch import Tensor
from zoo_case import floats, integers


def noiseless(x: Tensor, draw: Tensor) -> Tensor:
    """x beside a draw that counts nothing, its gradient neither."""
    return x + 0 * draw.reshape(x.shape).to(x.dtype)


def strided(x: Tensor) -> Tensor:
    """A write to memory of given strides."""
    y = torch.empty_strided((x.shape[0], 3), (3, 1), dtype=x.dtype)
    return y.copy_(x)


def where_any(x: Tensor, found: Any) -> Tensor:
    """x where an example fulfils a condition."""
    return torch.where(found.reshape(-1, 1, 1), x, 0.5 * x)


SELDOM: tuple[Row, ...] = (
    row("dirichlet", lambda x: noiseless(x, D.Dirichlet(x.exp(), validate_args=False).rsample()), floats(3), refused="could not trace"),
    row("gamma", lambda x: noiseless(x, D.Gamma(x.exp(), 1 + x.square(), validate_args=False).rsample()), floats(3), refused="could not trace"),
    row("normal of numbers", lambda x: noiseless(x, torch.normal(0.0, 1.0, x.shape)), floats(3)),
    row("randint", lambda x: noiseless(x, torch.randint(7, x.shape)), floats(3)),
    row("random_", lambda x: noiseless(x, torch.empty_like(x).random_()), floats(3)),
    row("random_ up to", lambda x: noiseless(x, torch.empty_like(x).random_(9)), floats(3)),
    row("cdist by products", lambda x: torch.cdist(x, x + 1, compute_mode="use_mm_for_euclid_dist"), floats(4, 3)),
    row("eigenvalues of constants", lambda x: x * torch.linalg.eigvals(x.detach()).abs().unsqueeze(-1), floats(3, 3)),
    row("antialias bilinear", lambda x: F.interpolate(x, size=(3, 3), mode="bilinear", antialias=True), floats(2, 5, 5)),
    row("weight_norm of values", lambda x: torch._weight_norm(x, x.detach().abs().amax((1, 2), keepdim=True) + 1, 0), floats(2, 3), refused="weight normalisation"),
    row("all over dims", lambda x: where_any(x, torch.all(x > -1, dim=(1, 2))), floats(2, 3)),
    row("any over dims", lambda x: where_any(x, torch.any(x > 1, dim=(1, 2))), floats(2, 3)),
    row("count_nonzero over dims", lambda x: x * torch.count_nonzero(x > 0, dim=(1, 2)).reshape(-1, 1, 1), floats(2, 3)),
    row("empty_strided", strided, floats(3)),
    row("fill with a tensor", lambda x: x + torch.fill(x, torch.tensor(0.5, dtype=x.dtype)), floats(3)),
    row("hardshrink", F.hardshrink, floats(7)),
    row("softshrink", F.softshrink, floats(7)),
    row("index_fill with a tensor", lambda x: x.index_fill(1, torch.tensor([1]), torch.tensor(0.5, dtype=x.dtype)), floats(3)),
    row("multi_margin_loss", lambda x, y: F.multi_margin_loss(x, y, reduction="none"), floats(5), integers(5)),
    row("squeeze of dims", lambda x: x.squeeze((1, 3)), floats(1, 3, 1)),
    row("unsafe_split_with_sizes", lambda x: x.unsafe_split_with_sizes([1, 2], 1)[1], floats(3)),
    row("norm of everything", lambda x: x / torch.ops.aten.norm(x, 2), floats(3), refused="norm"),
)  # fmt: skip
