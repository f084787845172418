"""Clip factors, groups and clipped sums of every kind of clipping, written down a second time; models to try them on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from oracle import Gradients, per_example_gradients, relative_error
from torch import Tensor, nn
from zoo_case import squares
from zoo_layers import Using

from dpcompile import PSAC, Automatic, Global, GroupWise, Normalized, PerLayer

Factor = Callable[[float, float], float]


def flat(n: float, c: float) -> float:
    """Abadi et al. 2016."""
    return c / n if n > c else 1.0


FACTORS: dict[str, tuple[Any, Factor]] = {
    "flat": ("flat", flat),
    "automatic": ("automatic", lambda n, c: c / (n + 0.01)),
    "automatic, 3": (Automatic(stability=3.0), lambda n, c: c / (n + 3)),
    "normalized": (Normalized(), lambda n, c: c / n if n else 0.0),
    "psac": ("psac", lambda n, c: c / (n + 0.1 / (n + 0.1))),
    "psac, 2": (PSAC(r=2), lambda n, c: c / (n + 2 / (n + 2))),
    "global": ("global", lambda n, c: 1.0 if n <= c else 0.0),
    "global, 2": (Global(threshold=2.0), lambda n, c: c / 2 if n <= 2 else 0.0),
}
"""Kinds with one factor: what is given to dpcompile, and the formula."""
KINDS = [*FACTORS, "per-layer", "group-wise"]


@dataclass(frozen=True)
class Subject:
    """A model with its loss and batches, in float64; globs that cover its parameters."""

    make: Callable[[], nn.Module]
    loss: Any
    batch: Callable[[int], tuple[Tensor, ...]]
    globs: Mapping[str, float]

    def groups(self, name: str, model: nn.Module, limit: float) -> list[tuple[list[str], float]]:
        """Parameters and clip norm of every group."""
        if name == "per-layer":
            return by_module(model, limit)
        names = [n for n, p in model.named_parameters() if p.requires_grad]
        if name == "group-wise":
            parts = [([n for n in names if ("weight" in n) == ("weight" in glob)], norm) for glob, norm in self.globs.items()]
            return [(found, norm * limit / math.hypot(*self.globs.values())) for found, norm in parts]
        return [(names, limit)]


def by_module(model: nn.Module, limit: float) -> list[tuple[list[str], float]]:
    """The parameters of every module that owns some, a tied one with its first owner; equal parts of the clip norm."""
    known: set[int] = set()
    found = []
    for path, module in model.named_modules():
        own = [(n, p) for n, p in module.named_parameters(recurse=False) if p.requires_grad and id(p) not in known]
        known |= {id(p) for _, p in own}
        found += [[f"{path}.{n}" if path else n for n, _ in own]] if own else []
    return [(names, limit / math.sqrt(len(found))) for names in found]


def given(name: str, subject: Subject) -> Any:
    """What `clipping=` is for a kind."""
    if name == "group-wise":
        return GroupWise(subject.globs)
    return PerLayer() if name == "per-layer" else FACTORS[name][0]


@dataclass(frozen=True)
class Clipped:
    """What a step must return: factors f64[B] or f64[B, K]."""

    norms: Tensor
    factors: Tensor
    sums: Gradients


def clipped(name: str, subject: Subject, model: nn.Module, gradients: Gradients, limit: float) -> Clipped:
    """Factors and sums of a kind from per-example gradients; 0 for examples that are not finite."""
    formula = FACTORS[name][1] if name in FACTORS else flat
    whole = norms_of(gradients, list(gradients))
    columns: list[Tensor] = []
    sums: Gradients = {}
    for names, bound in subject.groups(name, model, limit):
        own = norms_of(gradients, names)
        found = [formula(float(n), bound) if ok else 0.0 for n, ok in zip(own, whole.isfinite(), strict=True)]
        factors = torch.tensor(found, dtype=torch.float64)
        columns.append(factors)
        kept = factors > 0
        sums |= {n: torch.tensordot(factors[kept], gradients[n][kept], dims=1) for n in names}
    grouped = name in ("per-layer", "group-wise")
    return Clipped(whole, torch.stack(columns, 1) if grouped else columns[0], sums)


def norms_of(gradients: Gradients, names: list[str]) -> Tensor:
    """Norms f64[B] of some parameters' gradients together."""
    return torch.stack([gradients[n][..., None].flatten(1).square().sum(1) for n in names]).sum(0).sqrt()


def expected(name: str, subject: Subject, model: nn.Module, batch: tuple[Tensor, ...], limit: float) -> Clipped:
    """The same from the oracle's loop."""
    return clipped(name, subject, model, per_example_gradients(model, subject.loss, batch)[1], limit)


def worst(step: Any, wanted: Clipped, limit: float) -> float:
    """The largest relative error of norms, factors and sums."""
    assert set(step.grads) == set(wanted.sums)
    largest = float(wanted.norms.max()) if len(wanted.norms) else 1.0
    found = [relative_error(step.norms, wanted.norms, largest)]
    found.append(relative_error(step.clip_factors, wanted.factors, float(wanted.factors.max()) if len(wanted.norms) else 1.0))
    return max([*found, *(relative_error(step.grads[n], total, limit) for n, total in wanted.sums.items())])


def vectors(size: int) -> tuple[Tensor, ...]:
    """Inputs of different lengths, so that some gradients are clipped."""
    return (
        torch.randn(size, 5, dtype=torch.float64) * torch.rand(size, 1, dtype=torch.float64) * 2,
        torch.randint(0, 3, (size,)),
    )


def classifier() -> nn.Module:
    """Linear layers and a normalisation; one parameter is frozen."""
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    model[3].bias.requires_grad_(False)
    return model


def tied() -> nn.Module:
    """A table that is looked up and multiplied with, beside a layer between, and a parameter of the model itself."""

    def call(m: Any, ids: Tensor) -> Tensor:
        return F.linear(torch.tanh(m.layer(m.table(ids))) + m.bias_of_all, m.table.weight)

    return Using(call, table=nn.Embedding(11, 4), layer=nn.Linear(4, 4), bias_of_all=nn.Parameter(torch.randn(4))).double()


def added() -> nn.Module:
    """Two layers whose biases have one and the same gradient, a sum that is traced once, and one that no loss depends on."""

    def call(m: Any, x: Tensor) -> Tensor:
        return F.linear(x, m.a.weight) + F.linear(x[..., :3], m.b.weight) + (m.a.bias + m.b.bias)

    return Using(call, a=nn.Linear(5, 4), b=nn.Linear(3, 4), unused=nn.Linear(2, 2)).double()


def images() -> nn.Module:
    """Convolutions with a group normalisation."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.Flatten(), nn.Linear(3 * 4 * 4, 2)
    ).double()


GLOBS = {"*weight": 0.7, "*bias*": 0.3}
SUBJECTS = {
    "classifier": Subject(classifier, nn.CrossEntropyLoss(), vectors, GLOBS),
    "tied": Subject(tied, squares, lambda size: (torch.randint(0, 11, (size, 6)),), GLOBS),
    "added": Subject(added, squares, lambda size: (torch.randn(size, 2, 5, dtype=torch.float64),), GLOBS),
    "images": Subject(images, squares, lambda size: (torch.randn(size, 2, 7, 7, dtype=torch.float64),), GLOBS),
}
