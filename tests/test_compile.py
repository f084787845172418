"""End to end over the zoo: norms, clip factors and clipped sums equal those of the plain loop."""

from __future__ import annotations

import copy
import threading
from functools import cache
from typing import Any

import pytest
import torch
from chunked import in_chunks
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Expected, errors, expect, one_example, per_example_gradients, relative_error, whole_norm
from torch import nn
from zoo import ZOO
from zoo_calling import RANDOM
from zoo_case import Case, squares

from dpcompile import StrategyError, dpcompile

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
UNBOUNDED = {
    "weight times its transpose", "temperature", "bilinear", "activated weights", "batch norm, evaluating",
    "spectral norm, evaluating", "spectral norm, training",
}  # fmt: skip
"""Weights that are changed by an unknown factor before they are used, and operations without a formula."""
FEW_NAMES = (
    "linear on sequences", "conv2d grouped", "module tie", "layer norm", "LSTM", "MLP", "nested inputs",
)  # fmt: skip
FEW = [case for case in ZOO if case.name in FEW_NAMES]
FORCED = [(case, "materialize") for case in FEW] + [
    (case, "gram") for case in FEW if case.contracts and case.name != "module tie"
]


@cache
def expected_of(case: Case, dtype: torch.dtype) -> Expected:
    """The oracle's step on three examples; losses and models are the same for every test of a case."""
    model, loss = case.build(dtype)
    return expect(model, loss, case.batch(3, dtype), case.kwargs(3, dtype), case.batch_dim)


def compiled(case: Case, dtype: torch.dtype, **options: Any) -> Any:
    """The private module of a case, with the clip norm of the oracle's step unless another one is given."""
    model, loss = case.build(dtype)
    options.setdefault("max_grad_norm", expected_of(case, dtype).max_grad_norm)
    return dpcompile(model, loss=loss, batch_dim=case.batch_dim, **options)


def worst(private: Any, case: Case, dtype: torch.dtype) -> tuple[float, dict[str, float]]:
    """The largest relative error of a step on three examples, and all of them."""
    found = errors(private(*case.batch(3, dtype), **case.kwargs(3, dtype)), expected_of(case, dtype))
    return max(found.values()), found


@pytest.mark.parametrize("case", ZOO, ids=str)
def test_step_equals_the_loop_in_float64_whole_and_in_chunks(case: Case) -> None:
    private = compiled(case, torch.float64)
    state = copy.deepcopy(private.state_dict())
    private(*case.batch(3, torch.float64), **case.kwargs(3, torch.float64))
    for chunk in (None, 1, 2):  # one compiled graph serves all of them
        in_chunks(private, chunk)
        private.load_state_dict(state)  # a step may have moved buffers
        error, found = worst(private, case, torch.float64)
        assert error < TOLERANCE[torch.float64], (chunk, found)


@pytest.mark.parametrize("case", ZOO, ids=str)
def test_two_passes_equal_the_loop_or_rounding_has_no_bound(case: Case) -> None:
    private = compiled(case, torch.float64, schedule="two-pass")
    if case.name in UNBOUNDED:
        with pytest.raises(StrategyError, match=r"whose rounding is bounded.* Use schedule=\"one-pass\""):
            private(*case.batch(3, torch.float64), **case.kwargs(3, torch.float64))
        return
    error, found = worst(private, case, torch.float64)
    assert error < TOLERANCE[torch.float64 if is_double(private) else torch.float32], found
    assert private.plan.cut is not None


def is_double(private: Any) -> bool:
    """Whether the whole graph computes in float64; some models compute parts in float32 whatever their parameters are."""
    values = [node.meta.get("val") for node in private.graph_module.graph.nodes]
    floats = [value.dtype for value in values if isinstance(value, torch.Tensor) and value.dtype.is_floating_point]
    return torch.float32 not in floats


@pytest.mark.parametrize("case", ZOO, ids=str)
def test_step_equals_the_loop_in_float32_and_bounds_every_single_example(case: Case) -> None:
    private = compiled(case, torch.float32)
    error, found = worst(private, case, torch.float32)
    assert error < TOLERANCE[torch.float32], found
    for index in range(3):
        args, kwargs = one_example(case.batch(3, torch.float32), case.kwargs(3, torch.float32), case.batch_dim, index)
        bound = expected_of(case, torch.float32).max_grad_norm * (1 + 1e-4)
        assert whole_norm(private(*args, **kwargs).grads) <= bound


@pytest.mark.parametrize(("case", "strategy"), FORCED, ids=str)
def test_forced_strategy_changes_nothing_but_the_way(case: Case, strategy: str) -> None:
    private = compiled(case, torch.float64, strategy=strategy)
    error, found = worst(private, case, torch.float64)
    assert error < TOLERANCE[torch.float64], found
    assert strategy in str(private.report())


