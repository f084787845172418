"""No norm is too small for a sum that is computed apart from it where an example's terms all but cancel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captured import captured
from oracle import expect, whole_norm
from torch import Tensor, fx, nn
from zoo_case import squares

from dpcompile import StrategyError, dpcompile
from dpcompile.analysis.cuts import find_cuts
from dpcompile.cost.hardware import HARDWARE
from dpcompile.forecast.fitting import behind
from dpcompile.ir.site import Convolution, Cut
from dpcompile.kernels.clipping import SLACK
from dpcompile.kernels.reach import reach_channel_scale, reach_images, reach_layer_scale, reach_products, reach_total
from dpcompile.plan.plan import Plan
from dpcompile.plan.select import choose, options_of
from dpcompile.strategies import growth, interval

CLIP = 0.1


class Centred(nn.Linear):
    """A weight less its mean: inputs far from zero cancel behind the sum over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight - self.weight.mean(1, keepdim=True))


class Enlarged(nn.Module):
    """A scale per channel that is repeated for every position: the tail adds up."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(self.weight, size=x.shape[2]) * x


class Difference(nn.Module):
    """One weight, used twice with opposite signs on inputs that are nearly the same."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) - self.layer(x + 1e-4 * x.flip(1))


class Skew(nn.Linear):
    """A weight less its transpose, which cancels with one position, too."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight - self.weight.t())


class Mirrored(nn.Linear):
    """A weight beside its negative, added up again."""

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.weight, -self.weight])
        return nn.functional.linear(x, both[:4] + both[4:].flip(0))


class Rounded(nn.Linear):
    """Two uses in float64 of a weight in float32."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.double()
        return (nn.functional.linear(x.double(), weight) - nn.functional.linear(x.double() * (1 + 1e-6), weight)).float()


class LessItsSum(torch.autograd.Function):
    """v - v.sum(), with a backward that leaves it to broadcasting to spread the sum."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        return v - v.sum()

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Tensor:
        return g[0] - g[0].sum()


class Spread(nn.Module):
    """A scale per channel, less the sum of all."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * LessItsSum.apply(self.weight)  # type: ignore[no-untyped-call]


class CentredRows(nn.Linear):
    """A weight less the means of its rows, in float32, for a product in float64."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.double(), (self.weight - self.weight.mean(1, keepdim=True)).double()).float()


class Placed(nn.Module):
    """Position embeddings: ids that all examples share, some of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.table(torch.arange(x.shape[1], device=x.device) % 3)


class Bilinear(nn.Module):
    """An operation without a formula."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.bilinear(x, x, self.weight)


class Across(nn.Module):
    """A layer of images on rows: channels last."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(1, 2)).transpose(1, 2)


