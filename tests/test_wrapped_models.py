"""Models that are wrapped, compiled in parts or labelled for a profiler are traced as what they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import errors, expect
from torch import Tensor, nn
from torch.profiler import record_function
from zoo_case import squares
from zoo_layers import Using
from zoo_networks import mlp

from dpcompile import dpcompile


def compiled_in_place() -> nn.Module:
    """A module whose own call is compiled."""
    model = mlp(3, 5, 2)
    model.compile(backend="eager")
    return model


def compiled_part() -> nn.Module:
    """One compiled layer, which has compiled already, among others."""
    part: Any = torch.compile(nn.Linear(3, 5), backend="eager")
    part(torch.randn(4, 3))
    return nn.Sequential(part, nn.Tanh(), nn.Linear(5, 2))


def compiled_function() -> nn.Module:
    """A compiled function of the output."""
    wave = torch.compile(lambda h: h.tanh() * 2, backend="eager")
    return Using(lambda m, x: wave(m.a(x)), a=nn.Linear(3, 2))


def labelled(m: nn.Module, x: Tensor) -> Tensor:
    """Forward under a name for a profiler."""
    with record_function("forward"):
        return m.get_submodule("a")(x).sin()


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.compile(mlp(3, 5, 2), backend="eager"),
        compiled_in_place,
        compiled_part,
        compiled_function,
        lambda: nn.DataParallel(mlp(3, 5, 2)),
        lambda: Using(labelled, a=nn.Linear(3, 2)),
    ],
    ids=["compiled", "compiled in place", "compiled part", "compiled function", "DataParallel", "label"],
)
@pytest.mark.parametrize("size", [1, 5])
def test_the_step_equals_the_loop(make: Callable[[], nn.Module], size: int) -> None:
    torch.manual_seed(0)
    model, x = make().double(), torch.randn(size, 3, dtype=torch.float64)
    with torch.compiler.set_stance("force_eager"):
        expected = expect(model, squares, (x,))
    private = dpcompile(model, squares, max_grad_norm=expected.max_grad_norm)
    assert max(errors(private(x), expected).values()) < 1e-9
    assert private(torch.randn(7, 3, dtype=torch.float64)).norms.shape == (7,)
