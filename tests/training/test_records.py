"""Examples of several records: one clip for all of an example's records, exact against the loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracle import per_example_gradients
from torch import Tensor, nn
from training_case import network

from dpcompile import InvalidInput, dpcompile
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


def named(model: nn.Module, *, inputs: Tensor, targets: Tensor) -> Tensor:
    """Losses of single records that come by their names, as batches of transformers do."""
    return of_records(model, inputs, targets)


def test_records_by_name_are_those_by_place() -> None:
    model = network()
    inputs, targets, present = batch(7, 4)
    by_name = dpcompile(model, loss=mean_over_records(named))
    by_place = dpcompile(model, loss=mean_over_records(of_records))
    masked_by_name = dpcompile(model, loss=mean_over_records(named, is_masked="present"))
    masked_by_place = dpcompile(model, loss=mean_over_records(of_records, is_masked=True))
    for one, other in (
        (by_name(inputs=inputs, targets=targets), by_place(inputs, targets)),
        (masked_by_name(inputs=inputs, targets=targets, present=present), masked_by_place(inputs, targets, present)),
    ):
        assert torch.equal(one.norms, other.norms)
        assert torch.equal(one.grads["0.weight"], other.grads["0.weight"])


def test_a_mask_without_a_name_or_a_tensor_is_refused() -> None:
    inputs, targets, _ = batch(3, 2)
    with pytest.raises(InvalidInput, match='is_masked="name"'):
        mean_over_records(named, is_masked=True)(network(), inputs=inputs, targets=targets)
    with pytest.raises(InvalidInput, match="has no 'present'"):
        mean_over_records(named, is_masked="present")(network(), inputs=inputs, targets=targets)


@pytest.mark.parametrize("filler", [float("nan"), float("inf"), 7.0])
def test_what_is_in_records_that_are_not_there_changes_nothing(filler: float) -> None:
    model = network()
    inputs, targets, present = batch(7, 4)
    step = dpcompile(model, loss=mean_over_records(of_records, is_masked=True), max_grad_norm=0.2)
    filled = inputs.masked_fill(~present[..., None], filler)
    strange = targets.masked_fill(~present, -7)
    plain, found = step(inputs, targets, present), step(filled, strange, present)
    assert not found.nonfinite.any()
    assert torch.equal(plain.norms, found.norms) and float(found.norms[1:].min()) > 0
    assert all(torch.equal(plain.grads[name], found.grads[name]) for name in plain.grads)


def test_weights_of_examples_scale_before_clipping() -> None:
    model = network()
    inputs, targets, _ = batch(7, 1)
    weights = torch.arange(7, dtype=torch.float64)
    step = dpcompile(model, loss=weighted, max_grad_norm=0.5)(inputs[:, 0], targets[:, 0], weights)
    plain = dpcompile(model, loss=of_records, max_grad_norm=0.5)(inputs[:, 0], targets[:, 0])
    assert torch.allclose(step.norms, weights * plain.norms, rtol=1e-12, atol=0)
    assert float((step.clip_factors * step.norms).max()) <= 0.5 * (1 + 1e-12)