class Grouped(nn.Module):
    """Two products side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("btgi,gio->btgo", x.unflatten(2, (2, 2)), self.weight).flatten(2)


CANCELLING: dict[str, Callable[[], nn.Module]] = {
    "product": lambda: nn.Linear(4, 4, bias=False),
    "bias": lambda: nn.Linear(4, 4),
    "product used twice": lambda: Difference(nn.Linear(4, 4, bias=False)),
    "convolution": lambda: Across(nn.Conv1d(4, 4, 1, bias=False)),
    "convolution used twice": lambda: Difference(Across(nn.Conv1d(4, 4, 3, bias=False, padding=1))),
    "scale": lambda: nn.LayerNorm(4),
    "scale of groups": lambda: Across(nn.GroupNorm(2, 4)),
    "groups of products": Grouped,
    "weight less its mean": lambda: Centred(4, 4, bias=False),
    "weight less its transpose": lambda: Skew(4, 4, bias=False),
    "weight beside its negative": lambda: Mirrored(4, 4, bias=False),
    "uses in float64": lambda: Rounded(4, 4, bias=False),
    "centred for float64": lambda: CentredRows(4, 4, bias=False),
    "scale less its sum": Spread,
    "positions": Placed,
}


def given(model: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """A loss whose gradient with respect to the output is g."""
    return (model(x) * g).flatten(1).sum(1)


def cancelling(positions: int = 6) -> tuple[Tensor, Tensor]:
    """Inputs that all but repeat themselves, and gradients that add up to nothing: terms a hundred thousand times their sum."""
    torch.manual_seed(0)
    x = 1e3 * torch.randn(3, 1, 4).expand(-1, positions, -1) * (1 + 1e-5 * torch.randn(3, positions, 4))
    g = torch.randn(3, positions, 4)
    return x, g - g.mean(1, keepdim=True)


def contributions(model: nn.Module, limit: float, **options: Any) -> list[float]:
    """Norms of the clipped gradients, each of a batch of one example."""
    private = dpcompile(model, loss=given, max_grad_norm=limit, **options)
    x, g = cancelling()
    return [whole_norm(private(x[i : i + 1], g[i : i + 1]).grads) for i in range(len(x))]


def ways_of(make: Callable[[], nn.Module]) -> list[tuple[str, dict[str, Any]]]:
    """Every norm with every sum at every parameter, in one pass, and the methods that run backward a second time."""
    model = make()
    found: list[tuple[str, dict[str, Any]]] = []
    for site in captured(model, given, *cancelling()).sites:
        options, _ = options_of(site, HARDWARE["cpu"], 3)
        found += [(f"{o.norm}+{o.sum}", {"strategy": {site.parameter: (o.norm, o.sum)}}) for o in options]
    twice = [(name, {"strategy": name}) for name in ("reweight", "ghost", "mixed-ghost")]
    return [*found, *twice, ("two-pass", {"schedule": "two-pass"}), ("auto", {})]


@pytest.mark.parametrize("name", CANCELLING)
def test_no_example_contributes_more_where_its_terms_all_but_cancel(name: str) -> None:
    make, tried = CANCELLING[name], 0
    torch.manual_seed(1)
    model = make()
    right = expect(model, given, cancelling(), max_grad_norm=1.0)
    limit = float(right.norms.min()) / 10
    for way, options in ways_of(make):
        try:
            found = contributions(model, limit, **options)
        except StrategyError as refusal:
            assert way in ("reweight", "ghost", "mixed-ghost", "two-pass") and "Use" in str(refusal)
            continue
        tried += 1
        assert max(found) <= limit * (1 + SLACK + 1e-6), way
    assert tried > 1


@pytest.mark.parametrize("total", ["bookkeep", "reuse"])
def test_one_position_cancels_behind_a_weight_less_its_transpose(total: str) -> None:
    model = Skew(2, 2, bias=False)
    private = dpcompile(model, loss=given, max_grad_norm=1e-3, strategy={"weight": ("materialize", total)})
    torch.manual_seed(0)
    for _ in range(200):
        x = 1e3 * torch.randn(1, 2)
        step = private(x, x * (1 + 2e-7 * torch.randn(1, 2)))
        assert whole_norm(step.grads) <= 1e-3 * (1 + SLACK + 1e-6)


CONVOLUTIONS: dict[str, Callable[[], Any]] = {
    "plain": lambda: nn.Conv2d(2, 3, 3),
    "padded": lambda: nn.Conv2d(2, 3, 3, padding=2),
    "strided": lambda: nn.Conv2d(2, 3, 5, stride=2),
    "patches": lambda: nn.Conv2d(2, 3, 3, stride=3),
    "dilated": lambda: nn.Conv2d(2, 3, 3, dilation=2),
    "dilated and strided": lambda: nn.Conv2d(2, 3, 3, dilation=4, stride=2),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(2, 3, 3, stride=2),
    "one dimension": lambda: nn.Conv1d(2, 3, 4, stride=3),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_reach_of_a_convolution_holds_where_nothing_cancels_and_is_tight(name: str) -> None:
    layer = CONVOLUTIONS[name]()
    channels, rank = layer.in_channels, 1 if isinstance(layer, nn.Conv1d) else 2
    x = torch.ones(2, channels, *(20,) * rank)
    site = next(s for s in captured(layer, squares, x).sites if s.parameter == "weight")
    contraction = site.terms[0].contraction
    assert isinstance(contraction, Convolution)
    (gradient,) = torch.autograd.grad(layer(x[:1]).sum(), layer.weight)
    found = reach_images(x, torch.ones_like(layer(x)), interval.windows_of_an_element(contraction.geometry))
    assert 0.05 * float(found[0]) <= float(gradient.square().sum()) <= float(found[0]) * (1 + 1e-6)


@pytest.mark.parametrize("layer", [nn.LayerNorm(6), nn.GroupNorm(2, 6)], ids=["layer", "groups"])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_the_reach_of_a_scale_holds_where_nothing_cancels_and_is_tight(layer: Any, mean: float) -> None:
    torch.manual_seed(0)
    is_layer = isinstance(layer, nn.LayerNorm)
    x = mean + (torch.randn(2, 50, 6) if is_layer else torch.randn(2, 6, 50))
    g = layer(x).sign().detach()
    rows = x if is_layer else x.reshape(2, 2, -1)
    rstd = (rows.var(-1, unbiased=False) + 1e-5).rsqrt()
    found = reach_layer_scale(g, x, rstd.unsqueeze(2)) if is_layer else reach_channel_scale(g, x, rstd)
    terms = g * (rows.abs() + rows.mean(-1, keepdim=True).abs()).mul(rstd.unsqueeze(-1)).view_as(x)
    lengths = terms[0].abs().sum(0 if is_layer else 1).square().sum()  # of both halves of x - mean, which cancel
    assert 0.01 * float(found[0]) <= float(lengths) <= float(found[0])


def test_an_operand_that_is_spread_over_another_is_as_many_copies() -> None:
    graph = fx.Graph()
    small, large = graph.placeholder("small"), graph.placeholder("large")
    total = graph.call_function(torch.ops.aten.add.Tensor, (small, large))
    for node, shape in ((small, (1, 3)), (large, (4, 3)), (total, (4, 3))):
        node.meta["val"] = torch.empty(shape)
    assert (growth.enlarged(total, small), growth.enlarged(total, large)) == (2.0, 1.0)


def test_totals_and_products_reach_what_they_add_up() -> None:
    x, g = torch.rand(3, 7, 4), torch.rand(3, 7, 5)
    products = torch.einsum("bti,bto->boi", x, g).flatten(1).norm(dim=1).double()
    assert (products <= reach_products(x, g).sqrt() * (1 + 1e-6)).all() and (products >= 0.5 * reach_products(x, g).sqrt()).all()
    totals = g.sum(1).norm(dim=1).double()
    assert (totals <= reach_total(g, 7).sqrt() * (1 + 1e-6)).all() and (totals >= 0.5 * reach_total(g, 7).sqrt()).all()


def test_an_operation_without_a_formula_runs_once_for_norm_and_sum() -> None:
    private = dpcompile(Bilinear(), loss=squares)
    private(torch.randn(3, 5, 4))
    names = [getattr(node.target, "__name__", "") for node in private.graph_module.graph.nodes]
    assert names.count("example_loop") == 1


def test_reuse_adds_up_what_was_measured_behind_a_tail() -> None:
    torch.manual_seed(0)
    shifted, slope = torch.randn(4, 5, 3) + 1e4, torch.tensor([1.0, -0.5])
    cases = [(Centred(3, 2, bias=False), (shifted, slope.expand(4, 5, 2))), (Enlarged(), (torch.ones(4, 2, 2000),) * 2)]
    for model, batch in cases:
        private = dpcompile(model, loss=given, max_grad_norm=CLIP)
        for index in range(4):
            step = private(*(part[index : index + 1] for part in batch))
            assert whole_norm(step.grads) == pytest.approx(CLIP, rel=1e-6)
        assert {choice.option.sum for choice in private.plan.choices} == {"reuse"}


def test_gradients_that_do_not_cancel_are_clipped_to_the_clip_norm() -> None:
    torch.manual_seed(0)
    model, batch = nn.Linear(8, 8, bias=False), (torch.randn(3, 50, 8), torch.randn(3, 50, 8))
    for way in (("materialize", "bookkeep"), ("fused", "bookkeep")):
        step = dpcompile(model, loss=given, max_grad_norm=1e-2, strategy={"weight": way})(*batch)
        assert torch.allclose(step.clip_factors * step.norms, torch.tensor(1e-2), rtol=1e-4)


def test_a_second_backward_without_a_right_norm_is_refused_with_the_way_out() -> None:
    x = torch.randn(3, 5, 4)
    with pytest.raises(StrategyError, match=r'no norm of weight .* without a formula, .*Use schedule="one-pass"'):
        dpcompile(Bilinear(), loss=squares, schedule="two-pass")(x)
    with pytest.raises(StrategyError, match=r"to weight by materialize: .* without a formula"):
        dpcompile(Bilinear(), loss=squares, strategy="reweight")(x)
    found = dpcompile(Bilinear(), loss=squares)
    found(x)
    assert {choice.option.sum for choice in found.plan.choices} == {"reuse"}


def test_cuts_without_a_right_norm_are_left_out() -> None:
    made = captured(nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), Centred(5, 4)), squares, torch.randn(3, 2, 7))
    cuts = find_cuts(made.joint, made.states, made.sites)

    def pick(chunk: int | None, limit: float, cut: Cut | None) -> Plan:
        return choose(made.sites, HARDWARE["cpu"], 3, {"2.weight": "materialize"}, chunk, limit, cut)

    left = [cut for cut in cuts if "2.weight" not in cut.parameters]
    assert [plan.cut for plan in behind(pick, 3, cuts)] == left != list(cuts)
