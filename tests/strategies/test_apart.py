"""No norm is too small for a sum that is computed apart from it, over many positions: float32 loses equal terms, and small ones
behind a large one."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from captured import captured
from oracle import expect
from torch import Tensor, nn
from zoo_case import squares

from dpcompile import StrategyError, dpcompile
from dpcompile.cost.hardware import HARDWARE
from dpcompile.kernels import dense
from dpcompile.kernels.clipping import SLACK
from dpcompile.kernels.embedding import contract_rows
from dpcompile.kernels.masked import masked_gamma
from dpcompile.kernels.reduction import COLUMNS, weighted_sum, weighted_sum_traceable
from dpcompile.plan.select import options_of


class Groups(nn.Module):
    """A stack of products."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("btgi,gio->btgo", x, self.weight)


class Scale(nn.Module):
    """A layer normalisation of rows that are all alike, without a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x * torch.tensor([1.0, 2.0, 4.0, 9.0]), (4,), self.weight)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "one channel": (lambda: nn.Conv2d(1, 1, 3, bias=False), (1, 130, 130)),
    "few channels": (lambda: nn.Conv2d(3, 8, 5, bias=False), (3, 68, 68)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), (4, 98, 98)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 2, stride=2, bias=False), (2, 64, 64)),
    "one dimension": (lambda: nn.Conv1d(2, 3, 5, bias=False), (2, 16388)),
    "few positions": (lambda: nn.Conv2d(3, 8, 3, bias=False), (3, 13, 13)),
    "product": (lambda: nn.Linear(1, 3, bias=False), (16384, 1)),
    "groups of products": (Groups, (20000, 3, 2)),
    "normalisation": (Scale, (16384, 4)),
    "lookup": (lambda: nn.Embedding(3, 2), (6000,)),
}
SLOPES = torch.tensor([1.03, 1.7, 1.21, 1.9])
CLIP = 0.1


def total(model: nn.Module, x: Tensor, slope: Tensor) -> Tensor:
    """A loss with the same gradient at every position."""
    return model(x).flatten(1).sum(1) * slope


def batch_of(shape: tuple[int, ...], of: nn.Module) -> tuple[Tensor, Tensor]:
    """Ones, or the same row all the time."""
    ones = torch.ones(len(SLOPES), *shape)
    return (ones.long() if isinstance(of, nn.Embedding) else ones), SLOPES


def ways() -> Iterator[tuple[str, str, str]]:
    """Every norm with every sum that is computed apart from it, in one pass and in two."""
    for name, (make, shape) in LAYERS.items():
        model = make()
        (site,) = captured(model, total, *batch_of(shape, model)).sites
        for again in (False, True):
            found, _ = options_of(site, HARDWARE["cpu"], len(SLOPES), again)
            yield from ((name, option.norm, option.sum) for option in found if option.sum != "reuse")


def front_loaded(*shape: int) -> Tensor:
    """A large term, and behind it small ones each of which float32 loses."""
    found = torch.full((2, *shape), 0.999 * 2.0**-24)
    found[:, 0] = 1.0
    return found


@pytest.mark.parametrize("norm", ["materialize", "fused"])
@pytest.mark.parametrize("positions", [128, 512, 4096])
def test_small_terms_behind_a_large_one_are_not_lost(norm: str, positions: int) -> None:
    model, x = nn.Linear(8, 8, bias=False), front_loaded(positions, 8)
    slope = torch.tensor([1.0, 1.5])
    private = dpcompile(model, loss=total, strategy={"weight": (norm, "bookkeep")}, max_grad_norm=1e-3)
    step, right = private(x, slope), expect(model, total, (x, slope), max_grad_norm=1e-3)
    assert (step.clip_factors.double() * right.norms <= 1e-3 * (1 + SLACK + 1e-6)).all()


@pytest.mark.parametrize(("name", "norm", "way"), list(ways()))
def test_no_example_contributes_more_than_the_clip_norm(name: str, norm: str, way: str) -> None:
    make, shape = LAYERS[name]
    model = make()
    batch = batch_of(shape, model)
    private = dpcompile(model, loss=total, strategy={"weight": (norm, way)}, max_grad_norm=CLIP)
    step, right = private(*batch), expect(model, total, batch, max_grad_norm=CLIP)
    assert (step.clip_factors.double() * right.norms <= CLIP * (1 + SLACK + 1e-6)).all()
    assert (step.clip_factors.double() * right.norms >= CLIP * 0.99).all()


def test_every_layer_has_ways_and_few_positions_all_of_them() -> None:
    found = list(ways())
    assert {name for name, _, _ in found} == set(LAYERS)
    library = {"grouped", "grouped-extra", "grouped-gradient", "single", "fused-single"}
    assert library | {"fused", "gram"} <= {norm for name, norm, _ in found if name == "few positions"}


def test_convolutions_of_the_library_over_many_positions_decline() -> None:
    model = nn.Conv2d(1, 1, 3, bias=False)
    (site,) = captured(model, squares, torch.randn(2, 1, 14, 15)).sites
    options, declined = options_of(site, HARDWARE["cpu"], 2)
    library = ("grouped", "grouped-extra", "grouped-gradient", "single")
    assert {option.sum for option in options if option.norm in library} == {"reuse"}
    reasons = dict(declined)
    for name in ("fused-single", *(f"{norm}+bookkeep" for norm in library)):
        assert "156 positions" in reasons[name]
    with pytest.raises(StrategyError, match="156 positions"):
        dpcompile(model, loss=squares, strategy={"weight": ("single", "bookkeep")})(torch.randn(2, 1, 14, 15))
    with pytest.raises(StrategyError, match="156 positions"):
        dpcompile(model, loss=squares, strategy={"weight": ("single", "reweight")})(torch.randn(2, 1, 14, 15))


def test_float64_has_no_such_limit() -> None:
    (site,) = captured(nn.Conv2d(1, 1, 3, bias=False).double(), squares, torch.randn(2, 1, 14, 15, dtype=torch.float64)).sites
    assert ("single", "bookkeep") in {(option.norm, option.sum) for option in options_of(site, HARDWARE["cpu"], 2)[0]}


@pytest.fixture
def rounded_products() -> Iterator[None]:
    """torch may round the operands of float32 products to bfloat16."""
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("rounded_products")
@pytest.mark.parametrize("layer", [nn.Linear(5, 3, bias=False), nn.Conv1d(5, 3, 2, bias=False)], ids=["product", "convolution"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)  # times a factor, operands of half types are float32
def test_norms_of_rounded_operands_belong_to_the_sum_of_the_same_gradients(layer: nn.Module, dtype: torch.dtype) -> None:
    x = torch.randn(2, *((7, 5) if isinstance(layer, nn.Linear) else (5, 7)))
    (site,) = captured(copy.deepcopy(layer).to(dtype), squares, x.to(dtype)).sites
    for again in (False, True):
        options, declined = options_of(site, HARDWARE["cpu"], 2, again)
        assert {option.norm for option in options if option.sum != "reuse"} == {"gram"}
        assert "torch's settings may round" in dict(declined)["materialize+reweight" if again else "fused"]


@pytest.mark.usefixtures("rounded_products")
def test_a_second_backward_without_a_right_norm_is_refused_and_never_planned() -> None:
    model = nn.Sequential(nn.Conv1d(4, 4, 3, groups=4), nn.Tanh(), nn.Flatten(), nn.Linear(20, 30))
    x = torch.randn(16, 4, 7)
    with pytest.raises(StrategyError, match=r'strategy="reweight" runs backward a second time.*may round .*allow_tf32'):
        dpcompile(model, loss=squares, strategy="reweight")(x)
    with pytest.raises(StrategyError, match=r'strategy="reweight" does not apply to weight by materialize: .*may round'):
        dpcompile(model[0], loss=squares, strategy="reweight")(x)
    free = dpcompile(model, loss=squares)
    free(x)
    tight = dpcompile(model, loss=squares, memory_budget=0.85 * free.report().forecast.peak_bytes)
    assert torch.allclose(tight(x).norms, free(x).norms, rtol=1e-2)


@pytest.fixture
def rounded_convolutions() -> Iterator[None]:
    """torch may round the operands of float32 convolutions to bfloat16."""
    settings: Any = operator.attrgetter("mkldnn.conv")(torch.backends)
    before, settings.fp32_precision = settings.fp32_precision, "bf16"
    yield
    settings.fp32_precision = before


class Scaled(nn.Conv2d):
    """A convolution whose rows are multiplied by numbers."""

    gain: Tensor

    def __init__(self) -> None:
        super().__init__(2, 3, 3, bias=False)
        self.register_buffer("gain", torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight * self.gain)


WAYS = {"bookkeep": torch.float32, "bookkeep in bfloat16": torch.bfloat16, "two-pass": torch.float32}


@pytest.mark.usefixtures("rounded_convolutions")
@pytest.mark.parametrize("norm", ["gram", "materialize", "fused", "projected"])
@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("sides", [(8, 9), (3, 3)], ids=str)  # many positions, or one, of which nothing is added up
def test_the_interval_tells_how_far_the_sum_of_a_convolution_may_be_rounded(norm: str, name: str, sides: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = (Scaled() if norm == "projected" else nn.Conv2d(2, 3, 3, bias=False)).to(WAYS[name])
    x, slope = torch.randn(4, 2, *sides).to(WAYS[name]), torch.ones(4)
    again = {"strategy": {"weight": norm}, "schedule": "two-pass"}
    way = again if name == "two-pass" else {"strategy": {"weight": (norm, "bookkeep")}}
    step = dpcompile(model, loss=total, max_grad_norm=CLIP, **way)(x, slope)
    row = 14**0.5 if norm == "projected" else 3**0.5  # of the gains, or of three ones
    lengths = nn.functional.unfold(x.double(), 3).norm(dim=1).sum(1) * row
    units = 1 if WAYS[name] == torch.bfloat16 else 2  # how many operands are longer than rounding leaves them
    right = expect(model, total, (x, slope), max_grad_norm=CLIP)
    assert (step.clip_factors * (right.norms + units * 2.0**-8 * lengths) <= CLIP * (1 + SLACK + 1e-6)).all()
    alike = dpcompile(model, loss=total, max_grad_norm=CLIP, strategy={"weight": ("materialize", "reuse")})(x, slope)
    assert (alike.clip_factors * right.norms >= CLIP * (1 - 1e-4)).all()


@pytest.mark.usefixtures("rounded_convolutions")
def test_matrix_products_do_not_pay_for_the_settings_of_convolutions() -> None:
    torch.manual_seed(0)
    model, x = nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)), torch.randn(4, 7, 5)
    step = dpcompile(model, loss=squares, max_grad_norm=CLIP, strategy={"*original*": "projected"})(x)
    right = expect(model, squares, (x,), max_grad_norm=CLIP)
    assert (right.norms > CLIP).all() and (step.clip_factors * right.norms >= CLIP * (1 - 1e-4)).all()


def test_settings_of_convolutions_are_watched(request: pytest.FixtureRequest) -> None:
    private = dpcompile(nn.Conv2d(2, 3, 3, bias=False), loss=total, strategy={"weight": ("single", "bookkeep")})
    x, slope = torch.randn(4, 2, 8, 9), torch.ones(4)
    private(x, slope)
    request.getfixturevalue("rounded_convolutions")
    with pytest.raises(StrategyError, match="may round"):
        private(x, slope)


@pytest.mark.usefixtures("rounded_products")
def test_products_of_squares_know_of_rounded_operands_of_the_sum() -> None:
    assert masked_gamma(3, 5, torch.float32) > 4 * 2.0**-8 > 1e-12 > masked_gamma(3, 5, torch.float64)


@pytest.mark.usefixtures("rounded_products")
@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 0), (0, 4), (3, COLUMNS["cpu"] + 1), (3,)])
def test_what_was_measured_is_scaled_without_products_that_round(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "__matmul__", None)
    factor = torch.rand(shape[0])
    for dtype in (torch.float32, torch.complex64):
        gradients = torch.randn(shape, dtype=dtype)
        wide = torch.promote_types(dtype, torch.float64)
        right = (gradients.to(wide) * factor.double().view(-1, *[1] * (len(shape) - 1))).sum(0)
        for form in (weighted_sum, weighted_sum_traceable):
            torch.testing.assert_close(form(gradients, factor).to(wide), right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("positions", [128, 129, 131071])
def test_sums_over_many_rows_of_a_table_are_not_too_long(positions: int) -> None:
    entry = 1 + 2.0**-8 + 2.0**-20  # additions round up more often than down
    found = contract_rows(torch.zeros(1, positions, dtype=torch.long), torch.full((1, positions, 2), entry), torch.ones(1), 3)
    assert float(found[0, 0]) == pytest.approx(positions * entry, rel=4e-6 if positions == 128 else 1e-7)
    assert not found[1:].any()


@pytest.mark.parametrize("positions", [128, 129, 5000])
def test_narrow_products_in_pieces_are_products(positions: int) -> None:
    left, right = torch.randn(3, 2, positions, dtype=torch.float64), torch.randn(3, positions, 5, dtype=torch.float64)
    out = torch.empty(3, 2, 5, dtype=torch.float64)
    assert torch.allclose(dense.products(left, right), left @ right, rtol=1e-12, atol=1e-12)
    assert dense.products(left, right, out=out) is not None and torch.allclose(out, left @ right, rtol=1e-12, atol=1e-12)
