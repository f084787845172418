"""Convolutions by the library's own weight gradient: the loop's steps, on both backends, and where the ways decline."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from oracle import errors, expect
from torch import nn
from zoo_case import squares

from benchmarks.measure import peak_bytes, peak_of_events
from dpcompile import StrategyError, dpcompile
from dpcompile.kernels import own_gradient
from dpcompile.kernels.geometry import Geometry

KERNELS = (own_gradient.sqnorm_single, own_gradient.materialize_single)
WAYS = [("grouped-gradient", "reuse"), ("grouped-gradient", "bookkeep"), ("single", "reuse"), ("fused-single", "bookkeep")]
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "images": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 5, stride=2)), (3, 11, 7)),
    "groups": (lambda: nn.Sequential(nn.Conv1d(4, 6, 3, groups=2), nn.Tanh(), nn.Conv1d(6, 6, 2, groups=6)), (4, 7)),
    "volumes": (lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 3, 2, 5)),
}


def ways(model: nn.Module, way: tuple[str, str]) -> dict[str, tuple[str, str]]:
    """This way for all weights."""
    return {name: way for name, parameter in model.named_parameters() if parameter.dim() > 1}


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("way", WAYS, ids="+".join)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_step_is_that_of_the_loop(network: str, way: tuple[str, str], backend: str) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[network]
    model = make().double()
    strategy: dict[str, str | tuple[str, str]] = {name: "auto" for name, _ in model.named_parameters()}
    strategy |= ways(model, way)
    private = dpcompile(model, loss=squares, strategy=strategy, max_grad_norm=0.5, backend=backend)
    for size in (5, 1, 0):
        x = torch.randn(size, *shape, dtype=torch.float64)
        found = errors(private(x), expect(model, squares, (x,), max_grad_norm=0.5))
        assert max(found.values()) < 1e-9, found
    assert private.report().plan.strategies().items() >= ways(model, way).items()


@pytest.mark.parametrize("way", [way for way in WAYS if way[0] != "fused-single"], ids="+".join)  # whose peak is the sum's
def test_the_predicted_peak_covers_the_copies_that_the_library_makes(way: tuple[str, str]) -> None:
    model, x = nn.Sequential(nn.Conv2d(48, 64, 3, padding=1), nn.Tanh()), torch.randn(16, 48, 6, 6)
    strategy: dict[str, str | tuple[str, str]] = {"0.bias": "auto", "0.weight": way}
    private = dpcompile(model, loss=squares, strategy=strategy, schedule="one-pass")
    measured = peak_bytes(lambda: lambda: private(x).grads, "cpu")
    assert 0.95 * measured <= private.report().forecast.peak_bytes <= 1.3 * measured


def test_no_examples_have_no_gradients() -> None:
    geometry = Geometry((3,), (1,), (0,), (1,), False, (0,), 1)
    x, g = torch.randn(0, 4, 7), torch.randn(0, 6, 5)
    for form in (own_gradient.materialize_grouped_gradient, own_gradient.materialize_single):
        assert form(x, g, geometry).shape == (0, 6, 4, 3)
    assert own_gradient.sqnorm_single(x, g, geometry).shape == (0,)


def test_norms_alone_hold_one_gradient_at_a_time() -> None:
    geometry = Geometry((3, 3), (1, 1), (1, 1), (1, 1), False, (0, 0), 1)
    x, g, one = torch.randn(16, 64, 6, 6), torch.randn(16, 64, 6, 6), 64 * 64 * 9 * 4
    alone, all_of_them = (peak_of_events(partial(lambda run: {"": run(x, g, geometry)}, kernel)) for kernel in KERNELS)
    assert alone < 4 * one < 16 * one < all_of_them


def test_a_reused_convolution_is_materialised_and_not_forgotten() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x).tanh())

    model, x = Twice().double(), torch.randn(5, 3, 4, 5, dtype=torch.float64)
    right = expect(model, squares, (x,), max_grad_norm=0.5)
    for norm in ("grouped-gradient", "single"):
        private = dpcompile(model, loss=squares, strategy={"layer.weight": norm}, max_grad_norm=0.5)
        assert max(errors(private(x), right).values()) < 1e-9
    with pytest.raises(StrategyError, match="used 2 times"):
        dpcompile(model, loss=squares, strategy={"layer.weight": "fused-single"})(x)
    with pytest.raises(StrategyError, match="needs a convolution"):
        dpcompile(nn.Linear(3, 2), loss=squares, strategy={"weight": "single"})(torch.randn(5, 3))
