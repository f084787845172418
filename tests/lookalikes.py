"""Functions that look like those that mix examples, and keep them apart: each must be accepted and exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lookalikes_programs import PROGRAMS
from torch import Tensor, nn
from zoo_case import Case, Draw, floats, integers, layer
from zoo_layers import Using

Rows = dict[str, Callable[..., Tensor]]


def after_linear(rows: Rows, *shape: int, more: tuple[Draw, ...] = ()) -> tuple[Case, ...]:
    """Functions of the output f[B, *shape, 5] of a linear layer, and of further inputs."""
    return tuple(row(name, call, shape, more) for name, call in rows.items())


def row(name: str, call: Callable[..., Tensor], shape: tuple[int, ...], more: tuple[Draw, ...]) -> Case:
    """One of them."""

    def make() -> nn.Module:
        return Using(lambda m, x, *rest: call(m.a(x), *rest), a=nn.Linear(3, 5))

    return layer(name, "keeps examples apart though it looks otherwise", make, floats(*shape, 3), *more)


def shifted_in_place(h: Tensor) -> Tensor:
    """Every position takes up a part of the one before it."""
    out = h.clone()
    out[:, 1:] += 0.5 * h[:, :-1]
    return out


def by_length(h: Tensor) -> Tensor:
    """A branch on a size that is not the batch's."""
    return h.tanh() if h.shape[1] > 5 else h


