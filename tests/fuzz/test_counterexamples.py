"""Random models that were wrong or refused without need, as small as they became; one test for each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from oracle import errors, expect
from torch import Tensor, nn
from zoo_layers import Using

from dpcompile import dpcompile


def worst_error(model: nn.Module, *batch: Tensor) -> float:
    """The largest relative error of a step of a model that returns its own losses."""
    model = model.double()
    expected = expect(model, None, batch)
    return max(errors(dpcompile(model, max_grad_norm=expected.max_grad_norm)(*batch), expected).values())


def inputs(*shape: int) -> Tensor:
    """Normal numbers for three examples."""
    return torch.randn(3, *shape, dtype=torch.float64)


def test_a_number_written_where_a_mask_holds() -> None:
    def call(m: Using, x: Tensor) -> Tensor:
        h = m.a(x)
        h[h > 0.2] = 0.5
        return m.b(h).square().sum(1)

    assert worst_error(Using(call, a=nn.Linear(4, 5), b=nn.Linear(5, 2)), inputs(4)) < 1e-9


def test_a_part_overwritten_with_zeros() -> None:
    def call(m: Using, x: Tensor) -> Tensor:
        h = m.a(x).clone()
        h.select(1, 2).zero_()
        return m.b(h).square().sum(1)

    assert worst_error(Using(call, a=nn.Linear(4, 5), b=nn.Linear(5, 2)), inputs(4)) < 1e-9


def test_hardswish() -> None:
    model = Using(lambda m, x: m.b(F.hardswish(m.a(x) * 3)).square().sum(1), a=nn.Linear(4, 5), b=nn.Linear(5, 2))
    assert worst_error(model, inputs(4)) < 1e-9
