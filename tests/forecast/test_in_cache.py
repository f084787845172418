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
from dpcompile.forecast import fitting
from dpcompile.forecast.forecast import Outlook
from dpcompile.plan.plan import Plan
from dpcompile.predict.memory import memory

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
    outlook = private.ready().outlook

    def of_size(chunk: int | None) -> Plan:
        return outlook.chosen(6, SMALL_CACHE, chunk, float("inf"), None)

    def seconds(self: Outlook, plan: Plan, row: Any, size: int) -> float:
        """Chunks of three take half of the time for six examples, and this share for many."""
        shares = {None: 1.0, 3: 0.5 if size == 6 else later}
        return size * shares.get(plan.microbatch, 3.0)

    monkeypatch.setattr(Outlook, "seconds", seconds)
    assert outlook.in_cache(of_size(None), of_size, 6, SMALL_CACHE).microbatch == chunk


def test_the_leanest_of_those_that_are_clearly_faster_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    private = dpcompile(network(), squares, hardware=SMALL_CACHE)
    private(torch.randn(BATCH, 4).double())
    outlook = private.ready().outlook

    def of_size(chunk: int | None) -> Plan:
        return outlook.chosen(BATCH, SMALL_CACHE, chunk, float("inf"), None)

    shares = {None: 1.0, 32: 0.905, 16: 0.93}  # predicted alike; the smaller is leaner, and not clearly faster than the whole
    monkeypatch.setattr(Outlook, "seconds", lambda self, plan, row, size: size * shares.get(plan.microbatch, 3.0))
    monkeypatch.setattr(Outlook, "peak_bytes", lambda self, plan, size: plan.microbatch or size)
    assert outlook.in_cache(of_size(None), of_size, BATCH, SMALL_CACHE).microbatch == 32
    shares[16] = 0.91
    assert outlook.in_cache(of_size(None), of_size, BATCH, SMALL_CACHE).microbatch == 16


SLOWER_CACHE = replace(SMALL_CACHE, bandwidth=1e10, cache_bandwidth=1e11)


def planned(positions: int, width: int, cache: float) -> tuple[Outlook, Plan, Plan, float]:
    """What predicts a network's step, its plan, the fastest one in chunks as large, and the memory of the ordinary step."""
    layers = [nn.Linear(16, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()]
    row = replace(SLOWER_CACHE, cache=cache)
    private = dpcompile(nn.Sequential(*layers, nn.Linear(width, 2)), squares, hardware=row)
    private(torch.randn(BATCH, positions, 16))
    outlook = private.ready().outlook
    fastest = outlook.chosen(BATCH, row, private.plan.microbatch, float("inf"), None)
    return outlook, private.plan, fastest, memory(outlook.source.joint, BATCH).peak


def test_chunks_for_speed_keep_to_the_preference_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "ROOM", 0.0)
    outlook, plan, fastest, ordinary = planned(16, 64, 4e6)
    assert plan.is_chunked and outlook.peak_bytes(plan, BATCH) <= 1.3 * ordinary < outlook.peak_bytes(fastest, BATCH)


def test_of_chunks_that_are_predicted_alike_the_leanest_is_taken() -> None:
    outlook, plan, _, _ = planned(16, 128, 4e6)
    larger = outlook.chosen(BATCH, outlook.hardware, 2 * (plan.microbatch or 0), float("inf"), None)
    before, after = (outlook.seconds(p, outlook.hardware, BATCH) for p in (larger, plan))
    assert before < after < 1.03 * before
    assert outlook.peak_bytes(plan, BATCH) < 0.7 * outlook.peak_bytes(larger, BATCH)


@pytest.mark.parametrize(("threads", "least"), [(1, 1), (2, 16), (4, 32), (8, BATCH + 1)])
def test_several_threads_share_chunks_of_many_examples(threads: int, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    chunk = chunk_of(network(), replace(SMALL_CACHE, cache=1e6))
    assert (chunk is None) == (least > BATCH) and (chunk is None or chunk >= least)
