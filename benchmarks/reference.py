"""What every method is checked against before it is timed: a float64 loop over single examples."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.cases import MAX_GRAD_NORM, Case

Gradients = Mapping[str, Tensor]


@dataclass(frozen=True)
class Reference:
    """Sums over the batch in float64: as they are (what an ordinary step returns) and clipped.

    size: the largest norm that one example contributes to each, the unit of errors.
    """

    ordinary: Gradients
    clipped: Gradients
    ordinary_size: float
    clipped_size: float
    share_clipped: float


def make_reference(case: Case) -> Reference:
    """Run every example alone, on the CPU."""
    model = copy.deepcopy(case.model("cpu")).double()
    inputs, targets = case.batch("cpu")
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    parameters = dict(model.named_parameters())
    ordinary = {name: torch.zeros_like(p) for name, p in parameters.items()}
    clipped = {name: torch.zeros_like(p) for name, p in parameters.items()}
    norms = []
    for x, y in zip(inputs.split(1), targets.split(1), strict=True):
        gradients = torch.autograd.grad(case.losses(model, x, y).sum(), list(parameters.values()))
        norms.append(float(torch.stack([g.square().sum() for g in gradients]).sum().sqrt()))
        factor = min(1.0, MAX_GRAD_NORM / max(norms[-1], 1e-300))
        for name, gradient in zip(parameters, gradients, strict=True):
            ordinary[name] += gradient
            clipped[name] += factor * gradient
    share = sum(norm > MAX_GRAD_NORM for norm in norms) / len(norms)
    return Reference(ordinary, clipped, max(norms), min(MAX_GRAD_NORM, max(norms)), share)


def largest_error(found: Gradients, expected: Gradients, size: float) -> float:
    """The largest deviation of any entry in units of one example's contribution; infinite if names differ."""
    expected = as_held(expected, found)
    if set(found) != set(expected):
        return float("inf")
    return max(float((found[n].double().cpu() - expected[n]).abs().max()) for n in expected) / size


def as_held(expected: Gradients, found: Gradients) -> Gradients:
    """The expected sums by the names of what was found: Opacus' attention holds the three thirds of in_proj_weight and
    in_proj_bias apart, as qlinear, klinear and vlinear. Outside of what is timed."""
    held: dict[str, Tensor] = {}
    for name, total in expected.items():
        place, _, last = name.rpartition("in_proj_")
        parts = [f"{place}{letter}linear.{last}" for letter in "qkv"]
        is_apart = bool(last) and name not in found and all(part in found for part in parts)
        held |= dict(zip(parts, total.chunk(3), strict=True)) if is_apart else {name: total}
    return held
