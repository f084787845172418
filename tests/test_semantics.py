"""The table of semantics, row by row: what a step means in every special case."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import errors, expect, relative_error, whole_norm
from torch import Tensor, nn
from zoo_case import squares
from zoo_layers import Conditional, PrototypeLoss, Using, spectral
from zoo_networks import mlp

from dpcompile import DPCompileError, VerificationError, dpcompile

SCHEDULES = pytest.mark.parametrize("schedule", ["one-pass", "two-pass", "microbatch"])
WAYS = pytest.mark.parametrize(
    ("schedule", "backend"),
    [("one-pass", "eager"), ("two-pass", "eager"), ("microbatch", "eager"), ("one-pass", "inductor"), ("two-pass", "inductor")],
)


def weighted(model: nn.Module, x: Tensor, w: Tensor) -> Tensor:
    """Losses f[B] with a weight for each example, through which a test makes one zero, infinite or NaN."""
    return w * squares(model, x)


def small_model() -> nn.Module:
    """The model of every test that also runs on inductor."""
    torch.manual_seed(0)
    return mlp(3, 5, 2)


@cache
def small(schedule: str, backend: str) -> Any:
    """Its private module; compiled once for all tests of this file."""
    return dpcompile(small_model(), loss=weighted, max_grad_norm=0.5, schedule=schedule, backend=backend)


def small_batch(size: int = 5) -> tuple[Tensor, Tensor]:
    """Inputs f[B, 3] and weights f[B]."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, generator=generator), 0.5 + torch.rand(size, generator=generator)


# -- criteria ----------------------------------------------------------------------------------------------


def token_model() -> nn.Module:
    """Scores f[B, 3, T] of T tokens."""
    return Using(lambda m, x: m.a(x).transpose(1, 2), a=nn.Linear(2, 3))


@SCHEDULES
def test_mean_reduction_counts_an_examples_own_elements_that_are_not_ignored(schedule: str) -> None:
    model, x, y = (
        token_model(),
        torch.randn(2, 5, 2),
        torch.tensor([[0, 1, -100, -100, -100], [0, 1, 2, 0, 1]]),
    )
    step = dpcompile(model, loss=nn.CrossEntropyLoss(), schedule=schedule)(x, y)
    values = F.cross_entropy(model(x), y, reduction="none")
    assert torch.allclose(step.losses, values.sum(1) / torch.tensor([2, 5]))


@SCHEDULES
def test_sum_reduction_sums_an_examples_own_elements(schedule: str) -> None:
    model, x, y = token_model(), torch.randn(2, 5, 2), torch.randint(0, 3, (2, 5))
    step = dpcompile(model, loss=nn.CrossEntropyLoss(reduction="sum"), schedule=schedule)(x, y)
    assert torch.allclose(step.losses, F.cross_entropy(model(x), y, reduction="none").sum(1))


def test_reduction_none_is_reduced_as_mean() -> None:
    model, x, y = nn.Linear(3, 2), torch.randn(5, 3), torch.randn(5, 2)
    step = dpcompile(model, loss=nn.MSELoss(reduction="none"))(x, y)
    assert torch.allclose(step.losses, (model(x) - y).square().mean(1))


def test_class_weights_multiply_and_are_not_normalised() -> None:
    model, x, y, weight = (
        nn.Linear(3, 2),
        torch.randn(5, 3),
        torch.tensor([0, 1, 1, 0, 1]),
        torch.tensor([2.0, 7.0]),
    )
    step = dpcompile(model, loss=nn.CrossEntropyLoss(weight=weight))(x, y)
    assert torch.allclose(step.losses, weight[y] * F.cross_entropy(model(x), y, reduction="none"))


@SCHEDULES
def test_example_with_all_elements_ignored_has_no_loss_and_no_gradient(schedule: str) -> None:
    model, x = token_model(), torch.randn(2, 5, 2)
    y = torch.stack([torch.full((5,), -100), torch.tensor([0, 1, 2, 0, 1])])
    private = dpcompile(model, loss=nn.CrossEntropyLoss(), schedule=schedule)
    step, alone = private(x, y), private(x[1:], y[1:])
    assert step.losses[0] == 0 and step.norms[0] == 0 and step.clip_factors[0] == 1
    assert relative_error(step.grads["a.weight"], alone.grads["a.weight"].double(), 1.0) < 1e-6


@SCHEDULES
def test_scalar_loss_is_refused_with_the_fix(schedule: str) -> None:
    with pytest.raises(DPCompileError, match="reduction"):
        dpcompile(nn.Linear(3, 2), loss=lambda m, x: m(x).mean(), schedule=schedule)(torch.randn(5, 3))


# -- masked, non-finite, zero and empty ----------------------------------------------------------------------


