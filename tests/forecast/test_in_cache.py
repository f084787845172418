"""Chunks are chosen for their speed where a whole batch does not stay in the cache, and only there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from oracle import errors, expect
from torch import nn
from zoo_case import squares

from dpcompile import HARDWARE, dpcompile
from dpcompile.forecast.forecast import Outlook
from dpcompile.plan.plan import Plan

SMALL_CACHE = replace(HARDWARE["cpu"], cache=1e5, cache_bandwidth=1e12, bandwidth=1e9, fresh_bandwidth=1e9, launch=1e-7)
"""A machine on which memory is a thousand times slower than the cache, and operations start for nothing."""
BATCH = 64


def network(*more: nn.Module) -> nn.Module:
    """Elementwise work on 4096 numbers for each example."""
    return nn.Sequential(nn.Linear(4, 1024), nn.Tanh(), nn.Sigmoid(), *more, nn.Tanh(), nn.Linear(1024, 2)).double()


def chunk_of(model: nn.Module, row: Any = SMALL_CACHE, **options: Any) -> int | None:
    """The chunk size that is planned for 64 examples."""
    private = dpcompile(model, squares, hardware=row, **options)
    private(torch.randn(BATCH, 4).double())
    chunk: int | None = private.plan.microbatch
    return chunk


def test_chunks_that_stay_in_the_cache_are_taken_and_exact() -> None:
    model, x = network(), torch.randn(BATCH, 4).double()
    expected = expect(model, squares, (x,))
    private = dpcompile(model, squares, hardware=SMALL_CACHE, max_grad_norm=expected.max_grad_norm)
    assert max(errors(private(x), expected).values()) < 1e-9
    assert private.plan.microbatch is not None and private.plan.microbatch < BATCH
    outlook = private.ready().outlook
    whole = outlook.chosen(BATCH, SMALL_CACHE, None, float("inf"), None)
    assert outlook.seconds(private.plan, SMALL_CACHE, BATCH) < 0.92 * outlook.seconds(whole, SMALL_CACHE, BATCH)
    assert f"chunks of {private.plan.microbatch}" in str(private.report())


@pytest.mark.parametrize(
    "options",
    [{"schedule": "one-pass"}, {"strategy": "bookkeep"}, {"strategy": {"0.weight": "gram"}}, {"backend": "inductor"}],
    ids=str,
)
def test_what_the_user_has_settled_stays(options: dict[str, Any]) -> None:
    assert chunk_of(network(), **options) is None


def test_a_large_cache_a_gpu_and_draws_take_the_whole_batch() -> None:
    assert chunk_of(network(), replace(SMALL_CACHE, cache=1e12)) is None
    assert chunk_of(network(), HARDWARE["h200"]) is None
    assert chunk_of(network(nn.Dropout(0.1))) is None


@pytest.mark.parametrize(("later", "chunk"), [(0.5, 3), (0.95, None), (2.0, None)])
def test_a_small_first_batch_does_not_settle_chunks_for_a_large_one(
    later: float, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = dpcompile(network(), squares, hardware=SMALL_CACHE)
    private(torch.randn(6, 4).double())
    whole = private.ready().outlook.chosen(6, SMALL_CACHE, None, float("inf"), None)

    def seconds(self: Outlook, plan: Plan, row: Any, size: int) -> float:
        """Chunks of three take half of the time for six examples, and this share for many."""
        shares = {None: 1.0, 3: 0.5 if size == 6 else later}
        return size * shares.get(plan.microbatch, 3.0)

    monkeypatch.setattr(Outlook, "seconds", seconds)
    assert private.ready().outlook.in_cache(whole, 6, SMALL_CACHE).microbatch == chunk


@pytest.mark.parametrize(("threads", "least"), [(1, 1), (2, 16), (4, 32), (8, BATCH + 1)])
def test_several_threads_share_chunks_of_many_examples(threads: int, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    chunk = chunk_of(network(), replace(SMALL_CACHE, cache=1e6))
    assert (chunk is None) == (least > BATCH) and (chunk is None or chunk >= least)
