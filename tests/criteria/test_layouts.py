"""Pruning and dropping together: every combination of granularities fits its layout at every step, nothing is half done."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo_case import squares
from zoo_networks import mlp

from dpcompile import Blocks, GradientDropping, InvalidInput, PrePruning, PrivateModule, dpcompile
from dpcompile.selection import Selection

GRANULARITIES: dict[str, Any] = {
    "weights": "weights", "rows": "rows", "columns": "columns", "layers": "layers", "pairs of rows": Blocks(0, 2),
    "fours of rows": Blocks(0, 4), "pairs of columns": Blocks(1, 2),
}  # fmt: skip


def selection_of(private: PrivateModule) -> Selection:
    """What a module's steps train."""
    assert private.program.selection is not None
    return private.program.selection


def reference(model: nn.Module, x: Tensor, masks: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Norms and clipped sums of masked gradients, example by example."""
    parameters = dict(model.named_parameters())
    norms, total = [], {name: torch.zeros_like(p) for name, p in parameters.items()}
    for row in x.split(1):
        found = torch.autograd.grad(squares(model, row).sum(), list(parameters.values()))
        own = {name: g * masks[name] if name in masks else g for name, g in zip(parameters, found, strict=True)}
        norms.append(torch.stack([g.square().sum() for g in own.values()]).sum().sqrt())
        for name, gradient in own.items():
            total[name] += gradient * min(1.0, 1.0 / max(float(norms[-1]), 1e-300))
    return torch.stack(norms), total


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("dropped", GRANULARITIES)
@pytest.mark.parametrize("pruned", GRANULARITIES)
def test_every_part_of_every_part_is_trained_exactly(pruned: str, dropped: str, scope: str) -> None:
    torch.manual_seed(0)
    model, x = mlp(4, 16, 8).double(), torch.randn(3, 4, dtype=torch.float64)
    passes = [
        PrePruning(0.4, "random", granularity=GRANULARITIES[pruned], seed=1),
        GradientDropping(0.5, "random", granularity=GRANULARITIES[dropped], scope=scope, seed=2),
    ]
    private = dpcompile(model, loss=squares, passes=passes)
    for _ in range(4):
        step = private(x)
        masks = {name: mask for name, _ in model.named_parameters() if (mask := step.trained(name)) is not None}
        norms, total = reference(model, x, masks)
        torch.testing.assert_close(step.norms.double(), norms, rtol=1e-6, atol=1e-12)
        for name, gradient in total.items():
            torch.testing.assert_close(step.grads[name].double(), gradient, rtol=1e-6, atol=1e-9)
        private.reselect()
    assert len(private.steps.by_key) == 1


def test_a_layer_of_one_column_is_pruned_by_weights_and_dropped_by_rows() -> None:
    private = dpcompile(mlp(1, 64, 3), loss=squares, passes=[PrePruning(0.5), GradientDropping(0.5, granularity="rows", seed=0)])
    for _ in range(20):
        private(torch.randn(4, 1))
        private.reselect()


def test_given_rows_without_their_bias_and_dropped_rows() -> None:
    rows = torch.zeros(16, 5, dtype=torch.bool)
    rows[:8] = True
    passes = [PrePruning(masks={"0.weight": rows}), GradientDropping(0.5, granularity="rows", parameters=["0.weight"], seed=0)]
    private = dpcompile(mlp(5, 16, 3), loss=squares, passes=passes)
    for _ in range(20):
        private(torch.randn(4, 5))
        private.reselect()


@pytest.mark.parametrize("granularity", ["weights", "rows", "columns", "layers"])
def test_a_rate_that_leaves_nothing_leaves_nothing(granularity: str) -> None:
    model, x = mlp(5, 4, 3), torch.randn(3, 5)
    private = dpcompile(
        model, loss=squares, passes=[GradientDropping(0.9999, granularity=granularity, parameters=["*weight"], seed=0)]
    )
    step = private(x)
    for name, gradient in step.grads.items():
        mask = step.trained(name)
        assert mask is None or not (mask.any() or gradient.any())
    assert step.trained("0.weight") is not None and bool(step.norms.isfinite().all())


def test_masks_of_which_one_does_not_fit_change_nothing() -> None:
    private = dpcompile(mlp(5, 8, 4), loss=squares, passes=[GradientDropping(0.5, granularity="rows", seed=0)])
    selection = selection_of(private)
    before = {name: tensor.clone() for name, tensor in selection.named_buffers()}
    masks = {name: ~mask for name in selection.layouts if (mask := selection.mask(name)) is not None}
    masks["2.weight"] = torch.ones_like(masks["2.weight"])
    with pytest.raises(InvalidInput, match="does not fit"):
        selection.select(masks)
    assert all(torch.equal(tensor, before[name]) for name, tensor in selection.named_buffers())


def test_a_step_says_what_it_trained_until_another_part_is_chosen() -> None:
    private = dpcompile(mlp(5, 8, 4), loss=squares, passes=[PrePruning(0.5, parameters=["2.weight"]),
                                                            GradientDropping(0.5, seed=0, parameters=["0.weight"])])  # fmt: skip
    for batch in (torch.randn(3, 5), torch.randn(0, 5)):
        step = private(batch)
        mask = step.trained("0.weight")
        assert mask is not None and not step.grads["0.weight"][~mask].any() and step.trained("0.bias") is None
        private.reselect()
        with pytest.raises(InvalidInput, match=r"another part of 0\.weight has been chosen since this step"):
            step.trained("0.weight")
    assert dpcompile(mlp(5, 8, 4), loss=squares)(torch.randn(3, 5)).trained("0.weight") is None


def test_released_gradients_are_given_by_hand() -> None:
    private = dpcompile(mlp(5, 8, 4), loss=squares, passes=[GradientDropping(0.5, "released gradient", parameters=["0.weight"])])
    private(torch.randn(3, 5))
    with pytest.raises(InvalidInput, match=r"released=.parameter: noisy gradient"):
        private.reselect()
    noisy = torch.arange(40.0).view(8, 5)
    for _ in range(2):  # what was not trained in the first step comes first in the second
        private.reselect({"0.weight": noisy})
    mask = selection_of(private).mask("0.weight")
    assert mask is not None and torch.equal(mask, noisy >= 20)


def test_a_parameter_that_is_chosen_must_stay_trainable() -> None:
    private = dpcompile(mlp(5, 8, 4), loss=squares, passes=[PrePruning(0.5)])
    private(torch.randn(3, 5))
    private.model.get_parameter("0.weight").requires_grad_(False)
    with pytest.raises(InvalidInput, match=r"0\.weight is chosen by passes= and is trained no more"):
        private(torch.randn(3, 5))


def test_masks_are_the_passes_own_and_loaded_weights_are_pruned() -> None:
    mask = torch.rand(8, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    given, model = mask.clone(), mlp(5, 8, 4)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    private = dpcompile(model, loss=squares, passes=[PrePruning(masks={"0.weight": given}), GradientDropping(0.5, seed=0)])
    given.fill_(True)
    for _ in range(5):
        private.reselect()
        trained = selection_of(private).mask("0.weight")
        assert trained is not None and not (trained & ~mask).any()
    private.load_state_dict(state)
    assert not model.get_parameter("0.weight")[~mask].any() and torch.equal(model.get_parameter("2.weight"), state["2.weight"])


def bias_goes_with(layer: nn.Module, granularity: str) -> set[str]:
    """The parameters that are cut together."""
    model = nn.Sequential(layer)
    private = dpcompile(model, loss=squares, passes=[PrePruning(0.5, granularity=granularity)])
    return set(selection_of(private).layouts)


def test_a_bias_goes_with_rows_that_are_outputs() -> None:
    assert bias_goes_with(nn.Conv2d(6, 6, 3), "rows") == {"0.weight", "0.bias"}
    assert bias_goes_with(nn.ConvTranspose2d(6, 6, 3), "rows") == {"0.weight"}
    assert bias_goes_with(nn.LSTMCell(5, 4), "rows") == {"0.weight_ih", "0.weight_hh", "0.bias_ih", "0.bias_hh"}
    with pytest.raises(InvalidInput, match="weight of ConvTranspose2d, are inputs"):
        bias_goes_with(nn.ConvTranspose2d(6, 6, 3), "channels")


def test_masks_of_rows_take_a_byte_for_each_row() -> None:
    private = dpcompile(mlp(64, 32, 16), loss=squares, passes=[PrePruning(0.5, granularity="rows", parameters=["0.*"])])
    step = private(torch.randn(3, 64))
    selection, mask, chooser = selection_of(private), step.trained("0.weight"), private.chooser
    assert chooser is not None and mask is not None and mask.shape == (32, 64) and int(mask.sum()) == 16 * 64
    held = [*selection.buffers(), *chooser.left.values()]
    places = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    assert sum(places.values()) == 2 * (32 + 16 * 8), "weight and bias: 32 flags and 16 indices each"


def pickled(given: Any) -> Any:
    """Written and read again."""
    return pickle.loads(pickle.dumps(given))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_copied_steps_know_what_they_trained(copied: Callable[[Any], Any]) -> None:
    private = dpcompile(mlp(5, 8, 4), loss=squares, passes=[GradientDropping(0.5, seed=0, parameters=["0.weight"])])
    for _ in range(2):
        step = private(torch.randn(3, 5))
        mask, (other, twin) = step.trained("0.weight"), copied((private, step))
        assert mask is not None
        for module in (other, private):
            assert all(torch.equal(one.trained("0.weight"), mask) for one in (step, twin, copied(step)))
            module.reselect()
        assert torch.equal(twin.trained("0.weight"), mask), "a copy has masks of its own"
        for stale in (step, copied(step)):
            with pytest.raises(InvalidInput, match="has been chosen since"):
                stale.trained("0.weight")


@pytest.mark.parametrize("granularity", ["weights", "rows"])
def test_what_a_step_says_cannot_be_written_to(granularity: str) -> None:
    private = dpcompile(mlp(5, 8, 4), loss=squares, passes=[PrePruning(0.5, granularity=granularity, parameters=["0.weight"])])
    step = private(torch.randn(3, 5))
    for name in selection_of(private).layouts:
        before, told = step.trained(name), step.trained(name)
        assert before is not None and told is not None
        with contextlib.suppress(RuntimeError):  # what is expanded cannot be written to at all
            told.fill_(True)
        assert torch.equal(step.trained(name), before) and not before.all()


def test_weight_norm_of_rows_that_are_gone_is_refused() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(5, 4))
    model, before = nn.Sequential(layer), layer.weight.detach().clone()
    direction = "0.parametrizations.weight.original1"
    with pytest.raises(InvalidInput, match=f"computed from {direction} are no numbers"):
        dpcompile(model, loss=squares, passes=[PrePruning(0.5, granularity="rows", parameters=[direction])])
    assert torch.equal(layer.weight, before)
    private = dpcompile(model, loss=squares, passes=[PrePruning(0.5, granularity="columns", parameters=[direction])])
    assert bool(private(torch.randn(3, 5)).norms.isfinite().all())


def test_what_is_trained_as_a_whole_stays_so() -> None:
    everything = torch.ones(8, 5, dtype=torch.bool)
    private = dpcompile(mlp(5, 8, 4), loss=squares, passes=[PrePruning(masks={"0.weight": everything})])
    with pytest.raises(InvalidInput, match=r"0\.weight is trained as a whole"):
        selection_of(private).select({"0.weight": ~everything})
    private(torch.randn(3, 5))