@WAYS
def test_masked_examples_contribute_nothing_whatever_they_hold(schedule: str, backend: str) -> None:
    x, w = small_batch()
    mask = torch.tensor([True, False, True, True, False])
    expected = expect(small_model(), weighted, (x[mask], w[mask]), max_grad_norm=0.5)
    for filling in (0.0, 1e30, torch.inf, torch.nan):
        padded = x.masked_fill(~mask[:, None], filling)
        step = small(schedule, backend)(padded, w, mask=mask)
        assert not (step.losses[~mask].any() or step.norms[~mask].any() or step.clip_factors[~mask].any())
        assert relative_error(step.norms[mask], expected.norms, expected.norms.max()) < 1e-5
        assert all(relative_error(step.grads[name], g, 0.5) < 1e-5 for name, g in expected.sums.items())


@WAYS
def test_all_examples_masked_is_an_empty_sum(schedule: str, backend: str) -> None:
    step = small(schedule, backend)(*small_batch(), mask=torch.zeros(5, dtype=torch.bool))
    assert whole_norm(step.grads) == 0.0


@WAYS
@pytest.mark.parametrize("weight", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_example_is_reported_and_contributes_nothing(weight: float, schedule: str, backend: str) -> None:
    x, w = small_batch()
    others = torch.tensor([0, 1, 3, 4])
    expected = expect(small_model(), weighted, (x[others], w[others]), max_grad_norm=0.5)
    step = small(schedule, backend)(x, w.index_fill(0, torch.tensor([2]), weight))
    assert step.nonfinite.tolist() == [False, False, True, False, False]
    assert step.clip_factors[2] == 0 and not step.losses[2].isfinite() and not step.norms[2].isfinite()
    assert all(relative_error(step.grads[name], g, 0.5) < 1e-5 for name, g in expected.sums.items())


@WAYS
def test_overflow_of_the_squared_norm_never_breaks_the_bound(schedule: str, backend: str) -> None:
    x, w = small_batch(1)
    step = small(schedule, backend)(x, w * 1e25)
    assert step.nonfinite.tolist() == [not bool(step.norms.isfinite())]
    assert step.clip_factors[0] == 0 or step.norms.isfinite().all()
    assert whole_norm(step.grads) <= 0.5 * (1 + 1e-4)


@WAYS
def test_zero_gradient_has_factor_one_and_contributes_nothing(schedule: str, backend: str) -> None:
    x, w = small_batch(1)
    step = small(schedule, backend)(x, w * 0)
    assert step.norms.tolist() == [0.0] and step.clip_factors.tolist() == [1.0] and not step.nonfinite.any()
    assert whole_norm(step.grads) == 0.0


@WAYS
def test_empty_batch_gives_empty_vectors_and_zero_sums(schedule: str, backend: str) -> None:
    step = small(schedule, backend)(*small_batch(0))
    assert all(v.shape == (0,) for v in (step.losses, step.norms, step.clip_factors, step.nonfinite))
    assert {name: g.shape for name, g in step.grads.items()} == {n: p.shape for n, p in small_model().named_parameters()}
    assert whole_norm(step.grads) == 0.0


@WAYS
@pytest.mark.parametrize("size", [1, 2, 3, 15, 16, 17, 33])
def test_boundary_batch_sizes_run_the_same_graph(size: int, schedule: str, backend: str) -> None:
    found = errors(
        small(schedule, backend)(*small_batch(size)),
        expect(small_model(), weighted, small_batch(size), max_grad_norm=0.5),
    )
    assert max(found.values()) < 1e-5, found


# -- parameters and buffers --------------------------------------------------------------------------------


@SCHEDULES
def test_unused_parameter_has_zero_gradient_and_a_note(schedule: str) -> None:
    model = Using(lambda m, x: m.a(x), a=nn.Linear(3, 2), spare=nn.Linear(5, 7))
    private = dpcompile(model, loss=squares, schedule=schedule)
    step = private(torch.randn(5, 3))
    assert step.grads["spare.weight"].shape == (7, 5) and not step.grads["spare.weight"].any()
    assert "spare.weight" in str(private.report())


@SCHEDULES
def test_frozen_parameter_is_absent(schedule: str) -> None:
    model = mlp(3, 5, 2)
    model[0].requires_grad_(False)
    assert set(dpcompile(model, loss=squares, schedule=schedule)(torch.randn(5, 3)).grads) == {
        "2.weight",
        "2.bias",
    }


@SCHEDULES
def test_frozen_parameter_may_change_its_value_between_steps(schedule: str) -> None:
    model = mlp(3, 5, 2).double()
    model[0].requires_grad_(False)
    private, x = dpcompile(model, loss=squares, schedule=schedule), torch.randn(5, 3, dtype=torch.float64)
    private(x)
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(3)
    found = errors(private(x), expect(model, squares, (x,), max_grad_norm=1.0))
    assert max(found.values()) < 1e-9, found


class Counting(nn.Linear):
    """A layer that counts its calls."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__(5, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


@pytest.mark.parametrize(
    ("make", "schedule"),  # spectral norm changes a weight by an unknown factor, which a second backward pass refuses
    [(lambda: spectral(training=True), "one-pass"), (lambda: spectral(training=True), "microbatch")]
    + [(Counting, schedule) for schedule in ("one-pass", "two-pass", "microbatch")],
)
def test_buffers_that_ignore_the_batch_are_updated_once_per_step(make: Callable[[], nn.Module], schedule: str) -> None:
    model = make()
    ordinary = copy.deepcopy(model)
    ordinary(torch.randn(5, 5))
    dpcompile(model, loss=squares, schedule=schedule)(torch.randn(5, 5))
    assert all(torch.allclose(a, b) for a, b in zip(model.buffers(), ordinary.buffers(), strict=True))


@SCHEDULES
def test_buffers_that_follow_the_batch_are_refused(schedule: str) -> None:
    norm = nn.BatchNorm1d(3, affine=False)
    model = Using(lambda m, x: m.a(m.norm(x)), norm=norm, a=nn.Linear(3, 2))
    with pytest.raises(DPCompileError, match="norm"):
        dpcompile(model, loss=squares, schedule=schedule)(torch.randn(5, 3))
    assert norm.running_mean is not None and not norm.running_mean.any() and norm.num_batches_tracked == 0


@SCHEDULES
def test_parameters_of_the_loss_are_included(schedule: str) -> None:
    private = dpcompile(nn.Linear(3, 5), loss=PrototypeLoss(7, 5), schedule=schedule)
    step = private(torch.randn(4, 3), torch.randint(0, 7, (4,)))
    assert set(step.grads) == {"weight", "bias", "loss.prototypes"}


def test_tensor_reached_by_closure_is_named_as_a_constant() -> None:
    offset = torch.randn(2)
    private = dpcompile(nn.Linear(3, 2), loss=lambda m, x: (m(x) - offset).square().sum(1))
    private(torch.randn(5, 3))
    assert "constant" in str(private.report())


@SCHEDULES
def test_sparse_gradients_come_out_dense(schedule: str) -> None:
    private = dpcompile(nn.Embedding(7, 3, sparse=True), loss=squares, schedule=schedule)
    assert private(torch.randint(0, 7, (5, 2))).grads["weight"].layout is torch.strided


# -- random numbers ----------------------------------------------------------------------------------------


@SCHEDULES
def test_dropout_masks_are_the_same_in_norm_and_sum(schedule: str) -> None:
    # Example i is the only one that touches row i, so its clipped gradient can be read off the sum.
    model = nn.Sequential(nn.Embedding(5, 31), nn.Dropout(0.5)).double()
    step = dpcompile(model, loss=squares, max_grad_norm=1.0, schedule=schedule)(torch.arange(5))
    assert torch.allclose(step.grads["0.weight"].norm(dim=1), step.norms * step.clip_factors, rtol=1e-9)


@SCHEDULES
def test_dropout_masks_change_from_step_to_step_and_example_to_example(schedule: str) -> None:
    model = nn.Sequential(nn.Embedding(2, 31), nn.Dropout(0.5))
    private = dpcompile(model, loss=squares, schedule=schedule)
    first, second = private(torch.zeros(3, dtype=torch.long)), private(torch.zeros(3, dtype=torch.long))
    assert len({*first.norms.tolist(), *second.norms.tolist()}) == 6


def test_dropout_follows_the_seed() -> None:
    private = dpcompile(nn.Sequential(nn.Linear(3, 31), nn.Dropout(0.5)), loss=squares)
    x, steps = torch.randn(5, 3), []
    private(x)
    for _ in range(2):
        torch.manual_seed(3)
        steps.append(private(x).norms)
    assert torch.equal(*steps)


# -- calling -----------------------------------------------------------------------------------------------


@SCHEDULES
def test_max_grad_norm_may_change_between_steps(schedule: str) -> None:
    model, x = nn.Linear(3, 2).double(), torch.randn(5, 3, dtype=torch.float64)
    private = dpcompile(model, loss=squares, max_grad_norm=1e6, schedule=schedule)
    assert private(x).clip_factors.tolist() == [1.0] * 5
    private.max_grad_norm = 1e-3
    found = errors(private(x), expect(model, squares, (x,), max_grad_norm=1e-3))
    assert max(found.values()) < 1e-9, found


@SCHEDULES
def test_shared_tensors_and_keyword_arguments_are_told_apart(schedule: str) -> None:
    model = Using(lambda m, x, table, *, bias: m.a(x) * table + bias, a=nn.Linear(3, 2))
    private = dpcompile(model, loss=squares, batch_dim=(0, None), schedule=schedule)
    x, table, bias = torch.randn(5, 3), torch.randn(2), torch.randn(5, 2)
    found = errors(private(x, table, bias=bias), expect(model, squares, (x, table), {"bias": bias}, (0, None), 1.0))
    assert max(found.values()) < 1e-5, found


@SCHEDULES
def test_backward_adds_the_clipped_sum_to_grad(schedule: str) -> None:
    model, x = mlp(3, 5, 2), torch.randn(5, 3)
    private = dpcompile(model, loss=squares, schedule=schedule)
    private.backward(x)
    step = private.backward(x)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.allclose(parameter.grad, 2 * step.grads[name])


def test_backward_keeps_the_parameters_dtype() -> None:
    model, x = nn.Linear(3, 2).bfloat16(), torch.randn(5, 3, dtype=torch.bfloat16)
    step = dpcompile(model, loss=squares).backward(x)
    assert model.weight.grad is not None and model.weight.grad.dtype == torch.bfloat16
    assert step.norms.dtype == torch.float32 and step.grads["weight"].dtype == torch.float32


def test_losses_norms_and_factors_carry_no_autograd_graph() -> None:
    step = small("one-pass", "eager")(*small_batch())
    assert not any(t.requires_grad for t in (step.losses, step.norms, step.clip_factors, *step.grads.values()))


# -- verification ------------------------------------------------------------------------------------------


@SCHEDULES
def test_verify_agrees_and_touches_neither_grad_nor_random_state(schedule: str) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5), nn.Linear(5, 2))
    private, state = dpcompile(model, loss=squares, schedule=schedule), torch.get_rng_state()
    assert private.verify(torch.randn(5, 3, generator=torch.Generator().manual_seed(0))).ok
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("strict", [False, True])
def test_verify_finds_a_loss_that_changed_behind_the_graphs_back(strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTOR", "1")

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return float(os.environ["FACTOR"]) * squares(model, x)  # what a trace reads here nobody can watch

    private, x = dpcompile(nn.Linear(3, 2), loss=loss), torch.randn(5, 3)
    private(x)
    monkeypatch.setenv("FACTOR", "2")
    if strict:
        with pytest.raises(VerificationError, match="weight"):
            private.verify(x, strict=True)
    else:
        assert not private.verify(x).ok


# -- guards ------------------------------------------------------------------------------------------------


def change_nothing(model: Conditional) -> None:
    """The case in which the graph of the first step must still be right."""


def unfreeze(model: Conditional) -> None:
    """Train a layer that was frozen at the first step."""
    model.b.requires_grad_(True)


def switch_off(model: Conditional) -> None:
    """Leave a layer out by a Python attribute."""
    model.use = False


def tie(model: Conditional) -> None:
    """Let two layers share one weight."""
    model.b.weight = model.a.weight


def replace_weight(model: Conditional) -> None:
    """Put a new parameter object in the place of an old one."""
    model.a.weight = nn.Parameter(torch.randn_like(model.a.weight))


def change_values(model: Conditional) -> None:
    """What an optimizer does."""
    with torch.no_grad():
        model.a.weight.mul_(2.0)


def to_float32(model: Conditional) -> None:
    """Another floating-point type for parameters that stay the same objects."""
    model.float()


CHANGES = (change_nothing, unfreeze, switch_off, tie, replace_weight, change_values, to_float32)


@SCHEDULES
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_change_of_the_model_between_steps_is_never_ignored(change: Any, schedule: str) -> None:
    model = Conditional().double()
    model.b.requires_grad_(False)
    private, x = dpcompile(model, loss=squares, schedule=schedule), torch.randn(5, 6)
    private(x.double())
    change(model)
    batch = (x.to(model.a.weight.dtype),)
    found = errors(private(*batch), expect(model, squares, batch, max_grad_norm=1.0))
    assert max(found.values()) < (1e-9 if model.a.weight.dtype == torch.float64 else 1e-5), found


def test_evaluation_mode_after_training_mode_drops_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5), nn.Linear(5, 2)).double()
    private, x = dpcompile(model, loss=squares), torch.randn(5, 3, dtype=torch.float64)
    private(x)
    model.eval()
    found = errors(private(x), expect(model, squares, (x,), max_grad_norm=1.0))
    assert max(found.values()) < 1e-9, found


def test_new_sequence_length_and_memory_format_are_served() -> None:
    model = nn.Conv2d(2, 3, 3).double()
    private = dpcompile(model, loss=squares)
    for x in (
        torch.randn(4, 2, 5, 7),
        torch.randn(4, 2, 7, 5),
        torch.randn(4, 2, 5, 7).contiguous(memory_format=torch.channels_last),
    ):
        found = errors(private(x.double()), expect(model, squares, (x,), max_grad_norm=1.0))
        assert max(found.values()) < 1e-9, found
