"""Rows of the zoo: uses and reuses of parameters in dense layers, and operations around them."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
import zoo_layers as layers
import zoo_networks as networks
from torch import Tensor, nn
from zoo_case import (
    floats,
    integers,
    layer,
)
from zoo_layers import Using, parameter


def row_table(shape: tuple[int, ...]) -> nn.Module:
    """A parameter whose rows are looked up."""
    return Using(lambda m, ids: m.rows[ids], rows=parameter(*shape))


REUSED = (
    *(
        layer(
            f"rows of a parameter {list(shape)}",
            "advanced indexing of a table that is no matrix",
            functools.partial(row_table, shape),
            integers(11, 7),
            loss=lambda m, ids: m(ids).square().flatten(1).sum(1),
        )
        for shape in ((11,), (11, 1, 1), (11, 3, 2))
    ),
    layer(
        "one-hot targets",
        "a check of the values inside one_hot",
        lambda: Using(lambda m, x, y: m.a(x) - F.one_hot(y, 5), a=nn.Linear(3, 5)),
        floats(3),
        integers(5),
        loss=lambda m, x, y: m(x, y).square().sum(1),
    ),
    layer(
        "functional reuse",
        "a weight used by its module and twice by F.linear",
        lambda: Using(
            lambda m, x: F.linear(F.linear(1e-3 * m.l(x) + x, m.l.weight), m.l.weight),
            l=nn.Linear(5, 5, bias=False),
        ),
        floats(5),
    ),
    layer(
        "functional tie",
        "an embedding used as output layer by F.linear",
        lambda: Using(
            lambda m, x: F.linear(torch.tanh(m.l(m.e(x))), m.e.weight),
            e=nn.Embedding(11, 5),
            l=nn.Linear(5, 5),
        ),
        integers(11, 7),
    ),
    layer(
        "custom module shares",
        "a weight shared with a module of the user's own",
        layers.SharedWithCustomModule,
        floats(6),
    ),
    layer("module tie", "one parameter object in two modules", layers.TiedModules, integers(11, 7)),
    layer(
        "called twice",
        "one layer called twice",
        lambda: Using(lambda m, x: m.a(torch.tanh(m.a(x))), a=nn.Linear(5, 5)),
        floats(5),
    ),
    layer(
        "called twice on sequences",
        "cross terms between two sites with positions",
        lambda: Using(lambda m, x: m.a(torch.tanh(m.a(x))), a=nn.Linear(5, 5)),
        floats(7, 5),
    ),
    layer(
        "called twice on different shapes",
        "sites of one weight with different numbers of positions",
        lambda: Using(lambda m, x, y: torch.cat([m.e(x), m.e(y).tanh()], 1), e=nn.Embedding(11, 3)),
        integers(11, 2),
        integers(11, 7),
    ),
    layer(
        "convolution called twice",
        "cross terms between two convolutions",
        lambda: Using(lambda m, x: m.c(torch.tanh(m.c(x))), c=nn.Conv2d(3, 3, 3, padding=1)),
        floats(3, 5, 7),
    ),
    layer(
        "execution order",
        "modules registered in another order than they run",
        lambda: Using(lambda m, x: m.b(torch.tanh(m.a(x))), b=nn.Linear(3, 2), a=nn.Linear(5, 3)),
        floats(5),
    ),
    layer(
        "position embedding",
        "a gradient summed over the batch before the embedding's backward",
        lambda: Using(
            lambda m, x: m.e(x) * m.p(torch.arange(x.shape[1])[None]),
            e=nn.Embedding(11, 3),
            p=nn.Embedding(13, 3),
        ),
        integers(11, 7),
    ),
    layer(
        "matrix product",
        "a parameter used as x @ W",
        lambda: Using(lambda m, x: (x @ m.w).tanh() @ m.v, w=parameter(5, 3), v=parameter(3, 2)),
        floats(7, 5),
    ),
    layer(
        "weight on the left",
        "a parameter used as W @ x",
        lambda: Using(lambda m, x: m.w @ x, w=parameter(3, 5)),
        floats(5, 7),
    ),
    layer(
        "einsum",
        "a parameter in an einsum over three of its axes",
        lambda: Using(lambda m, x: torch.einsum("btd,dhk->bthk", x, m.w), w=parameter(5, 2, 3)),
        floats(7, 5),
    ),
    layer(
        "einsum of two inputs",
        "a trilinear einsum",
        lambda: Using(lambda m, x, y: torch.einsum("bi,bj,ijk->bk", x, y, m.w), w=parameter(3, 5, 2)),
        floats(3),
        floats(5),
    ),
    layer(
        "sliced weight",
        "different slices of one parameter in different places",
        lambda: Using(lambda m, x: F.linear(torch.tanh(F.linear(x, m.w[:5])), m.w[5:]), w=parameter(7, 5)),
        floats(5),
    ),
    layer(
        "weight times its transpose",
        "a parameter that meets itself before the data",
        lambda: Using(lambda m, x: x @ (m.w @ m.w.t()), w=parameter(5, 3)),
        floats(5),
    ),
    layer(
        "temperature",
        "a scalar parameter",
        lambda: Using(lambda m, x: m.a(x) / m.t.exp(), a=nn.Linear(5, 3), t=nn.Parameter(torch.tensor(0.3))),
        floats(5),
    ),
    layer(
        "learned start state",
        "a parameter expanded over the batch",
        lambda: Using(
            lambda m, x: m.a(torch.cat([m.start.expand(x.shape[0], -1, -1), x], 1)),
            a=nn.Linear(5, 3),
            start=parameter(1, 2, 5),
        ),
        floats(7, 5),
    ),
    layer(
        "unused parameter",
        "a parameter that nothing uses",
        lambda: Using(lambda m, x: m.a(x), a=nn.Linear(5, 3), unused=nn.Linear(2, 7)),
        floats(5),
    ),
    layer("attribute switch", "a layer that is switched on by an attribute", layers.Conditional, floats(6)),
)

DENSE = (
    layer("linear", "the simplest layer", lambda: nn.Linear(5, 3), floats(5)),
    layer("linear without bias", "no bias", lambda: nn.Linear(5, 3, bias=False), floats(5)),
    layer(
        "linear on sequences",
        "positions",
        lambda: nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2)),
        floats(7, 5),
    ),
    layer("linear on one position", "T=1", lambda: nn.Linear(5, 3), floats(1, 5)),
    layer("linear on 4-D input", "two axes of positions", lambda: nn.Linear(5, 3), floats(7, 2, 5)),
    layer(
        "bilinear",
        "two inputs in one layer",
        lambda: Using(lambda m, x, y: m.l(x, y), l=nn.Bilinear(3, 5, 2)),
        floats(3),
        floats(5),
    ),
    layer(
        "two inputs",
        "a module of two inputs",
        lambda: Using(lambda m, x, y: m.a(x) * m.b(y), a=nn.Linear(3, 2), b=nn.Linear(5, 2)),
        floats(3),
        floats(5),
    ),
    layer(
        "submodule with keyword",
        "an inner module called with keyword arguments",
        lambda: Using(lambda m, x: m.a(input=x).tanh(), a=nn.Linear(5, 3)),
        floats(5),
    ),
    layer(
        "through a frozen layer",
        "a gradient that passes a frozen layer",
        lambda: nn.Sequential(nn.Linear(5, 3), layers.frozen_first(nn.Sequential(nn.Linear(3, 2), nn.Tanh()))),
        floats(5),
    ),
    layer(
        "bias only",
        "frozen weights beside trained biases (BitFit)",
        lambda: bias_only(networks.mlp(5, 3, 2)),
        floats(5),
        contracts=False,
    ),
    layer(
        "low rank update",
        "LoRA with a frozen base",
        lambda: nn.Sequential(layers.LoRALinear(5, 7, 2), nn.Tanh(), layers.LoRALinear(7, 3, 2)),
        floats(11, 5),
    ),
    layer("activated weights", "tails through elementwise backward operations", layers.ActivatedWeights, floats(2, 5)),
    layer("weight norm", "a parametrization with a non-linear Jacobian", layers.new_weight_norm, floats(2, 5, 5)),
    layer("old weight norm", "weight norm by forward hook", layers.old_weight_norm, floats(5)),
    layer("spectral norm, evaluating", "buffers that are only read", lambda: layers.spectral(False), floats(5)),
    layer(
        "spectral norm, training",
        "buffers that are updated once per step",
        lambda: layers.spectral(True),
        floats(5),
    ),
    layer(
        "in-place activations",
        "mutation of intermediate values",
        lambda: nn.Sequential(nn.Linear(5, 3), nn.ReLU(inplace=True), nn.Linear(3, 7), nn.SiLU(inplace=True), nn.Linear(7, 2)),
        floats(5),
    ),
    layer(
        "in-place arithmetic",
        "add_ and mul_ on slices",
        lambda: Using(lambda m, x: in_place(m.a(x)), a=nn.Linear(5, 3)),
        floats(5),
    ),
    layer(
        "dropout, evaluating",
        "dropout that does nothing",
        lambda: nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5), nn.Linear(3, 2)).eval(),
        floats(5),
    ),
    layer(
        "root parameter",
        "a parameter of the outermost module",
        lambda: Using(lambda m, x: m.drop(m.a(x) + m.shift), a=nn.Linear(5, 3), shift=parameter(3), drop=nn.Dropout(0.0)),
        floats(5),
    ),
    layer("checkpoint", "activations recomputed in backward", lambda: layers.Checkpointed(False), floats(5)),
    layer(
        "reentrant checkpoint",
        "the older checkpoint, which refuses autograd.grad",
        lambda: layers.Checkpointed(True),
        floats(5),
    ),
    layer(
        "folded batch",
        "a convolution on batch and time in one axis",
        lambda: Using(lambda m, x: m.c(x.flatten(0, 1)).unflatten(0, (-1, x.shape[1])), c=nn.Conv1d(2, 3, 3)),
        floats(5, 2, 7),
    ),
    layer(
        "sequence-first inside",
        "the example axis in the middle",
        lambda: Using(lambda m, x: m.a(x.transpose(0, 1)).transpose(0, 1), a=nn.Linear(5, 3)),
        floats(7, 5),
    ),
    layer(
        "gather by length",
        "the last valid position of each example",
        lambda: Using(
            lambda m, x, n: m.b(m.a(x).tanh()[torch.arange(x.shape[0]), n]),
            a=nn.Linear(5, 3),
            b=nn.Linear(3, 2),
        ),
        floats(7, 5),
        integers(7),
    ),
    layer(
        "order within examples",
        "sort, cumsum, flip and roll over positions",
        lambda: Using(lambda m, x: within_examples(m.a(x)), a=nn.Linear(5, 3)),
        floats(7, 5),
    ),
    layer(
        "normalised within examples",
        "norm, softmax, mean and maximum of each example",
        lambda: Using(lambda m, x: own_statistics(m.a(x)), a=nn.Linear(5, 3)),
        floats(7, 5),
    ),
    layer(
        "resampling",
        "padding, interpolation, pixel shuffle and pooling",
        lambda: Using(lambda m, x: resample(m.a(x)), a=nn.Conv2d(2, 4, 3, padding=1)),
        floats(2, 6, 6),
    ),
)


def bias_only(model: nn.Module) -> nn.Module:
    """The model with every parameter but the biases frozen."""
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith("bias"))
    return model


def in_place(x: Tensor) -> Tensor:
    """Arithmetic that writes into intermediate values and into slices of them."""
    y = torch.zeros_like(x)
    y[:, 1:] = x[:, 1:].tanh()
    y.mul_(2.0).add_(x)
    return y


def within_examples(x: Tensor) -> Tensor:
    """Operations over positions that would mix examples on another axis; f[B, T, d] to f[B, T, d]."""
    return x.sort(dim=1).values + x.cumsum(1) * x.flip(1) + x.roll(1, 1)


def own_statistics(x: Tensor) -> Tensor:
    """Statistics over an example's own positions and features; f[B, T, d] to f[B, T, d]."""
    scaled = x / (1 + x.flatten(1).norm(dim=1))[:, None, None]
    return scaled - scaled.mean((1, 2), keepdim=True) + x.softmax(1) * x.amax(2, keepdim=True) + x.std(1, keepdim=True)


def resample(x: Tensor) -> Tensor:
    """Changes of resolution; f[B, 4, 6, 6] to f[B, 1, 13, 13]."""
    h = F.pixel_shuffle(F.avg_pool2d(F.max_pool2d(x, 2), 2, stride=1), 2)
    return F.pad(F.interpolate(h, scale_factor=3, mode="bilinear", align_corners=False), (1, 0, 0, 1), mode="reflect")
