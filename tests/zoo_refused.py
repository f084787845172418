"""Models that must be refused: examples see each other, or the loss is not one value per example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo_case import floats, inputs, integers, squares
from zoo_layers import Using, parameter


@dataclass(frozen=True)
class Refused:
    """A model and loss to be refused.

    word: a regular expression that the message must match, in any case. located: whether the message has to
    name the user's line; a loss of the wrong shape has no single line to blame.
    """

    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[int, torch.dtype], tuple[Any, ...]]
    word: str
    loss: Callable[..., Tensor] | nn.Module | None = squares
    located: bool = True

    def __str__(self) -> str:
        return self.name


def mixing(name: str, word: str, combine: Callable[[Tensor], Tensor]) -> Refused:
    """A linear layer, an operation `combine` that mixes the examples of f[B, 5], and another linear layer."""

    def make() -> nn.Module:
        return Using(lambda m, x: m.b(combine(m.a(x))), a=nn.Linear(3, 5), b=nn.Linear(5, 2))

    return Refused(name, make, inputs(floats(3)), word)


def normalised(norm: nn.Module) -> Callable[[], nn.Module]:
    """A network with a normalisation layer called `norm`."""
    return lambda: Using(lambda m, x: m.b(m.norm(m.a(x))), a=nn.Linear(3, 5), norm=norm, b=nn.Linear(5, 2))


def by_batch_size(x: Tensor) -> Tensor:
    """Divide by the number of examples."""
    return x / x.shape[0]


def branch_on_one(x: Tensor) -> Tensor:
    """Something else for a single example."""
    return x * 2 if x.shape[0] == 1 else x


def branch_on_many(x: Tensor) -> Tensor:
    """Something else for more than one example."""
    return x.tanh() if x.shape[0] > 1 else x


def branch_on_many_more(x: Tensor) -> Tensor:
    """Something else for a large batch."""
    return x.tanh() if x.shape[0] > 64 else x


def constant_order(x: Tensor) -> Tensor:
    """Reorder the batch by a constant permutation."""
    return x[torch.tensor([2, 0, 1])] + x


def sorted_batch(x: Tensor) -> Tensor:
    """Sort every feature over the batch."""
    return x.sort(dim=0).values


def contrastive(model: nn.Module, x: Tensor) -> Tensor:
    """Each example against all others of the batch (CLIP, SimCLR)."""
    h = F.normalize(model(x), dim=1)
    return F.cross_entropy(h @ h.t(), torch.arange(x.shape[0]), reduction="none")


def token_mean(model: nn.Module, ids: Tensor) -> Tensor:
    """Divide by the number of tokens in the whole batch."""
    values = F.cross_entropy(model(ids[:, :-1]).transpose(1, 2), ids[:, 1:], reduction="none")
    return values.sum(1) / (ids != 0).sum()


def centred_loss(model: nn.Module, x: Tensor) -> Tensor:
    """Subtract the batch's mean loss, which looks like one loss per example."""
    losses = squares(model, x)
    return losses - losses.mean()


def language_model() -> nn.Module:
    """Embedding and linear layer."""
    return nn.Sequential(nn.Embedding(11, 5), nn.Linear(5, 11))


