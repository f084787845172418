"""Modules, custom functions and hooks that look like those that mix examples, and keep them apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from own_backward import changed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from zoo_case import Case, Draw, floats, integers, layer, sequence_first, squares_of_sequences
from zoo_layers import Using, parameter


class OwnLinear(torch.autograd.Function):
    """A product with a weight, written with its own backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """f[B, 5]."""
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The ordinary gradients, that of the weight halved."""
        x, weight = ctx.saved_tensors
        return gradients[0] @ weight, 0.5 * gradients[0].t() @ x


def own_product(x: Tensor, weight: Tensor) -> Tensor:
    """OwnLinear as a function."""
    return OwnLinear.apply(x, weight)  # type: ignore[no-untyped-call]


class Counting(nn.Module):
    """A buffer that counts steps: its value depends on no example."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """f[B, 3] to f[B, 5]."""
        self.count.add_(1.0)
        return self.layer(x) * self.count


class Caching(nn.Module):
    """Position codes that are kept in an attribute once they are made."""

    codes: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.codes = nn.Linear(3, 5), None

    def forward(self, x: Tensor) -> Tensor:
        """f[B, T, 3] to f[B, T, 5]."""
        codes = self.codes
        if codes is None:
            codes = self.codes = torch.arange(x.shape[1], dtype=x.dtype)[:, None].sin()
        return self.layer(x) + codes


def hooked(h: Tensor, hook: Callable[[Tensor], Tensor]) -> Tensor:
    """A tensor whose gradient goes through a hook."""
    h.register_hook(hook)
    return h * 1.0


def with_hooks() -> nn.Module:
    """Module hooks that treat every example alike."""
    first, last = nn.Linear(3, 5), nn.Linear(5, 2)
    last.register_full_backward_hook(lambda module, grad_input, grad_output: (grad_input[0].clamp(-1, 1),))  # type: ignore[index]
    first.register_forward_hook(lambda module, args, output: output - output.mean(1, keepdim=True))
    return Using(lambda m, x: m.b(m.a(x).tanh()), a=first, b=last)


def normalised(norm: nn.Module, *shape: int) -> nn.Module:
    """A normalisation behind a convolution with statistics that are not those of a new layer."""
    for name, buffer in norm.named_buffers():
        if name == "running_mean":
            buffer.normal_()
        elif name == "running_var":
            buffer.uniform_(0.5, 2.0)
    return nn.Sequential(nn.Conv1d(3, 5, 1), norm)


def case(name: str, make: Callable[[], nn.Module], *draws: Draw, **more: Any) -> Case:
    """A row."""
    return layer(name, "keeps examples apart though it looks otherwise", make, *draws, **more)


def linear(call: Callable[..., Any]) -> Callable[[], nn.Module]:
    """A function of a linear layer's output."""
    return lambda: Using(lambda m, x: call(m.a(x)), a=nn.Linear(3, 5))


