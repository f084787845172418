"""Rounding of projected norms: what float32 may lose where directions are removed, and what the bound adds back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from captured import captured, tensors
from oracle import expect, per_example_gradients
from standardised import Standardised, by_batch_norm, by_norm, by_var_mean, weight_norm
from torch import Tensor, nn

from dpcompile import dpcompile
from dpcompile.ir.graph import JointGraph
from dpcompile.passes.norms import emit_norms
from dpcompile.passes.order import order_nodes

POSITIONS, COLUMNS, ROWS = 7, 96, 3
MODELS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: Standardised(nn.Linear(COLUMNS, ROWS), by_batch_norm),
    "batch norm with a gain": lambda: Standardised(nn.Linear(COLUMNS, ROWS), by_batch_norm, has_gain=True),
    "by hand": lambda: Standardised(nn.Linear(COLUMNS, ROWS, bias=False), by_var_mean),
    "norm by hand": lambda: Standardised(nn.Linear(COLUMNS, ROWS), by_norm),
    "weight norm": lambda: weight_norm(nn.Linear(COLUMNS, ROWS)),
}


def weighted(model: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
    """A loss with output gradients `weights`, whatever the output is: f[B]."""
    return (model(x) * weights).sum((1, 2))


def weight_of(model: nn.Module) -> str:
    """The name of the parameter of the weight's shape."""
    return next(name for name, p in model.named_parameters() if p.shape == (ROWS, COLUMNS))


def nearly_removed(model: nn.Module, share: float, examples: int = 64) -> tuple[Tensor, Tensor]:
    """Inputs whose rows' gradients are, up to `share`, multiples of the weight's first row and of ones.

    All positions look alike, so that nothing cancels but the removed directions: these gradients vanish in the first row,
    and the other rows get no gradient at all.
    """
    generator = torch.Generator().manual_seed(3)
    row = model.get_parameter(weight_of(model)).detach()[0].double()
    mixed = torch.randn(examples, POSITIONS, 1, generator=generator).double()
    noise = torch.randn(examples, POSITIONS, COLUMNS, generator=generator).double()
    centred = row - row.mean() if isinstance(model, Standardised) and model.form is not by_norm else row
    ones = 0.3 if centred is not row else 0.0
    x = mixed * centred / centred.std() + ones + share * noise
    weights = torch.zeros(examples, POSITIONS, ROWS)
    weights[:, :, 0] = torch.randn(examples, POSITIONS, generator=generator)
    return x.float(), weights


def squares_and_bounds(model: nn.Module, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(f64[B] squared norm, f64[B] what it may be low by) of the weight's gradient by the strategy."""
    found, name = captured(model, weighted, x, weights).copied(), weight_of(model)
    emit_norms(found.joint, found.plan({name: "projected"}))
    order_nodes(found.joint)
    found.joint.module.recompile()
    with torch.no_grad():
        outputs = found.joint.module(*tensors(found))
    return tuple(outputs[place(found.joint, kind, name)] for kind in ("squared_norm", "rounding"))


def place(joint: JointGraph, kind: str, name: str) -> int:
    """Where an output stands."""
    return joint.outputs.index((kind, name))


def true_squares(model: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
    """The oracle's, in float64."""
    _, gradients = per_example_gradients(model, weighted, (x, weights))
    return gradients[weight_of(model)].flatten(1).square().sum(1)


@pytest.mark.parametrize("share", [1e-1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("name", MODELS)
def test_a_norm_is_never_low_by_more_than_the_bound_where_the_gradient_is_removed(name: str, share: float) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    x, weights = nearly_removed(model, share)
    squared, bound = squares_and_bounds(model, x, weights)
    true = true_squares(model, x, weights)
    assert bool((squared + bound >= true).all()), ((true - squared) / bound).max()
    assert bool((squared - bound <= true).all())  # high by no more than that, either


def test_without_the_bound_a_norm_would_be_low() -> None:
    torch.manual_seed(0)
    low = []
    for make in MODELS.values():
        model = make()
        operands = nearly_removed(model, 1e-3)
        squared, _ = squares_and_bounds(model, *operands)
        low.append(float((squared / true_squares(model, *operands)).min()))
    assert min(low) < 1 - 1e-3, low


@pytest.mark.parametrize("name", MODELS)
def test_the_bound_is_small_where_nothing_cancels(name: str) -> None:
    torch.manual_seed(0)
    model, x, weights = MODELS[name](), torch.randn(16, POSITIONS, COLUMNS), torch.randn(16, POSITIONS, ROWS)
    squared, bound = squares_and_bounds(model, x, weights)
    assert float((bound / squared).max()) < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_contributions_stay_below_the_clip_norm_where_the_gradient_is_removed(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    for bias in (p for n, p in model.named_parameters() if p.shape != (ROWS, COLUMNS)):
        bias.requires_grad_(False)  # so that the norm is the weight's own
    x, weights = nearly_removed(model, 1e-3)
    step = dpcompile(model, loss=weighted, strategy="projected", max_grad_norm=1e-3)(x, weights)
    right = expect(model, weighted, (x, weights), max_grad_norm=1e-3)
    assert float((right.norms * step.clip_factors.double()).max()) <= 1e-3 * (1 + 1e-5)
