"""Small modules of the zoo: each holds one way of using a parameter that some library gets wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint


class Using(nn.Module):
    """Modules and parameters by name, with a plain function `call(self, *inputs)` as forward."""

    def __init__(self, call: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.call = call
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Whatever the function returns."""
        return self.call(self, *args, **kwargs)


def parameter(*shape: int) -> nn.Parameter:
    """A random parameter."""
    return nn.Parameter(torch.randn(*shape))


class TransposedUse(nn.Module):
    """A module of the user's own that multiplies by the transpose of a weight that belongs to another."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """f[B, 6] to f[B, 6]."""
        return x @ self.weight.t()


class SharedWithCustomModule(nn.Module):
    """One parameter in a Linear and in a custom module."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6, bias=False)
        assert isinstance(self.a.weight, nn.Parameter)
        self.b = TransposedUse(self.a.weight)

    def forward(self, x: Tensor) -> Tensor:
        """f[B, 6] to f[B, 6]."""
        return self.b(torch.tanh(self.a(x)))


class TiedModules(nn.Module):
    """The output layer holds the embedding's weight as its own."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Embedding(11, 6)
        self.o = nn.Linear(6, 11, bias=False)
        self.o.weight = self.e.weight

    def forward(self, ids: Tensor) -> Tensor:
        """i64[B, T] to f[B, T, 11]."""
        return self.o(torch.tanh(self.e(ids)))


class Conditional(nn.Module):
    """A layer that is used or not, by a Python attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.use = nn.Linear(6, 6), nn.Linear(6, 6), True

    def forward(self, x: Tensor) -> Tensor:
        """f[B, 6] to f[B, 6]."""
        h = self.a(x)
        return self.b(h) if self.use else h


class LoRALinear(nn.Module):
    """A frozen linear layer with a trained low-rank update (Hu et al. 2022)."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down, self.up = parameter(rank, inputs), parameter(outputs, rank)

    def forward(self, x: Tensor) -> Tensor:
        """f[B, ..., inputs] to f[B, ..., outputs]."""
        return self.base(x) + 0.5 * F.linear(F.linear(x, self.down), self.up)


class Checkpointed(nn.Module):
    """A block whose activations are recomputed in backward."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.block = nn.Sequential(nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 7))
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        """f[B, 5] to f[B, 7]."""
        return checkpoint(self.block, self.first(x), use_reentrant=self.use_reentrant)


class Recurrent(nn.Module):
    """LSTM, GRU or RNN followed by a linear layer, for batch-first input f[B, T, 3]."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU] | type[nn.RNN], sequence_first: bool = False, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(3, 5, batch_first=not sequence_first, **options)
        self.sequence_first = sequence_first
        width = self.rnn.proj_size or 5
        self.head = nn.Linear(width * (2 if self.rnn.bidirectional else 1), 2)

    def forward(self, x: Tensor) -> Tensor:
        """f[B, T, 3] to f[B, T, 2], or everything with T first in between."""
        h, _ = self.rnn(x.transpose(0, 1) if self.sequence_first else x)
        return self.head(h.transpose(0, 1) if self.sequence_first else h)


class Attention(nn.Module):
    """nn.MultiheadAttention in either layout, on one input or on a query and another memory."""

    def __init__(self, batch_first: bool, need_weights: bool, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=batch_first, **options)
        self.batch_first, self.need_weights = batch_first, need_weights

    def forward(self, query: Tensor, memory: Tensor | None = None) -> Tensor:
        """f[B, T, 6] and f[B, S, 6] to f[B, T, 6]."""
        memory = query if memory is None else memory
        if not self.batch_first:
            query, memory = query.transpose(0, 1), memory.transpose(0, 1)
        output, _ = self.attention(query, memory, memory, need_weights=self.need_weights)
        return output if self.batch_first else output.transpose(0, 1)


class NestedInputs(nn.Module):
    """Dictionaries of lists and keyword arguments, one of them not a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(5, 2)

    def forward(self, features: dict[str, Any], *, weight: Tensor, power: int) -> Tensor:
        """features {"left": [f[B, 3]], "right": f[B, 5]}, weight f[B] to f[B, 2]."""
        return (self.left(features["left"][0]) ** power + self.right(features["right"])) * weight[:, None]


class ReturnsLosses(nn.Module):
    """A model that computes its own per-example losses and returns them in an object."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor, labels: Tensor) -> SimpleNamespace:
        """f[B, 5] and i64[B] to an object whose `.loss` is f[B]."""
        logits = self.head(x)
        return SimpleNamespace(loss=F.cross_entropy(logits, labels, reduction="none"), logits=logits)


class PrototypeLoss(nn.Module):
    """A loss that owns a trained parameter: squared distance to a learned prototype of the class."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.prototypes = parameter(classes, width)

    def forward(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Losses f[B]."""
        return (model(x) - self.prototypes[y]).square().sum(1)


def convolution(*args: Any, kind: type[nn.Module] = nn.Conv2d, **options: Any) -> nn.Module:
    """A convolution behind another, so that its input needs a gradient too."""
    inputs = args[0]
    pointwise = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[int(kind.__name__[-2])]
    return nn.Sequential(pointwise(inputs, inputs, 1), nn.Tanh(), kind(*args, **options))


def old_weight_norm() -> nn.Module:
    """torch.nn.utils.weight_norm, built without autograd: its derived weight would refuse to be copied."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(5, 3, bias=False)), nn.Tanh(), nn.Linear(3, 2))


def new_weight_norm() -> nn.Module:
    """The parametrization of weight norm, for a linear layer and for a convolution."""
    return nn.Sequential(weight_norm(nn.Conv2d(2, 3, 3)), nn.Tanh(), nn.Flatten(), weight_norm(nn.Linear(27, 2)))


class ActivatedWeights(nn.Module):
    """Weights that pass through activations before they are used, as time constants of state-space models do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.rates = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        """f[B, 2, 5] to f[B, 2, 3]."""
        gates = torch.sigmoid(self.rates) * F.softplus(self.rates)
        return F.linear(x * gates, torch.tanh(self.weight) + F.gelu(self.weight))


def spectral(training: bool) -> nn.Module:
    """Spectral norm, whose vectors are buffers that training updates once per step."""
    return nn.Sequential(spectral_norm(nn.Linear(5, 3)), nn.Tanh(), nn.Linear(3, 2)).train(training)


def frozen_first(model: nn.Module) -> nn.Module:
    """The model with its first child frozen."""
    next(model.children()).requires_grad_(False)
    return model
