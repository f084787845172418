"""Norms of masked outer products: exact for every size, mask and orientation, bounded from above, and what `auto` takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from zoo_case import squares
from zoo_networks import mlp

from dpcompile import GradientDropping, PrePruning, StrategyError, dpcompile
from dpcompile.kernels.masked import masked_gamma, sqnorm_masked

SIZES = (0, 1, 2, 7, 31)


@pytest.mark.parametrize("p", (1, 7, 31))
@pytest.mark.parametrize("d", (1, 5, 64))
@pytest.mark.parametrize("size", SIZES)
def test_the_kernel_is_the_norm_of_what_is_kept(size: int, d: int, p: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a, g = (torch.randn(size, width, generator=generator, dtype=torch.float64) for width in (d, p))
    entries = torch.rand(p, d, generator=generator) < 0.4
    expected = (torch.einsum("bp,bd->bpd", g, a) * entries).flatten(1).square().sum(1)
    squared, bound = sqnorm_masked(a, g, entries)
    torch.testing.assert_close(squared, expected, rtol=1e-13, atol=0)
    single, bound = sqnorm_masked(a.float(), g.float(), entries)
    true = (torch.einsum("bp,bd->bpd", g.float().double(), a.float().double()) * entries).flatten(1).square().sum(1)
    assert bool(((single - true).abs() <= masked_gamma(d, p, torch.float32) * bound).all())
    assert single.dtype == torch.float64


def test_equal_entries_stay_within_the_bound() -> None:
    a, g = torch.full((3, 4096), 1.1), torch.full((3, 1024), 0.7)
    squared, bound = sqnorm_masked(a, g, torch.ones(1024, 4096, dtype=torch.bool))
    true = a.double().square().sum(1) * g.double().square().sum(1)
    assert bool(((squared - true).abs() <= masked_gamma(4096, 1024, torch.float32) * bound).all())


@pytest.mark.parametrize(("large", "small"), [(1e19, 2.5e-23), (3e38, 1e-44), (1e-20, 1e-20)])
def test_small_numbers_that_meet_large_ones_are_not_lost(large: float, small: float) -> None:
    a, g = torch.full((2, 64), large), torch.full((2, 32), small)
    entries = torch.ones(32, 64, dtype=torch.bool).tril()
    squared, _ = sqnorm_masked(a, g, entries)
    true = (torch.einsum("bp,bd->bpd", g.double(), a.double()) * entries).flatten(1).square().sum(1)
    torch.testing.assert_close(squared, true, rtol=1e-13, atol=0)


def loop(model: nn.Module, x: Tensor, masks: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Norms and clipped sums, one example at a time."""
    parameters = dict(model.named_parameters())
    norms, total = [], {name: torch.zeros_like(p) for name, p in parameters.items()}
    for row in x.split(1) if len(x) else ():
        found = torch.autograd.grad(squares(model, row).sum(), list(parameters.values()))
        own = {name: g * masks[name] if name in masks else g for name, g in zip(parameters, found, strict=True)}
        norms.append(torch.stack([g.square().sum() for g in own.values()]).sum().sqrt())
        for name, gradient in own.items():
            total[name] += gradient * min(1.0, 1.0 / max(float(norms[-1]), 1e-300))
    return torch.stack(norms) if norms else x.new_zeros(0), total


class Transposed(nn.Module):
    """A weight that is used as it lies, and one the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.randn(5, 7, generator=torch.Generator().manual_seed(n))) for n in (1, 2))

    def forward(self, x: Tensor) -> Tensor:
        """f[B, 5] -> f[B, 5]."""
        return torch.tanh(x @ self.first) @ self.second.t()


@pytest.mark.parametrize("granularity", ["weights", "rows", "columns"])
@pytest.mark.parametrize("make", [lambda: mlp(5, 7, 3), Transposed], ids=["layers", "either way round"])
@pytest.mark.parametrize("size", SIZES)
def test_every_orientation_and_part_agrees_with_the_loop(size: int, make: type[nn.Module], granularity: str) -> None:
    model, x = make().double(), torch.randn(size, 5, dtype=torch.float64)
    weights = [name for name, p in model.named_parameters() if p.dim() > 1]
    passes = [PrePruning(0.4, "random", seed=1), GradientDropping(0.3, granularity=granularity, seed=2)]
    private = dpcompile(model, loss=squares, passes=passes, strategy=dict.fromkeys(weights, "masked"))
    for _ in range(3):
        step = private(x)
        masks = {name: mask for name, _ in model.named_parameters() if (mask := step.trained(name)) is not None}
        norms, total = loop(model, x, masks)
        torch.testing.assert_close(step.norms, norms.to(step.norms.dtype), rtol=1e-6, atol=1e-9)
        for name, gradient in total.items():
            torch.testing.assert_close(step.grads[name], gradient, rtol=1e-6, atol=1e-9)
        private.reselect()
    if size:
        assert {private.plan.strategies()[name][0] for name in weights} == {"masked"}


def test_single_weights_of_large_layers_are_not_materialised() -> None:
    model, x = mlp(300, 400, 10), torch.randn(64, 300)
    private = dpcompile(model, loss=squares, passes=[PrePruning(0.5)], hardware="cpu")
    private(x)
    assert private.plan.strategies()["0.weight"] == ("masked", "bookkeep")


@pytest.mark.parametrize("passes", [(), (PrePruning(0.5, granularity="rows"),)], ids=["whole", "rows"])
def test_it_declines_where_no_single_entries_are_left_out(passes: tuple[PrePruning, ...]) -> None:
    with pytest.raises(StrategyError, match="no mask of single entries"):
        dpcompile(mlp(5, 7, 3), loss=squares, passes=passes, strategy={"0.weight": "masked"})(torch.randn(3, 5))


def test_it_declines_where_there_are_several_positions() -> None:
    with pytest.raises(StrategyError, match="one position per example"):
        dpcompile(mlp(5, 7, 3), loss=lambda m, x: m(x).square().flatten(1).sum(1), passes=[PrePruning(0.5)],
                  strategy={"0.weight": "masked"})(torch.randn(3, 4, 5))  # fmt: skip