FLAT = after_linear({
    "roll over features": lambda h: h.roll(1, 1),
    "roll over the last axis": lambda h: h.roll((1, 2), (-1, -1)),
    "flip over features": lambda h: h.flip(1) * h,
    "fliplr": lambda h: torch.fliplr(h) * h,
    "division by the number of features": lambda h: h / h.shape[1],
    "division by the elements of an example": lambda h: h / (h.numel() // h.shape[0]),
    "plus arange over features": lambda h: h + torch.arange(h.shape[1]),
    "every second feature": lambda h: h[:, ::2],
    "all but the first feature": lambda h: h[:, 1:] * h[:, :1],
    "the first feature for all": lambda h: h * h[:, :1],
    "constant permutation of features": lambda h: h[:, torch.tensor([4, 2, 0, 1, 3])] * h,
    "the whole batch as a slice": lambda h: h[:] * h[0:] * h[: h.shape[0]],
    "ellipsis": lambda h: h[..., 1:],
    "arange over the batch as an index": lambda h: h[torch.arange(h.shape[0])].tanh(),
    "diagonal part by two indices": lambda h: h[torch.arange(h.shape[0]), 2][:, None] * h,
    "softmax over features": lambda h: h.softmax(1),
    "softmax over the last axis": lambda h: h.softmax(-1) + h.log_softmax(-1),
    "cumsum over features": lambda h: h.cumsum(1),
    "sort over features": lambda h: h.sort(1).values,
    "topk of features": lambda h: h.topk(2, 1).values,
    "ranks of features": lambda h: h * h.argsort(1).argsort(1),
    "minus the mean of features": lambda h: h - h.mean(1, keepdim=True),
    "standardised features": lambda h: (h - h.mean(1, keepdim=True)) / (1 + h.var(1, keepdim=True)).sqrt(),
    "F.normalize": lambda h: h * F.normalize(h, dim=1),
    "norm of an example": lambda h: h / (1 + h.norm(dim=1, keepdim=True)),
    "maximum of an example": lambda h: h - h.amax(1, keepdim=True),
    "median of an example": lambda h: h - h.median(1, keepdim=True).values,
    "logsumexp of an example": lambda h: h - h.logsumexp(1, keepdim=True),
    "product of an example": lambda h: h * h.tanh().prod(1, keepdim=True),
    "outer product of an example": lambda h: torch.einsum("bi,bj->bij", h, h),
    "second moment of an example": lambda h: (h[:, :, None] @ h[:, None, :]).tanh(),
    "outer sum of features": lambda h: h[:, :, None] + h[:, None, :],
    "differences of all pairs of features": lambda h: (h[:, :, None] - h[:, None, :]).square(),
    "dot of an example with itself": lambda h: h * (h * h).sum(1, keepdim=True),
    "transposed and back": lambda h: h.t().tanh().t(),
    "operations on the transposed": lambda h: (h.t().softmax(0) * h.t()).t(),
    "mean over the features of the transposed": lambda h: (h.t() - h.t().mean(0)).t(),
    "reshape and back": lambda h: h.reshape(-1).tanh().reshape(-1, 5),
    "flatten and back": lambda h: h.flatten().exp().view(h.shape),
    "one more axis in front": lambda h: h[None].tanh()[0],
    "squeeze of a named axis": lambda h: h[:, None].squeeze(1),
    "expanded features": lambda h: h[:, :, None].expand(-1, -1, 3) * torch.arange(3.0),
    "repeated features": lambda h: h.repeat(1, 3),
    "repeat_interleave of features": lambda h: h.repeat_interleave(3, 1),
    "tile": lambda h: torch.tile(h, (1, 2)),
    "cat of features": lambda h: torch.cat([h, h.tanh()], 1),
    "two batches one after the other, by slices": lambda h: torch.cat([h, h.tanh()])[: h.shape[0]] * torch.cat([h, h.exp()])[h.shape[0] :],
    "two batches one after the other, by split": lambda h: torch.cat([h, h.tanh()]).softmax(1).split(h.shape[0])[1] * h,
    "two batches one after the other, by chunk": lambda h: torch.cat([h, h.tanh()]).softmax(1).chunk(2)[1] * h,
    "cat along the batch and unfolded": lambda h: torch.cat([h, h.tanh()]).view(2, -1, 5).sum(0),
    "stack and mean over the new axis": lambda h: torch.stack([h, h.tanh()]).mean(0),
    "stack of features": lambda h: torch.stack([h, h.tanh()], 1).softmax(1),
    "chunks of features": lambda h: torch.cat(h.chunk(2, 1)[::-1], 1),
    "unbind of features": lambda h: torch.stack(h.unbind(1)[::-1], 1),
    "glu over features": lambda h: F.glu(h[:, :4], 1),
    "convolution over features": lambda h: F.conv1d(h[:, None], torch.ones(2, 1, 3, dtype=h.dtype)),
    "pooling over features": lambda h: F.avg_pool1d(h[:, None], 2),
    "interpolation of features": lambda h: F.interpolate(h[:, None], size=7, mode="linear"),
    "windows over features": lambda h: h[:, :3] * h.detach().unfold(1, 3, 1).amax(2),
    "padding of features": lambda h: F.pad(h, (1, 0))[:, :-1],
    "circular padding of features": lambda h: F.pad(h[:, None], (1, 1), mode="circular"),
    "difference of features": lambda h: torch.diff(h, dim=1),
    "index_fill of features": lambda h: h * torch.ones(5).index_fill(0, torch.tensor([0]), 0.0),
    "features written over": lambda h: torch.cat([torch.zeros_like(h[:, :1]), h[:, 1:]], 1),
    "in place over features": lambda h: shifted_in_place(h),
    "where by position in the example": lambda h: torch.where(torch.arange(5) % 2 == 0, h, -h),
    "masked by an example's own mean": lambda h: h * (h > h.mean(1, keepdim=True)),
    "clipped example by example": lambda h: h + h / h.norm(dim=1, keepdim=True).clamp(min=1.0),
    "number of positive features": lambda h: h / (1 + (h > 0).sum(1, keepdim=True)),
    "ones of the batch's size": lambda h: h * torch.ones(h.shape[0], 1),
    "zeros of the batch's size": lambda h: h + h.new_zeros(h.shape[0], 5),
    "mean of ones of the batch's size": lambda h: h * torch.ones(h.shape[0]).mean(),
    "full of the batch's size": lambda h: h * torch.full((h.shape[0], 1), 0.5),
    "ones_like": lambda h: h * torch.ones_like(h[:, :1]) * 2,
    "expanded constant": lambda h: h * torch.arange(5.0).expand(h.shape[0], -1),
    "identity matrix of the features": lambda h: torch.cat([h @ torch.eye(5, dtype=h.dtype), h], 1),
    "triangle over the features": lambda h: h @ torch.tril(torch.ones(5, 5, dtype=h.dtype)),
    "layer_norm": lambda h: F.layer_norm(h, (5,)),
    "instance_norm with the batch as channels": lambda h: F.instance_norm(h[None])[0],
    "batch_norm with the batch as channels": lambda h: F.batch_norm(h.t(), None, None, training=True).t(),
    "batch_norm with fixed statistics": lambda h: F.batch_norm(h, h.new_zeros(5), h.new_ones(5), training=False),
    "renorm of examples": lambda h: h * h.renorm(2, 0, 1.0),
    "gram matrix of features": lambda h: torch.bmm(h[:, :, None], h[:, None, :]).flatten(1),
    "shared noise": lambda h: h * torch.arange(1.0, 6.0).roll(1, 0),
    "roll of a constant": lambda h: h + torch.arange(5.0).roll(2),
    "sum over a shared axis": lambda h: h * torch.ones(3, 5).sum(0),
    "gradient with respect to the example": lambda h: h * torch.func.grad(lambda v: (v.sum(1) ** 2).sum())(h.detach()),
    "vmap over examples' features": lambda h: torch.vmap(lambda v: v * 2.0, in_dims=1, out_dims=1)(h),
    "as many zeros as examples in front": lambda h: torch.cat([torch.zeros(h.shape[0], 1), h], 1),
})  # fmt: skip

SEQUENCES = after_linear({
    "roll over positions": lambda h: h.roll(1, 1),
    "flip over positions": lambda h: h.flip(1),
    "sequence first": lambda h: h.transpose(0, 1).softmax(0).transpose(0, 1),
    "sequence first, shifted": lambda h: h.transpose(0, 1).roll(1, 0).transpose(0, 1),
    "sequence first, first token": lambda h: h.transpose(0, 1)[0],
    "sequence first, all but the first": lambda h: h.transpose(0, 1)[1:].transpose(0, 1),
    "sequence first, mean over positions": lambda h: h.transpose(0, 1).mean(0),
    "folded into [B * T]": lambda h: h.flatten(0, 1).softmax(1).unflatten(0, (-1, 7)),
    "folded by view": lambda h: h.view(-1, 5).tanh().view(h.shape[0], h.shape[1], 5),
    "folded sequence first": lambda h: h.transpose(0, 1).flatten(0, 1).tanh().view(7, -1, 5).transpose(0, 1),
    "folded into [B, T * d]": lambda h: h.reshape(h.shape[0], -1).cumsum(1),
    "positions and features exchanged": lambda h: h.transpose(1, 2).reshape(-1, 5, 7).cumsum(2),
    "heads": lambda h: h[..., :4].view(h.shape[0], 7, 2, 2).transpose(1, 2).softmax(2).transpose(1, 2).reshape(-1, 7, 4),
    "arange over positions": lambda h: h + torch.arange(h.shape[1])[:, None],
    "division by the length": lambda h: h / h.shape[1],
    "causal attention": lambda h: F.scaled_dot_product_attention(h[:, None], h[:, None], h[:, None], is_causal=True),
    "attention by hand": lambda h: (h @ h.transpose(1, 2)).softmax(-1) @ h,
    "gram matrix of positions": lambda h: torch.einsum("btd,bsd->bts", h, h),
    "pairs of positions": lambda h: (h[:, :, None] - h[:, None]).square().sum(3),
    "cdist of positions": lambda h: (h[:, :, None] - h[:, None]).abs().amax(3),
    "last position by arange": lambda h: h[torch.arange(h.shape[0]), -1],
    "a position by two indices": lambda h: h[torch.arange(h.shape[0])[:, None], torch.tensor([[0, 3]])],
    "sort over positions": lambda h: h.sort(1).values,
    "cumsum over positions": lambda h: h.cumsum(1),
    "topk of positions": lambda h: h.topk(2, 1).values,
    "every second position": lambda h: h[:, ::2],
    "windows over positions": lambda h: h[:, :3] * h.detach().unfold(1, 3, 2).mean(3),
    "padding of positions": lambda h: F.pad(h, (0, 0, 1, 0))[:, :-1],
    "convolution over positions": lambda h: F.conv1d(h.transpose(1, 2), torch.ones(2, 5, 3, dtype=h.dtype), padding=1),
    "diagonal of an example's matrix": lambda h: h * (h @ h.transpose(1, 2)).detach().diagonal(dim1=1, dim2=2)[..., None],
    "triangle of an example's matrix": lambda h: (h @ h.transpose(1, 2)).tril(),
    "own capacity of experts": lambda h: h * ((h.argmax(2) == 0).cumsum(1) <= 2)[:, :, None],
    "own load of experts": lambda h: h * h.softmax(2).mean(1, keepdim=True),
    "branch on the length": by_length,
    "einsum over positions": lambda h: torch.einsum("btd,bt->bd", h, h[..., 0]),
    "group of positions": lambda h: h[:, :6].reshape(-1, 2, 3, 5).amax(2),
    "mean of the example": lambda h: h - h.mean((1, 2), keepdim=True),
    "instance norm over positions": lambda h: F.instance_norm(h.transpose(1, 2)),
    "group norm over positions": lambda h: F.group_norm(h.transpose(1, 2), 1),
    "layer norm of the whole example": lambda h: F.layer_norm(h, (7, 5)),
}, 7)  # fmt: skip

WITH_INTEGERS = after_linear({
    "gather along features": lambda h, y: h.gather(1, y),
    "scatter along features": lambda h, y: h.scatter(1, y[:, :1], 0.0),
    "scatter_add along features": lambda h, y: torch.zeros_like(h).scatter_add(1, y, h[:, :2]),
    "features by arange and index": lambda h, y: h[torch.arange(h.shape[0]), y[:, 0]][:, None] * h,
    "features by column index": lambda h, y: h[torch.arange(h.shape[0])[:, None], y],
    "one-hot of an example's class": lambda h, y: h * F.one_hot(y, 5).sum(1),
    "rows of a constant table": lambda h, y: h * torch.arange(25.0).view(5, 5)[y[:, 0]],
    "embedding in a constant table": lambda h, y: h + F.embedding(y, torch.arange(25.0).view(5, 5)).sum(1),
    "equal to the example's class": lambda h, y: h * (torch.arange(5) == y[:, :1]),
    "where by the example's class": lambda h, y: torch.where(y[:, :1] > 2, h, -h),
    "masked by the example's length": lambda h, y: h.masked_fill(torch.arange(5) > y[:, :1], 0.0),
    "divided by the example's class": lambda h, y: h / (1 + y[:, :1]),
    "bucketed by constants": lambda h, y: h * torch.searchsorted(torch.arange(4), y[:, :1]),
}, more=(integers(5, 2),))  # fmt: skip


def with_loss(name: str, loss: Any, *draws: Draw) -> Case:
    """A loss on a linear layer f[B, 3] -> f[B, 5]."""
    return layer(name, "a loss of each example's own", lambda: nn.Linear(3, 5), floats(3), *draws, loss=loss)


def own_weight(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Losses weighted by themselves."""
    losses = F.cross_entropy(model(x), y, reduction="none")
    return losses * losses.detach()


def focal(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Focal loss (Lin et al. 2017)."""
    losses = F.cross_entropy(model(x), y, reduction="none")
    return losses * (1 - torch.exp(-losses)) ** 2


def easy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Only examples below a constant count."""
    losses = F.cross_entropy(model(x), y, reduction="none")
    return losses * (losses < 1.5)


LOSSES = (
    with_loss("loss divided by the number of features", lambda m, x: m(x).square().sum(1) / x.shape[1]),
    with_loss("weighted by an example's own loss", own_weight, integers(5)),
    with_loss("focal loss", focal, integers(5)),
    with_loss("easy examples only", easy, integers(5)),
    with_loss("contrast of two views of one example", lambda m, x, z: (m(x) * m(z)).sum(1).exp() / (1 + m(x).norm(dim=1)), floats(3)),
    with_loss("triplet of one example", lambda m, x, p, n: F.triplet_margin_loss(m(x), m(p), m(n), reduction="none"), floats(3), floats(3)),
    with_loss("mixup within one example", lambda m, x, z: m(0.7 * x + 0.3 * z).square().sum(1), floats(3)),
    with_loss("constant class weights", lambda m, x, y: F.cross_entropy(m(x), y, weight=torch.arange(1.0, 6.0, dtype=x.dtype), reduction="none"), integers(5)),
    with_loss("weight decay in every example's loss", lambda m, x: m(x).square().sum(1) + 0.1 * m.weight.square().sum()),
    with_loss("loss by diagonal of an einsum", lambda m, x, z: torch.einsum("bi,bi->b", m(x), m(z)), floats(3)),
    with_loss("losses seen twice", lambda m, x: m(x).square().sum(1) + m(x).abs().sum(1)),
    with_loss("candidates of one example", lambda m, x, c: F.cross_entropy(
        torch.einsum("bd,bkd->bk", m(x), m(c)), torch.zeros(x.shape[0], dtype=torch.long), reduction="none"), floats(4, 3)),
    with_loss("loss of pairs within one example", lambda m, x: (m(x)[:, :, None] - m(x)[:, None]).square().sum((1, 2))),
)  # fmt: skip

LOOKALIKES = FLAT + SEQUENCES + WITH_INTEGERS + LOSSES + PROGRAMS