@pytest.mark.parametrize("schedule", ["one-pass", "two-pass", "microbatch"])
@pytest.mark.parametrize("first", [0, 1, 2, 5])
@pytest.mark.parametrize("case", FEW, ids=str)
def test_one_object_serves_every_batch_size(case: Case, first: int, schedule: str) -> None:
    private = compiled(case, torch.float64, schedule=schedule)
    model, loss = case.build(torch.float64)
    for size in (first, 2, 0, 5, 1):
        batch, kwargs = case.batch(size, torch.float64), case.kwargs(size, torch.float64)
        expected = expect(model, loss, batch, kwargs, case.batch_dim, expected_of(case, torch.float64).max_grad_norm)
        found = errors(private(*batch, **kwargs), expected)
        assert max(found.values()) < TOLERANCE[torch.float64], (size, found)


@pytest.mark.parametrize("max_grad_norm", [1e-6, 1e6])
@pytest.mark.parametrize("case", FEW, ids=str)
def test_clip_norms_far_below_and_above_all_norms(case: Case, max_grad_norm: float) -> None:
    model, loss = case.build(torch.float64)
    batch, kwargs = case.batch(3, torch.float64), case.kwargs(3, torch.float64)
    expected = expect(model, loss, batch, kwargs, case.batch_dim, max_grad_norm)
    found = errors(compiled(case, torch.float64, max_grad_norm=max_grad_norm)(*batch, **kwargs), expected)
    assert max(found.values()) < TOLERANCE[torch.float64], found


@pytest.mark.parametrize("case", FEW, ids=str)
def test_per_example_gradients_equal_the_loop(case: Case) -> None:
    model, loss = case.build(torch.float64)
    batch, kwargs = case.batch(3, torch.float64), case.kwargs(3, torch.float64)
    _, expected = per_example_gradients(model, loss, batch, kwargs, case.batch_dim)
    actual = compiled(case, torch.float64).per_example_gradients(*batch, **kwargs)
    scale = expected_of(case, torch.float64).norms.max()
    assert max(relative_error(actual[name], g, scale) for name, g in expected.items()) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("case", RANDOM, ids=str)
def test_random_models_use_one_draw_for_norm_and_sum(case: Case) -> None:
    model, loss = case.build(torch.float64)
    private = dpcompile(model, loss=loss, max_grad_norm=0.1)
    for size in (1, 1, 1):
        step = private(*case.batch(size, torch.float64))
        assert whole_norm(step.grads) == pytest.approx(float(step.norms * step.clip_factors), rel=1e-9)


def test_permuting_the_batch_permutes_norms_and_keeps_the_sum() -> None:
    private, order = dpcompile(nn.Linear(5, 3).double(), loss=squares), torch.tensor([2, 0, 3, 1])
    x = torch.randn(4, 5, dtype=torch.float64)
    step, permuted = private(x), private(x[order])
    assert torch.allclose(permuted.norms, step.norms[order], rtol=1e-12)
    assert torch.allclose(permuted.grads["weight"], step.grads["weight"], rtol=1e-12)


def test_sums_of_two_batches_add_up_to_the_sum_of_both() -> None:
    private = dpcompile(nn.Linear(5, 3).double(), loss=squares)
    x, y = torch.randn(3, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    both = private(torch.cat([x, y])).grads["weight"]
    assert torch.allclose(both, private(x).grads["weight"] + private(y).grads["weight"], rtol=1e-12)


@settings(max_examples=15)
@given(
    size=st.integers(0, 5),
    positions=st.integers(1, 5),
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 5),
    tied=st.booleans(),
)
def test_any_sizes_even_when_axes_coincide(size: int, positions: int, inputs: int, outputs: int, tied: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, outputs), nn.Tanh(), nn.Linear(outputs, inputs)).double()
    if tied and inputs == outputs:
        model[2].weight = model[0].weight
    x = torch.randn(size, positions, inputs, dtype=torch.float64)
    found = errors(dpcompile(model, loss=squares, max_grad_norm=0.5)(x), expect(model, squares, (x,), max_grad_norm=0.5))
    assert max(found.values()) < TOLERANCE[torch.float64], found


def test_threads_may_make_the_first_call_together() -> None:
    private, x, found = dpcompile(nn.Linear(5, 3), loss=squares), torch.randn(4, 5), list[torch.Tensor]()
    threads = [threading.Thread(target=lambda: found.append(private(x).norms)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(torch.equal(norms, found[0]) for norms in found)
