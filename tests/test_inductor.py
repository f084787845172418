"""Generated code: found again in inductor's cache, and right for every batch size then too."""

from __future__ import annotations

import logging

import pytest
import torch
from oracle import errors, expect
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_inductor_cache
from zoo_case import squares
from zoo_networks import mlp

from dpcompile import dpcompile


def test_generated_code_is_found_again_and_right_for_other_sizes(caplog: pytest.LogCaptureFixture) -> None:
    model = mlp(5, 7, 3).double()
    counters.clear()
    with fresh_inductor_cache(), caplog.at_level(logging.WARNING):
        for first in (4, 4, 7):
            private = dpcompile(model, loss=squares, backend="inductor", max_grad_norm=0.5)
            for size in (first, 1, 3, 11):
                x = torch.randn(size, 5, dtype=torch.float64)
                found = errors(private(x), expect(model, squares, (x,), {}, 0, max_grad_norm=0.5))
                assert max(found.values()) < 1e-9, (first, size, found)
    known = counters["inductor"]
    assert known["fxgraph_cache_miss"] == 1 and known["fxgraph_cache_hit"] == 2 and not known["fxgraph_cache_bypass"]
    assert "cache key" not in caplog.text


def test_other_weights_of_the_same_model_have_their_own_results() -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    with fresh_inductor_cache():
        for seed in range(2):
            torch.manual_seed(seed)
            model = mlp(5, 7, 3).double()
            private = dpcompile(model, loss=squares, backend="inductor", max_grad_norm=0.5)
            found = errors(private(x), expect(model, squares, (x,), {}, 0, max_grad_norm=0.5))
            assert max(found.values()) < 1e-9, (seed, found)