BATCH_MIXING = (
    Refused("batch norm", normalised(nn.BatchNorm1d(5)), inputs(floats(3)), r"norm"),
    Refused("batch norm without affine", normalised(nn.BatchNorm1d(5, affine=False)), inputs(floats(3)), r"norm"),
    Refused(
        "batch norm without statistics",
        normalised(nn.BatchNorm1d(5, track_running_stats=False)),
        inputs(floats(3)),
        r"norm",
    ),
    Refused(
        "frozen batch norm in training mode",
        normalised(nn.BatchNorm1d(5).requires_grad_(False)),
        inputs(floats(3)),
        r"norm",
    ),
    Refused(
        "batch norm 2d",
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 2)),
        inputs(floats(2, 5, 5)),
        r"norm",
    ),
    mixing("minus the batch mean", r"mean\(0\)", lambda x: x - x.mean(0)),
    mixing("roll without dims", r"roll", lambda x: x.roll(1)),
    mixing("roll over the batch", r"roll", lambda x: x.roll(1, 0)),
    mixing("flip over the batch", r"flip", lambda x: x.flip(0)),
    mixing("division by the batch size", r"shape\[0\]|div", by_batch_size),
    mixing("plus the position in the batch", r"arange", lambda x: x + torch.arange(x.shape[0])[:, None]),
    mixing("times whether first in the batch", r"arange", lambda x: x * (torch.arange(x.shape[0]) == 0)[:, None]),
    mixing("branch on one example", r"shape\[0\]|batch size", branch_on_one),
    mixing("branch on several examples", r"shape\[0\]|batch size", branch_on_many),
    mixing("branch on a large batch", r"shape\[0\]|batch size", branch_on_many_more),
    mixing("squeeze that may drop the batch", r"squeeze|batch size", lambda x: x * x.squeeze().dim()),
    mixing("softmax over the batch", r"softmax", lambda x: x.softmax(0)),
    mixing("cumulative sum over the batch", r"cumsum", lambda x: x.cumsum(0)),
    mixing("sort over the batch", r"sort", sorted_batch),
    mixing("constant permutation", r"x\[|batch size", constant_order),
    mixing("maximum over the batch", r"amax", lambda x: x - x.amax(0)),
    mixing("global norm", r"norm", lambda x: x / x.norm()),
    mixing("product of the batch with itself", r"matmul|mm|@", lambda x: x @ x.t() @ x),
    mixing("neighbour in the batch", r"cat|slice|x\[", lambda x: x + torch.cat([x[1:], x[:1]])),
    mixing("first example for all", r"select|slice|x\[0\]", lambda x: x + x[0]),
    mixing("batch folded into features", r"view|reshape", lambda x: x.reshape(5, -1).tanh().mean(1) + x),
    mixing("variance over the batch", r"var|std", lambda x: x / (1 + x.std(0, correction=0))),
    Refused("contrastive loss", lambda: nn.Linear(3, 5), inputs(floats(3)), r"h @ h|mm", contrastive),
    Refused("mean over all tokens", language_model, inputs(integers(11, 7)), r"sum", token_mean),
    Refused("losses minus their mean", lambda: nn.Linear(3, 5), inputs(floats(3)), r"mean", centred_loss),
    Refused(
        "embedding scaled by frequency",
        lambda: nn.Sequential(nn.Embedding(7, 5, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(15, 2)),
        inputs(integers(7, 3)),
        r"scale_grad_by_freq|embedding",
    ),
    Refused(
        "parameter indexed by the position in the batch",
        lambda: Using(lambda m, x: m.a(x) + m.rows[torch.arange(x.shape[0])], a=nn.Linear(3, 5), rows=parameter(97, 5)),
        inputs(floats(3)),
        r"arange|rows",
    ),
)

WRONG_LOSS = (
    Refused(
        "scalar loss",
        lambda: nn.Linear(3, 5),
        inputs(floats(3)),
        r"scalar",
        lambda m, x: m(x).square().mean(),
        located=False,
    ),
    Refused(
        "loss per element",
        lambda: nn.Linear(3, 5),
        inputs(floats(3)),
        r"shape",
        lambda m, x: m(x).square(),
        located=False,
    ),
    Refused(
        "loss of fixed length",
        lambda: nn.Linear(3, 5),
        inputs(floats(3)),
        r"shape|mix|batch",
        lambda m, x: m(x).square().sum(0),
        located=False,
    ),
    Refused(
        "loss shorter than the batch",
        lambda: nn.Linear(3, 5),
        inputs(floats(3)),
        r"shape|batch",
        lambda m, x: squares(m, x)[1:],
        located=False,
    ),
    Refused(
        "loss without gradient",
        lambda: nn.Linear(3, 5),
        inputs(floats(3)),
        r"gradient|trainable|detach",
        lambda m, x: squares(m, x).detach(),
        located=False,
    ),
    Refused(
        "model that returns its outputs",
        lambda: nn.Linear(3, 5),
        inputs(floats(3)),
        r"shape|loss",
        None,
        located=False,
    ),
    Refused(
        "criterion on the wrong shape",
        lambda: nn.Linear(3, 5),
        inputs(floats(3), floats(4)),
        r"shape|size|trace",
        nn.MSELoss(),
        located=False,
    ),
)

REFUSED = BATCH_MIXING + WRONG_LOSS
