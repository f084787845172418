"""Forms that whole architectures brought up, each alone: scans, global pooling, copies into sums, first of equal rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import errors, expect
from torch import Tensor, nn
from zoo_case import squares
from zoo_layers import Using, parameter

from dpcompile import DPCompileError, dpcompile
from dpcompile.scan import doubling_scan


def affine(*operands: Tensor) -> tuple[Tensor, Tensor]:
    """The composition of two maps x -> a x + b."""
    a, b, c, d = operands
    return a * c, c * b + d


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8])
def test_a_scan_by_doubling_equals_the_loop(length: int) -> None:
    a, b = torch.randn(2, length, 3).double(), torch.randn(2, length, 3).double()
    state, states = torch.zeros(2, 3).double(), []
    for step in range(length):
        state = a[:, step] * state + b[:, step]
        states.append(state)
    _, found = doubling_scan(list, affine, [a, b], 1)
    assert torch.allclose(found, torch.stack(states, 1), rtol=1e-12)


def standardised(module: Any, x: Tensor) -> Tensor:
    """A convolution whose weight is normalised by batch normalisation over its own numbers (BiT)."""
    weight = module.weight
    flat = F.batch_norm(weight.reshape(1, weight.shape[0], -1), None, None, training=True)
    return F.conv2d(x, flat.reshape_as(weight))


def halved_in_place(module: Any, x: Tensor) -> Tensor:
    """A permuted parameter that is divided in place (the positions of DeBERTa)."""
    heads = module.positions(module.table).view(1, 4, 2, 3).permute(0, 2, 1, 3)
    heads /= torch.sqrt(torch.tensor(3.0))
    return torch.einsum("bhtd,ohsd->bhts", x, heads)


def prompted(module: Any, x: Tensor) -> Tensor:
    """The same rows for every example, of which the first is looked up for all (prompt tuning of peft)."""
    rows = torch.tensor([3, 1]).expand(x.shape[0], 2)[:1]
    return torch.tanh(module.a(x) + module.e(rows))


CASES = {
    "pooling of a transposed sequence": (
        lambda: Using(lambda m, x: F.adaptive_avg_pool1d(m.a(x).transpose(1, 2), 1).flatten(1), a=nn.Linear(3, 5)),
        (7, 3),
    ),
    "weight standardisation": (lambda: Using(standardised, weight=parameter(4, 3, 2, 2)), (3, 5, 5)),
    "division in place": (
        lambda: Using(halved_in_place, positions=nn.Linear(3, 6), table=parameter(4, 3)),
        (2, 5, 3),
    ),
    "first of equal rows": (lambda: Using(prompted, a=nn.Linear(3, 5), e=nn.Embedding(4, 5)), (2, 3)),
}  # fmt: skip


@pytest.mark.parametrize(("make", "shape"), CASES.values(), ids=CASES)
def test_the_step_equals_the_loop(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model, x = make().double(), torch.randn(4, *shape).double()
    expected = expect(model, squares, (x,))
    for strategy in ("auto", "materialize"):
        found = errors(dpcompile(model, loss=squares, max_grad_norm=expected.max_grad_norm, strategy=strategy)(x), expected)
        assert max(found.values()) < 1e-9, found


def test_rows_of_different_examples_are_not_taken_for_equal() -> None:
    model = Using(lambda m, x: m.a(x) + m.a(x)[:1], a=nn.Linear(3, 5))
    with pytest.raises(DPCompileError, match="picked by their place"):
        dpcompile(model, loss=squares)(torch.randn(4, 3))