MODULES = (
    case("BatchNorm1d evaluating", lambda: normalised(nn.BatchNorm1d(5)).eval(), floats(3, 7)),
    case("BatchNorm1d evaluating and frozen", lambda: normalised(nn.BatchNorm1d(5).requires_grad_(False)).eval(), floats(3, 7)),
    case("BatchNorm1d evaluating without affine", lambda: normalised(nn.BatchNorm1d(5, affine=False)).eval(), floats(3, 7)),
    case("BatchNorm1d evaluating inside a training model", lambda: Using(lambda m, x: m.n(m.a(x)), a=nn.Conv1d(3, 5, 1), n=nn.BatchNorm1d(5).eval()), floats(3, 7)),
    case("SyncBatchNorm evaluating", lambda: normalised(nn.SyncBatchNorm(5)).eval(), floats(3, 7)),
    case("InstanceNorm1d", lambda: normalised(nn.InstanceNorm1d(5)), floats(3, 7)),
    case("InstanceNorm1d with affine", lambda: normalised(nn.InstanceNorm1d(5, affine=True)), floats(3, 7)),
    case("InstanceNorm1d with statistics, evaluating", lambda: normalised(nn.InstanceNorm1d(5, track_running_stats=True)).eval(), floats(3, 7)),
    case("GroupNorm", lambda: normalised(nn.GroupNorm(5, 5)), floats(3, 7)),
    case("LayerNorm over positions", lambda: normalised(nn.LayerNorm(7)), floats(3, 7)),
    case("LocalResponseNorm", lambda: normalised(nn.LocalResponseNorm(3)), floats(3, 7)),
    case("LSTM, batch first", lambda: Using(lambda m, x: m.r(x)[0], r=nn.LSTM(3, 5, batch_first=True)), floats(7, 3)),
    case("GRU, sequence first as said", lambda: Using(lambda m, x: m.r(x)[0], r=nn.GRU(3, 5)), sequence_first(floats(7, 3)), loss=squares_of_sequences, batch_dim=1),
    case("attention, batch first", lambda: Using(lambda m, x: m.t(x, x, x)[0], t=nn.MultiheadAttention(4, 2, batch_first=True)), floats(7, 4)),
    case("embedding table of positions", lambda: Using(lambda m, x: m.e(x) + m.p(torch.arange(x.shape[1])), e=nn.Embedding(11, 5), p=nn.Embedding(13, 5)), integers(11, 7)),
    case("embedding of the next token", lambda: Using(lambda m, x: m.e(x.roll(1, 1)), e=nn.Embedding(11, 5)), integers(11, 7)),
    case("learned start state", lambda: Using(lambda m, x: m.a(torch.cat([m.s.expand(x.shape[0], -1, -1), x], 1)), a=nn.Linear(3, 5), s=parameter(1, 2, 3)), floats(7, 3)),
    case("learned token repeated", lambda: Using(lambda m, x: m.a(torch.cat([m.s.repeat(x.shape[0], 1, 1), x], 1)), a=nn.Linear(3, 5), s=parameter(1, 2, 3)), floats(7, 3)),
    case("rows of a parameter by position", lambda: Using(lambda m, x: m.a(x) + m.rows[: x.shape[1]], a=nn.Linear(3, 5), rows=parameter(97, 5)), floats(7, 3)),
    case("sorted parameter", lambda: Using(lambda m, x: x * m.w.sort(0).values, w=parameter(3)), floats(3)),
    case("weight normalised over its own axis 0", lambda: Using(lambda m, x: F.linear(x, F.normalize(m.w, dim=0)), w=parameter(5, 3)), floats(3)),
    case("softmax of a weight over axis 0", lambda: Using(lambda m, x: F.linear(x, m.w.softmax(0)), w=parameter(5, 3)), floats(3)),
    case("roll of a weight", lambda: Using(lambda m, x: F.linear(x, m.w + m.w.roll(1, 0)), w=parameter(5, 3)), floats(3)),
    case("weight minus its mean", lambda: Using(lambda m, x: F.linear(x, m.w - m.w.mean(0)), w=parameter(5, 3)), floats(3)),
    case("a buffer that counts steps", Counting, floats(3)),
    case("codes kept in an attribute", Caching, floats(7, 3)),
    case("statistics of an example in a checkpoint", lambda: Using(lambda m, x: checkpoint(lambda h: h - h.mean(1, keepdim=True), m.a(x), use_reentrant=False), a=nn.Linear(3, 5)), floats(3)),
    case("hypernetwork of each example", lambda: Using(lambda m, x: torch.bmm(m.a(x).view(-1, 5, 3), x[:, :, None])[:, :, 0], a=nn.Linear(3, 15)), floats(3)),
    case("soft mixture of experts", lambda: Using(lambda m, x: torch.einsum("be,beo->bo", m.g(x).softmax(1), m.e(x).view(-1, 2, 5)), g=nn.Linear(3, 2), e=nn.Linear(3, 10)), floats(3)),
)  # fmt: skip

HOOKS = (
    case("clamped in backward", linear(lambda h: changed(h, lambda g: g.clamp(-1, 1))), floats(3)),
    case("centred over features in backward", linear(lambda h: changed(h, lambda g: g - g.mean(1, keepdim=True))), floats(3)),
    case("rolled over features in backward", linear(lambda h: changed(h, lambda g: g.roll(1, 1))), floats(3)),
    case("normalised per example in backward", linear(lambda h: changed(h, lambda g: g / (1 + g.norm(dim=1, keepdim=True)))), floats(3)),
    case("reversed in backward (adversarial)", linear(lambda h: changed(h, lambda g: -0.5 * g)), floats(3)),
    case("straight-through rounding", linear(lambda h: h + (h.round() - h).detach()), floats(3)),
    case("gradient hook that clamps", linear(lambda h: hooked(h, lambda g: g.clamp(-1, 1))), floats(3)),
    case("gradient hook that scales", linear(lambda h: hooked(h, lambda g: 3.0 * g)), floats(3)),
    case("own linear function", lambda: Using(lambda m, x: own_product(x, m.w), w=parameter(5, 3)), floats(3)),
    case("module hooks", with_hooks, floats(3)),
    case("detached half", linear(lambda h: torch.cat([h[:, :2].detach(), h[:, 2:]], 1)), floats(3)),
)  # fmt: skip

PROGRAMS = MODULES + HOOKS
