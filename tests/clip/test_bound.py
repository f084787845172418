"""The promise of every kind: adding or removing one example changes the sum by at most the declared sensitivity."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from oracle import whole_norm
from torch import Tensor, nn
from zoo_layers import Using

from dpcompile import PSAC, Automatic, Global, GroupWise, Normalized, dpcompile
from dpcompile.kernels.clipping import reached

SLACK = 1e-5
WIDTH, POSITIONS = 6, 5
STRATEGIES = ("gram", "materialize", "fused")
KINDS: dict[str, Any] = {
    "flat": "flat", "automatic": "automatic", "automatic, 1e-20": Automatic(1e-20), "normalized": "normalized", "psac": "psac",
    "psac, 1e-20": PSAC(1e-20), "global": "global", "global, 3": Global(3.0), "per-layer": "per-layer",
    "group-wise": GroupWise({"*weight": 0.5, "*bias": 1.5}),
}  # fmt: skip
NAMES = ("huge", "tiny", "zero", "nan", "inf", "overflowing", "cancelling", "ordinary", "one_branch_nan", "one_branch_tiny")


def two_branches() -> nn.Module:
    """Two layers that see inputs of their own, so that an example can be fine in one and not in the other."""
    return Using(lambda m, x, z: (m.a(x), m.b(z)), a=nn.Linear(WIDTH, WIDTH), b=nn.Linear(WIDTH, WIDTH))


def given_gradients(model: nn.Module, x: Tensor, z: Tensor, g: Tensor, h: Tensor) -> Tensor:
    """Losses whose gradients with respect to the two outputs are g and h."""
    first, second = model(x, z)
    return (first * g).flatten(1).sum(1) + (second * h).flatten(1).sum(1)


def adversaries() -> tuple[Tensor, ...]:
    """One example of every name, f32."""
    generator = torch.Generator().manual_seed(0)
    x, z, g, h = (torch.randn(len(NAMES), POSITIONS, WIDTH, generator=generator) for _ in range(4))
    sizes = {"huge": 1e15, "tiny": 1e-20, "zero": 0.0, "nan": float("nan"), "inf": float("inf"), "overflowing": 1e30}
    for name, size in sizes.items():
        g[NAMES.index(name)] *= size
        h[NAMES.index(name)] *= size
    row = NAMES.index("cancelling")
    x[row] += 10
    z[row] += 10
    g[row] -= g[row].mean(0)
    h[row] -= h[row].mean(0)
    g[NAMES.index("one_branch_nan")] = float("nan")
    g[NAMES.index("one_branch_tiny")] *= 1e-20
    return x, z, g, h


@cache
def compiled(kind: str, strategy: str) -> Any:
    """A step of this kind; compiled once."""
    torch.manual_seed(0)
    return dpcompile(two_branches(), given_gradients, clipping=KINDS[kind], strategy=strategy)


def change(private: Any, batch: tuple[Tensor, ...], row: int, mask: Tensor | None = None) -> float:
    """How much the sum changes when one example is removed."""
    left = torch.arange(len(batch[0])) != row
    with_it = private(*batch, mask=mask).grads
    without = private(*(t[left] for t in batch), mask=None if mask is None else mask[left]).grads
    assert all(bool(total.isfinite().all()) for total in with_it.values())
    return whole_norm({name: with_it[name].double() - without[name].double() for name in with_it})


WAYS = [*((kind, "auto") for kind in KINDS), *((k, s) for k in ("normalized", "global", "per-layer") for s in STRATEGIES)]


@pytest.mark.parametrize(("kind", "strategy"), WAYS)
def test_one_example_changes_the_sum_by_at_most_the_sensitivity(kind: str, strategy: str) -> None:
    private, batch = compiled(kind, strategy), adversaries()
    for norm in (private.max_grad_norm, 1e-3):
        for row, name in enumerate(NAMES):
            assert change(private, batch, row) <= norm * (1 + SLACK), name
        private.max_grad_norm = 1e-3
    private.max_grad_norm = private.kind.own_norm or 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_in_one_group_contributes_nothing_anywhere(kind: str) -> None:
    private, batch = compiled(kind, "auto"), adversaries()
    rows = [NAMES.index(name) for name in ("nan", "inf", "overflowing", "one_branch_nan")]
    step = private(*batch)
    assert not step.clip_factors[rows].any() and step.nonfinite.nonzero().flatten().tolist() == rows
    assert all(change(private, batch, row) <= 1e-6 for row in rows)


@pytest.mark.parametrize("kind", KINDS)
def test_a_masked_example_changes_nothing(kind: str) -> None:
    private, batch = compiled(kind, "auto"), adversaries()
    for row in range(len(NAMES)):
        assert change(private, batch, row, torch.arange(len(NAMES)) != row) <= 1e-6, NAMES[row]


@settings(max_examples=15, deadline=None)
@drawn(kind=st.sampled_from(list(KINDS)), exponents=st.lists(st.floats(-20, 15), min_size=1, max_size=4),
       inputs=st.floats(-6, 3), offset=st.sampled_from([0.0, 100.0]), limit=st.floats(-6, 6),
       seed=st.integers(0, 2**16))  # fmt: skip
def test_drawn_gradients_keep_the_bound(
    kind: str, exponents: list[float], inputs: float, offset: float, limit: float, seed: int
) -> None:
    private, generator = compiled(kind, "auto"), torch.Generator().manual_seed(seed)
    x, z, g, h = (torch.randn(len(exponents), POSITIONS, WIDTH, generator=generator) for _ in range(4))
    sizes = 10 ** torch.tensor(exponents)[:, None, None]
    batch = ((x + offset) * 10**inputs, (z + offset) * 10**inputs, (g - g.mean(1, keepdim=True)) * sizes, h * sizes.flip(0))
    start, private.max_grad_norm = private.max_grad_norm, 10**limit
    try:
        assert change(private, batch, 0) <= private.sensitivity() * (1 + SLACK)
    finally:
        private.max_grad_norm = start


@pytest.mark.parametrize("kind", ["normalized", "automatic, 1e-20", "psac, 1e-20"])
def test_squares_that_vanish_in_float32_are_not_multiplied_by_as_much(kind: str) -> None:
    g = torch.full((1, 1, 64), 2.5e-23)
    g[0, 0, 0] = 4e-23  # the only one whose square is a number
    private = dpcompile(
        nn.Linear(1, 64), lambda m, x, g: (m(x) * g).flatten(1).sum(1), clipping=KINDS[kind], strategy="materialize"
    )
    step = private(torch.zeros(1, 1, 1), g)
    assert 0 < whole_norm(step.grads) <= 1 + SLACK


@pytest.mark.parametrize("kind", ["flat", "automatic", "normalized", "psac", "global", "global, 3", "per-layer"])
def test_the_upper_end_of_the_interval_decides(kind: str) -> None:
    """Inputs far from zero, gradients that cancel: some of these Gram norms are low by three hundredths."""

    def loss(m: nn.Module, x: Tensor, g: Tensor) -> Tensor:
        return (m(x) * g).flatten(1).sum(1)

    torch.manual_seed(0)
    x, g = torch.randn(4, 257, 64) / 10 + 100, torch.randn(4, 257, 64)
    g = g - g.mean(1, keepdim=True)
    private = dpcompile(nn.Linear(64, 64, bias=False), loss, clipping=KINDS[kind], strategy="gram")
    low: list[bool] = []
    for one in range(4):
        batch = x[one : one + 1], g[one : one + 1]
        norm = float(private(*batch).norms)
        true = float((batch[0].double().mT @ batch[1].double()).norm())
        low.append(norm < 0.99 * true)
        for limit in (norm * (1 - 1e-6), norm * (1 + 1e-6), norm / 7, 3.0):
            private.max_grad_norm = limit
            assert whole_norm(private(*batch).grads) <= limit * (1 + 2 * SLACK)
    uncertain = private.ready().joint.graph.find_nodes(op="call_function", target=private.kind.kernel(0.0)[0])
    assert uncertain[0].args[1] is not None and any(low)


@pytest.mark.parametrize("squared", [0.0, 1e-12, 1.0, 1e6])
@pytest.mark.parametrize("uncertainty", [None, 0.0, 1e-12, 0.3])
@pytest.mark.parametrize("reach", [0.0, 1e-12, 0.7])
def test_what_is_uncertain_may_be_low_together(squared: float, uncertainty: float | None, reach: float) -> None:
    unsure = None if uncertainty is None else torch.tensor([uncertainty], dtype=torch.float64)
    found = float(reached(torch.tensor([squared], dtype=torch.float64), unsure, torch.tensor([reach], dtype=torch.float64)))
    longest = (squared + (uncertainty or 0.0)) ** 0.5 + reach**0.5
    assert squared + found == pytest.approx(longest**2, rel=1e-12, abs=1e-30)


def test_a_second_normalisation_changes_nothing() -> None:
    """Sums of normalised gradients of one example are as long as the clip norm, whatever their own length."""
    private = dpcompile(two_branches(), given_gradients, clipping=Normalized(), max_grad_norm=0.3)
    x, z, g, h = (torch.randn(1, POSITIONS, WIDTH) for _ in range(4))
    lengths = [whole_norm(private(x, z, scale * g, scale * h).grads) for scale in (1e-7, 1.0, 1e12)]
    assert lengths == pytest.approx([0.3] * 3, rel=1e-5)
