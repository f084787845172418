"""Examples of several records: one clip for all of an example's records, exact against the loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracle import per_example_gradients
from torch import Tensor, nn
from training_case import network

from dpcompile import dpcompile
from dpcompile.training import mean_over_records


def of_records(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Losses of single records."""
    return F.cross_entropy(model(inputs), targets, reduction="none")


def weighted(model: nn.Module, inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Losses times weights that belong to the examples."""
    return weights * of_records(model, inputs, targets)


def batch(size: int, records: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs f64[B, K, 5], classes i64[B, K], and which records are there; the first example has none."""
    generator = torch.Generator().manual_seed(size)
    present = torch.rand(size, records, generator=generator) < 0.6
    if size > 1:
        present[0] = False
    inputs = torch.randn(size, records, 5, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (size, records), generator=generator), present


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("records", [1, 4])
@pytest.mark.parametrize("is_masked", [True, False])
def test_the_gradient_of_an_example_is_the_mean_of_its_records(size: int, records: int, is_masked: bool) -> None:
    model, loss = network(), mean_over_records(of_records, is_masked)
    inputs, targets, present = batch(size, records)
    given = (inputs, targets, present) if is_masked else (inputs, targets)
    found = dpcompile(model, loss=loss).per_example_gradients(*given)
    for example in range(size):
        kept = present[example] if is_masked else torch.ones(records, dtype=torch.bool)
        if not kept.any():
            assert all(float(g[example].abs().max()) == 0.0 for g in found.values())
            continue
        _, of_each = per_example_gradients(model, of_records, (inputs[example][kept], targets[example][kept]))
        for name, gradient in of_each.items():
            assert torch.allclose(found[name][example], gradient.mean(0), rtol=0, atol=1e-12)


def test_weights_of_examples_scale_before_clipping() -> None:
    model = network()
    inputs, targets, _ = batch(7, 1)
    weights = torch.arange(7, dtype=torch.float64)
    step = dpcompile(model, loss=weighted, max_grad_norm=0.5)(inputs[:, 0], targets[:, 0], weights)
    plain = dpcompile(model, loss=of_records, max_grad_norm=0.5)(inputs[:, 0], targets[:, 0])
    assert torch.allclose(step.norms, weights * plain.norms, rtol=1e-12, atol=0)
    assert float((step.clip_factors * step.norms).max()) <= 0.5 * (1 + 1e-12)
