"""Losses, modules, custom functions, hooks and Python code that mix examples, or that are right for some batch sizes only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from mixing_case import ALONG, MEAN, OVER, PAIRS, SUM, Mixing, flat, module, with_loss
from own_backward import changed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from zoo_case import floats, inputs, integers, seeded, squares
from zoo_layers import Using, parameter

TRAINING = r"batch normalisation in training mode"
BUFFER = r"buffer .* is updated from the batch"
SIZE = r"batch size"


def plain(model: nn.Module, x: Tensor) -> Tensor:
    """One loss per example."""
    return squares(model, x)


# Losses of the right shape whose values depend on several examples.


def contrastive(model: nn.Module, x: Tensor) -> Tensor:
    """CLIP and SimCLR: each example against all others."""
    h = F.normalize(model(x), dim=1)
    return F.cross_entropy(h @ h.t(), torch.arange(x.shape[0]), reduction="none")


def two_towers(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Every example of one input against every example of the other."""
    return (model(x) @ model(y).t()).log_softmax(1).diagonal()


def batch_hard(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The hardest positive and negative of the batch (Hermans et al. 2017)."""
    h = model(x)
    distance = (h[:, None] - h[None]).square().sum(2)
    same = y[:, None] == y[None]
    return (distance * same).amax(1) - distance.masked_fill(same, 1e9).amin(1)


def triplet(model: nn.Module, x: Tensor) -> Tensor:
    """Neighbours in the batch as positive and negative."""
    h = model(x)
    return F.triplet_margin_loss(h, h.roll(1, 0), h.roll(2, 0), reduction="none")


def mixup(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Each example mixed with its mirror image in the batch."""
    out = model(0.7 * x + 0.3 * x.flip(0))
    return 0.7 * F.cross_entropy(out, y, reduction="none") + 0.3 * F.cross_entropy(out, y.flip(0), reduction="none")


def focal_by_batch(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Losses weighted by their share of the batch's loss."""
    losses = F.cross_entropy(model(x), y, reduction="none")
    return losses * losses.softmax(0).detach()


def hard_examples(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Only the harder half of the batch counts."""
    losses = F.cross_entropy(model(x), y, reduction="none")
    return losses * (losses >= losses.median())


def balanced(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Classes weighted by how often they occur in the batch."""
    counts = F.one_hot(y, 5).sum(0).to(x.dtype)
    return F.cross_entropy(model(x), y, weight=1 / (1 + counts), reduction="none")


def barlow(model: nn.Module, x: Tensor) -> Tensor:
    """Decorrelation of features over the batch (Barlow twins)."""
    h = model(x)
    return squares(model, x) + (h.t() @ h).square().sum()


def vicreg(model: nn.Module, x: Tensor) -> Tensor:
    """Variance of every feature over the batch (VICReg)."""
    return squares(model, x) + F.relu(1 - model(x).std(0)).mean()


def load_balance(model: nn.Module, x: Tensor) -> Tensor:
    """The balance loss of a mixture of experts, added to every example's loss."""
    gates = model(x).softmax(1)
    return squares(model, x) + (gates.mean(0) * gates.mean(0)).sum()


def reduced_mean(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The mean of the batch, once per example."""
    return F.cross_entropy(model(x), y).expand(x.shape[0])


def reduced_sum(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The sum of the batch, once per example."""
    return F.cross_entropy(model(x), y, reduction="sum").repeat(x.shape[0])


def half_reduced(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """A term that mse_loss has averaged over the batch."""
    return F.cross_entropy(model(x), y, reduction="none") + F.mse_loss(model(x), torch.zeros_like(model(x)))


def shuffled_losses(model: nn.Module, x: Tensor) -> Tensor:
    """The right losses in another order."""
    return squares(model, x).flip(0)


def sorted_losses(model: nn.Module, x: Tensor) -> Tensor:
    """The right losses by size."""
    return squares(model, x).sort().values


def centred_losses(model: nn.Module, x: Tensor) -> Tensor:
    """Losses minus their mean."""
    return squares(model, x) - squares(model, x).mean()


def divided_losses(model: nn.Module, x: Tensor) -> Tensor:
    """What a mean over the batch would give each example."""
    return squares(model, x) / x.shape[0]


def centre_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Distance to the mean of the class in the batch."""
    h, member = model(x), F.one_hot(y, 3).to(x.dtype)
    return (h - member @ (member.t() @ h)).square().sum(1)


def maximum_mean_discrepancy(model: nn.Module, x: Tensor) -> Tensor:
    """A kernel between all pairs."""
    h = model(x)
    return torch.exp(-torch.cdist(h, h)).sum(1)


def gradient_penalty(model: nn.Module, x: Tensor) -> Tensor:
    """The norm of an input gradient over the whole batch."""
    inputs = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)
    return squares(model, x) + (slope.norm() - 1) ** 2


def ranking(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Each score against that of the next example."""
    score = model(x)[:, 0]
    return F.margin_ranking_loss(score, score.roll(1), (y - y.roll(1)).sign().to(x.dtype), reduction="none")


LOSSES = (
    with_loss("contrastive", PAIRS + "|position", contrastive), with_loss("two towers", PAIRS, two_towers, floats(3)),
    with_loss("batch hard", PAIRS, batch_hard, integers(3)), with_loss("triplet of neighbours", r"carries values", triplet),
    with_loss("mixup by reversal", r"order of the examples is reversed", mixup, integers(5)),
    with_loss("weighted by share of the batch's loss", ALONG, focal_by_batch, integers(5)),
    with_loss("hard examples only", OVER, hard_examples, integers(5)),
    with_loss("classes balanced over the batch", SUM + "|class weights", balanced, integers(5)),
    with_loss("Barlow twins", SUM, barlow), with_loss("VICReg", OVER, vicreg), with_loss("load balance", MEAN, load_balance),
    with_loss("mean of the batch for everyone", r"mean runs over the elements of all examples|mean", reduced_mean, integers(5)),
    with_loss("sum of the batch for everyone", r"sum|expanded|repeated|rearranged", reduced_sum, integers(5)),
    with_loss("one term averaged over the batch", r"reduced over the whole batch|" + MEAN, half_reduced, integers(5)),
    with_loss("losses reversed", r"order of the examples is reversed", shuffled_losses),
    with_loss("losses sorted", ALONG, sorted_losses), with_loss("losses centred", MEAN + "|" + OVER, centred_losses),
    with_loss("losses divided by the batch size", r"batch size is used as a value", divided_losses),
    with_loss("centre loss", SUM, centre_loss, integers(3)),
    with_loss("maximum mean discrepancy", PAIRS + "|" + SIZE, maximum_mean_discrepancy),
    with_loss("gradient penalty over the batch", OVER, gradient_penalty),
    with_loss("ranking of neighbours", r"carries values", ranking, integers(5)),
)  # fmt: skip


# Modules.


def normalised(norm: nn.Module, *shape: int) -> Callable[[], nn.Module]:
    """A linear layer and a normalisation called `norm`."""
    return lambda: Using(lambda m, x: m.b(m.norm(m.a(x))), a=nn.Linear(3, 5), norm=norm, b=nn.Linear(5, 2))


class MovingCentre(nn.Module):
    """A moving average of the batch in a buffer, that is subtracted before it is updated."""

    centre: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)
        self.register_buffer("centre", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        """f[B, 3] to f[B, 5]."""
        h = self.layer(x) - self.centre
        self.centre.lerp_(h.detach().mean(0), 0.1)
        return h


class AssignedCentre(MovingCentre):
    """The same with a new tensor under the buffer's name."""

    def forward(self, x: Tensor) -> Tensor:
        """f[B, 3] to f[B, 5]."""
        h = self.layer(x) - self.centre
        self.centre = 0.9 * self.centre + 0.1 * h.detach().mean(0)
        return h


class LastBatch(MovingCentre):
    """The first example of the batch is kept in a buffer for the next step."""

    def forward(self, x: Tensor) -> Tensor:
        """f[B, 3] to f[B, 5]."""
        h = self.layer(x) - self.centre
        self.centre.copy_(h[0].detach())
        return h


class DataCentre(MovingCentre):
    """The same by .data, which autograd does not see."""

    def forward(self, x: Tensor) -> Tensor:
        """f[B, 3] to f[B, 5]."""
        h = self.layer(x)
        self.centre.data = self.centre.data + h.detach().sum(0)
        return h - self.centre


class Attribute(nn.Module):
    """A tensor of the batch kept in an attribute until the next step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.before = nn.Linear(3, 5), torch.zeros(5)

    def forward(self, x: Tensor) -> Tensor:
        """f[B, 3] to f[B, 5]."""
        h = self.layer(x) - self.before
        self.before = h.detach().mean(0)
        return h


class Memory(nn.Module):
    """A list of outputs of former batches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.bank = nn.Linear(3, 5), list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        """f[B, 3] to f[B, 5]."""
        h = self.layer(x)
        self.bank.append(h.detach().sum(0))
        return h - self.bank[-1]


class Remembered(Memory):
    """The same list, of which only former batches are read."""

    def forward(self, x: Tensor) -> Tensor:
        """f[B, 3] to f[B, 5]."""
        h = self.layer(x)
        old = sum(self.bank, torch.zeros(5))
        self.bank.append(h.detach().sum(0))
        return h - old


class Adapted(nn.Module):
    """A weight that the batch moves in forward."""

    def __init__(self, trained: bool) -> None:
        super().__init__()
        self.layer, self.shift = nn.Linear(3, 5), nn.Parameter(torch.zeros(5), requires_grad=trained)

    def forward(self, x: Tensor) -> Tensor:
        """f[B, 3] to f[B, 5]."""
        h = self.layer(x)
        with torch.no_grad():
            self.shift.add_(h.mean(0))
        return h + self.shift


class WrongLayout(nn.Module):
    """A recurrent or attention layer that is told the wrong place of the batch."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """f[B, T, 4] to f[B, T, 4]."""
        found = self.layer(x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)
        return found[0] if isinstance(found, tuple) else found


SEQUENCE = floats(7, 4)
LAYOUT = PAIRS + r"|do not lie along its batch dimension|different axes|" + SUM
MODULES = (
    module("BatchNorm1d", TRAINING, normalised(nn.BatchNorm1d(5)), floats(3)),
    module("BatchNorm1d without affine", TRAINING, normalised(nn.BatchNorm1d(5, affine=False)), floats(3)),
    module("BatchNorm1d without statistics", TRAINING, normalised(nn.BatchNorm1d(5, track_running_stats=False)), floats(3)),
    module("BatchNorm1d frozen in training mode", TRAINING, normalised(nn.BatchNorm1d(5).requires_grad_(False)), floats(3)),
    module("BatchNorm1d with cumulative average", TRAINING + "|could not trace", normalised(nn.BatchNorm1d(5, momentum=None)), floats(3)),
    module("BatchNorm without statistics in eval mode", TRAINING, lambda: normalised(nn.BatchNorm1d(5, track_running_stats=False))().eval(), floats(3)),
    module("BatchNorm2d", TRAINING, lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), floats(2, 5, 5)),
    module("BatchNorm3d", TRAINING, lambda: nn.Sequential(nn.Conv3d(2, 3, 1), nn.BatchNorm3d(3)), floats(2, 3, 2, 2)),
    module("LazyBatchNorm", TRAINING, lambda: materialised(nn.Sequential(nn.Linear(3, 5), nn.LazyBatchNorm1d())), floats(3)),
    module("SyncBatchNorm", r"SyncBatchNorm|batch norm", normalised(nn.SyncBatchNorm(5)), floats(3)),
    module("BatchNorm on sequences", TRAINING, lambda: Using(lambda m, x: m.norm(m.a(x).transpose(1, 2)), a=nn.Linear(4, 5), norm=nn.BatchNorm1d(5)), SEQUENCE),
    module("InstanceNorm with running statistics", BUFFER + "|" + MEAN, lambda: nn.Sequential(nn.Conv1d(4, 5, 1), nn.InstanceNorm1d(5, track_running_stats=True)), floats(4, 7)),
    module("LSTM with the wrong layout", LAYOUT, lambda: WrongLayout(nn.LSTM(4, 4)), SEQUENCE),
    module("GRU with the wrong layout", LAYOUT, lambda: WrongLayout(nn.GRU(4, 4)), SEQUENCE),
    module("attention with the wrong layout", LAYOUT, lambda: WrongLayout(nn.MultiheadAttention(4, 2)), SEQUENCE),
    module("encoder with the wrong layout", LAYOUT, lambda: WrongLayout(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0)), SEQUENCE),
    module("LSTM on the batch as a sequence", LAYOUT + "|batch", lambda: WrongLayout(nn.LSTM(4, 4)), floats(4)),
    module("attention over the batch as a sequence", LAYOUT, lambda: WrongLayout(nn.MultiheadAttention(4, 2)), floats(4)),
    module("embedding scaled by frequency", r"scale_grad_by_freq", lambda: nn.Sequential(nn.Embedding(7, 5, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(15, 2)), integers(7, 3)),
    module("embedding renormalised by what occurs", r"max_norm|renorm|written to|could not trace", lambda: nn.Embedding(7, 5, max_norm=0.1), integers(7, 3)),
    module("moving average in a buffer", BUFFER + "|" + MEAN, MovingCentre, floats(3), call=MovingCentre.forward),
    module("moving average in a buffer that is assigned", BUFFER + "|" + MEAN, AssignedCentre, floats(3), call=AssignedCentre.forward),
    module("an example kept in a buffer", BUFFER + "|by their place", LastBatch, floats(3), call=LastBatch.forward),
    module("moving average by .data", r"assigns to \.data", DataCentre, floats(3)),
    module("mean kept in an attribute", r"keeps before for its next call", Attribute, floats(3)),
    module("memory bank", SUM + "|attribute bank", Memory, floats(3)),
    module("memory bank of former batches", r"attribute bank", Remembered, floats(3)),
    module("a trained weight moved by the batch", MEAN + "|written to in forward", lambda: Adapted(True), floats(3)),
    module("a frozen weight moved by the batch", r"a parameter without requires_grad", lambda: Adapted(False), floats(3)),
    module("rows of a parameter by position", r"position in the batch looks up", lambda: Using(lambda m, x: m.a(x) + m.rows[torch.arange(x.shape[0])], a=nn.Linear(3, 5), rows=parameter(97, 5)), floats(3)),
    module("as many rows of a parameter as examples", r"batch|appended|" + SIZE, lambda: Using(lambda m, x: m.a(x) + m.rows[: x.shape[0]], a=nn.Linear(3, 5), rows=parameter(97, 5)), floats(3)),
    module("mixture in a checkpoint", MEAN, lambda: Using(lambda m, x: checkpoint(lambda h: h - h.mean(0), m.a(x), use_reentrant=False), a=nn.Linear(3, 5)), floats(3)),
    module("weight scaled by the batch", MEAN + "|" + SUM + "|" + OVER, lambda: Using(lambda m, x: F.linear(x, m.a.weight * x.abs().mean()), a=nn.Linear(3, 5)), floats(3)),
)  # fmt: skip


def materialised(model: nn.Module) -> nn.Module:
    """A lazy module after its first call."""
    model(torch.randn(4, 3))
    return model


# Custom functions and hooks that mix examples in backward only.


class OwnLinear(torch.autograd.Function):
    """A product with a weight whose gradient `change` changes after the sum over the batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """f[B, 5]."""
        ctx.save_for_backward(x, weight)
        ctx.change = change
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of x, and the changed one of the weight."""
        x, weight = ctx.saved_tensors
        return gradients[0] @ weight, ctx.change(gradients[0].t() @ x, x), None


def own_product(x: Tensor, weight: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """OwnLinear as a function."""
    return OwnLinear.apply(x, weight, change)  # type: ignore[no-untyped-call]


def hooked(h: Tensor, hook: Callable[[Tensor], Tensor]) -> Tensor:
    """A tensor whose gradient goes through a hook."""
    h.register_hook(hook)
    return h * 1.0


def with_backward_hook(change: Callable[[Tensor], Tensor]) -> nn.Module:
    """A layer with a module hook on its input's gradient."""
    last = nn.Linear(5, 2)
    last.register_full_backward_hook(lambda module, grad_input, grad_output: (change(grad_input[0]),))  # type: ignore[index]
    return Using(lambda m, x: m.b(m.a(x).tanh()), a=nn.Linear(3, 5), b=last)


def with_forward_hook() -> nn.Module:
    """A layer with a hook that centres its output."""
    layer = nn.Linear(3, 5)
    layer.register_forward_hook(lambda module, args, output: output - output.mean(0))
    return nn.Sequential(layer)


def own_linear(name: str, why: str, change: Callable[[Tensor, Tensor], Tensor]) -> Mixing:
    """A model with OwnLinear."""
    make = seeded(lambda: Using(lambda m, x: own_product(x, m.w, change), w=parameter(5, 3)))
    return Mixing(name, why, make, inputs(floats(3)))


BACKWARD = flat({
    "centred in backward": (MEAN, lambda h: changed(h, lambda g: g - g.mean(0))),
    "rolled in backward": (r"carries values", lambda h: changed(h, lambda g: g.roll(1, 0))),
    "reversed in backward": (r"order of the examples", lambda h: changed(h, lambda g: g.flip(0))),
    "scaled by the norm in backward": (OVER, lambda h: changed(h, lambda g: g / g.norm())),
    "divided by the batch size in backward": (r"batch size is used as a value", lambda h: changed(h, lambda g: g / g.shape[0])),
    "first example only in backward": (r"by their place", lambda h: changed(h, lambda g: g * 0 + g[0])),
    "sum in backward": (r"sum", lambda h: changed(h, lambda g: g.sum(0).expand_as(g))),
    "gradient hook that centres": (MEAN, lambda h: hooked(h, lambda g: g - g.mean(0))),
    "gradient hook that rolls": (r"carries values", lambda h: hooked(h, lambda g: g + g.roll(1, 0))),
    "gradient hook that clips the batch": (OVER, lambda h: hooked(h, lambda g: g / (1 + g.norm()))),
})  # fmt: skip
OWN = (
    own_linear("weight gradient clipped as a sum", SUM + "|used for more", lambda g, x: g.clamp(-1, 1)),
    own_linear("weight gradient normalised as a sum", SUM + "|used for more|linear", lambda g, x: g / g.norm()),
    own_linear("weight gradient averaged", r"batch size is used as a value", lambda g, x: g / x.shape[0]),
    own_linear("weight gradient plus a number", SUM + "|a number is added", lambda g, x: g + 1.0),
    own_linear("weight gradient times a sum", SUM + "|used for more", lambda g, x: g * x.sum(0)),
    own_linear("weight gradient squared", SUM + "|used for more", lambda g, x: g * g),
    own_linear("weight gradient that ignores the examples", r"does not depend on the examples|same for every", lambda g, x: torch.ones(5, 3)),
    module("module hook that centres", MEAN, lambda: with_backward_hook(lambda g: g - g.mean(0)), floats(3)),
    module("module hook that scales by the norm", OVER, lambda: with_backward_hook(lambda g: g / (1 + g.norm())), floats(3)),
    module("forward hook that centres", MEAN, with_forward_hook, floats(3)),
)  # fmt: skip


# Branches on the number of examples. Tracing sees one of the ways only.


def only_one(h: Tensor) -> Tensor:
    """Another way for a single example."""
    return h * 2 if h.shape[0] == 1 else h


def more_than_one(h: Tensor) -> Tensor:
    """Another way for several examples."""
    return h.tanh() if h.shape[0] > 1 else h


def exactly_two(h: Tensor) -> Tensor:
    """Another way for two examples."""
    return h.tanh() if h.shape[0] == 2 else h


def many(h: Tensor) -> Tensor:
    """Another way for a large batch."""
    return h.tanh() if h.shape[0] > 64 else h


def odd(h: Tensor) -> Tensor:
    """Another way for an odd number."""
    return h.tanh() if h.shape[0] % 2 else h


def one_number(h: Tensor) -> Tensor:
    """Another way for one far number."""
    return h.tanh() if h.shape[0] == 12345 else h


def nested(h: Tensor) -> Tensor:
    """A branch that stands behind another, on whose usual side nothing differs."""
    if h.shape[0] > 50:
        return h.tanh() if h.shape[0] % 7 == 3 else h
    return h


def twice_nested(h: Tensor) -> Tensor:
    """A branch behind two others."""
    if h.shape[0] > 50 and h.shape[0] % 7 == 3 and h.shape[0] != 59:
        return h.tanh()
    return h


def of_a_product(h: Tensor) -> Tensor:
    """A condition that is true at two sizes, neither of which stands in it."""
    return h.tanh() if (h.shape[0] - 30) * (h.shape[0] - 41) == 0 else h


def of_elements(h: Tensor) -> Tensor:
    """A condition on the number of elements."""
    return h.tanh() if h.numel() > 400 else h


def of_the_quotient(h: Tensor) -> Tensor:
    """A condition on a quotient."""
    return h.tanh() if h.shape[0] // 16 == 3 else h


def in_a_set(h: Tensor) -> Tensor:
    """A condition by membership."""
    return h.tanh() if h.shape[0] in (32, 48) else h


def behind_a_convolution(h: Tensor) -> Tensor:
    """A branch at 20 behind a convolution, whose backends have conditions of their own."""
    h = h + F.conv1d(h[:, None], torch.ones(1, 1, 3), padding=1)[:, 0]
    return h.tanh() if h.shape[0] >= 20 else h


def by_squeeze(h: Tensor) -> Tensor:
    """squeeze() drops the batch when it holds one example."""
    return h[:, None].squeeze()


def by_rank(h: Tensor) -> Tensor:
    """What squeeze() leaves decides."""
    return h * h.squeeze().dim()


def by_maximum(h: Tensor) -> Tensor:
    """Python's max compares."""
    return h * (max(h.shape[0], 30) // 30)


def by_sizes(h: Tensor) -> Tensor:
    """A number out of the batch size by torch.sym_max."""
    return h * torch.sym_max(h.shape[0], 30)


def by_table(h: Tensor) -> Tensor:
    """A list as long as the batch."""
    return h * float(len([0] * h.shape[0]))


def by_broadcasting(h: Tensor) -> Tensor:
    """A constant that fits batches of one size (or of one example) only."""
    return h + torch.arange(4.0)[:, None]


BRANCHES = flat({
    f"branch: {call.__name__.replace('_', ' ')}": (SIZE + "|shape|size of tensor", call)
    for call in (only_one, more_than_one, exactly_two, many, odd, one_number, nested, twice_nested, of_a_product, of_elements,
                 of_the_quotient, in_a_set, behind_a_convolution, by_rank, by_maximum, by_sizes, by_table, by_broadcasting)
}) + flat({"branch: by squeeze": (r"squeeze|" + SIZE, by_squeeze)})  # fmt: skip


# torch.func and random numbers.

TRANSFORMED = flat({
    "vmap over features": (r"runs over|" + MEAN, lambda h: torch.vmap(lambda v: v - v.mean(), in_dims=1, out_dims=1)(h)),
    "vmap with softmax over the batch": (ALONG, lambda h: torch.vmap(lambda v: v.softmax(0), in_dims=1, out_dims=1)(h)),
    "gradient of the batch's sum of squares": (
        SUM, lambda h: h * torch.func.grad(lambda v: (v.sum(0) ** 2).sum())(h.detach())),
    "jacobian over the batch": (
        SUM + "|" + PAIRS + "|batch|trace|" + MEAN, lambda h: h + torch.func.jvp(lambda v: v - v.mean(0), (h,), (h.tanh(),))[1]),
    "permuted dropout mask": (r"order of the examples|carries", lambda h: h * (torch.rand_like(h) > 0.5).flip(0)),
    "rolled noise": (r"carries values", lambda h: h + torch.randn_like(h).roll(1, 0)),
    "noise on the scale of the batch": (OVER, lambda h: h + torch.randn_like(h) * h.detach().std()),
    "noise with the batch's mean": (MEAN, lambda h: torch.normal(h.mean(0), torch.ones(5)) + h),
    "dropout by chance of the batch": (MEAN + "|" + OVER, lambda h: h * torch.bernoulli(h.sigmoid().mean(0))),
    "random example for all": (r"randint|position|index|batch|picked", lambda h: h + h[torch.randint(0, h.shape[0], (1,))]),
})  # fmt: skip

PROGRAMS = LOSSES + MODULES + BACKWARD + OWN + BRANCHES + TRANSFORMED
