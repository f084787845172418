"""The knapsack equals brute force; a memory budget is obeyed by what the step really allocates, or refused by name."""

from __future__ import annotations

import itertools
import random
import re

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from zoo_case import squares

from benchmarks.measure import Step, peak_bytes
from dpcompile import BudgetError, InvalidInput, PrivateModule, dpcompile
from dpcompile.ir.cost import Cost
from dpcompile.plan.budget import fastest_within, kept, leanest
from dpcompile.plan.plan import Option


def options(seed: int) -> list[list[Option]]:
    """Some sites with some options each; prices that coincide now and then."""
    drawn = random.Random(seed)
    return [
        [
            Option(f"{site}.{number}", "sum", Cost(resident_bytes=float(drawn.choice([0, 1, 5, 1e3, 1e6]))), drawn.random())
            for number in range(drawn.randint(1, 4))
        ]
        for site in range(drawn.randint(1, 5))
    ]


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_the_knapsack_is_solved_exactly(seed: int, share: float) -> None:
    sites = options(seed)
    limit = share * sum(max(o.cost.resident_bytes for o in choices) for choices in sites)
    possible = [choice for choice in itertools.product(*sites) if kept(choice) <= limit]
    found = fastest_within(sites, limit)
    if not possible:
        assert found is None and kept(leanest(sites)) > limit
        return
    assert found is not None and kept(found) <= limit
    best = min(sum(option.seconds for option in choice) for choice in possible)
    assert sum(option.seconds for option in found) == pytest.approx(best)


def model() -> nn.Module:
    """A model whose gradients are worth materialising, and large."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 384), nn.ReLU(), nn.Linear(384, 96))


def peak(budget: str | float | None, batch: torch.Tensor) -> tuple[int, str]:
    """Measured peak of a warm step, and the report."""
    made: list[PrivateModule] = []
    present = model()

    def make() -> Step:
        made.append(dpcompile(present, loss=squares, memory_budget=budget))
        return lambda: made[0](batch).grads

    return peak_bytes(make, "cpu"), str(made[0].report())


def test_a_budget_is_obeyed_and_changes_nothing_else() -> None:
    x = torch.randn(64, 16, 96)
    free, _ = peak(None, x)
    expected = dpcompile(model(), loss=squares)(x)
    for share in (0.8, 0.5, 0.25):
        used, report = peak(share * free, x)
        assert used <= share * free, report
        step = dpcompile(model(), loss=squares, memory_budget=share * free)(x)
        assert_close(step.norms, expected.norms, rtol=1e-4, atol=0)
        assert_close(step.grads, expected.grads, rtol=1e-4, atol=1e-4)


def test_a_larger_batch_than_the_plan_was_made_for_runs_in_chunks() -> None:
    private = dpcompile(model(), loss=squares, memory_budget="8 MB")
    private(torch.randn(8, 16, 96))
    chunk = private.plan.microbatch
    x = torch.randn(50, 16, 96)
    assert chunk is not None and chunk <= 8
    assert_close(private(x).grads, dpcompile(model(), loss=squares)(x).grads, rtol=1e-4, atol=1e-4)


def test_a_budget_that_nothing_fits_names_the_smallest() -> None:
    x = torch.randn(64, 16, 96)
    with pytest.raises(BudgetError, match=r"memory_budget \(0.1 MB\).*predicted to need ([0-9.]+) MB") as refused:
        dpcompile(model(), loss=squares, memory_budget=1e5)(x)
    found = re.search(r"need ([0-9.]+) MB", str(refused.value))
    assert found is not None
    dpcompile(model(), loss=squares, memory_budget=f"{found[1]} MB")(x)


def test_the_smallest_budget_of_a_small_model_can_be_passed_back() -> None:
    small, x = nn.Linear(3, 2), torch.randn(2, 3)
    with pytest.raises(BudgetError, match=r"need ([0-9.]+) MB") as refused:
        dpcompile(small, loss=squares, memory_budget=1)(x)
    found = re.search(r"need ([0-9.]+) MB", str(refused.value))
    assert found is not None and float(found[1]) > 0
    dpcompile(small, loss=squares, memory_budget=f"{found[1]} MB")(x)


def test_what_fits_without_a_budget_fits_with_it() -> None:
    x = torch.randn(64, 16, 96)
    free = dpcompile(model(), loss=squares, example_batch=(x,)).report().forecast
    within = dpcompile(model(), loss=squares, memory_budget=free.peak_bytes, example_batch=(x,)).report()
    assert within.forecast.peak_bytes <= free.peak_bytes and "chunks" not in str(within)


def test_a_budget_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(InvalidInput, match="memory_budget must be"):
        dpcompile(model(), loss=squares, memory_budget="a lot")
