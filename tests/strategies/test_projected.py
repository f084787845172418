"""Weight standardisation and weight norm without materialising: the oracle's norms for every form, shape and edge."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from captured import Captured, captured
from oracle import Expected, errors, expect
from standardised import FORMS, LAYERS, Standardised, by_batch_norm, by_norm, by_var_mean, old_weight_norm, weight_norm
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from zoo_case import squares
from zoo_layers import Using, parameter

from dpcompile import StrategyError, dpcompile
from dpcompile.cost.hardware import HARDWARE
from dpcompile.ir.projection import Projection
from dpcompile.kernels import convolution, dense, extra_dimension, own_gradient, row_products
from dpcompile.measure.extract import extract
from dpcompile.plan.select import options_of

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
MATERIALISING = {
    dense.materialize, dense.sqnorm_materialized, convolution.materialize_unfold, convolution.materialize_grouped,
    convolution.sqnorm_materialized, extra_dimension.materialize_extra_dimension,
    own_gradient.materialize_grouped_gradient, own_gradient.materialize_single, own_gradient.sqnorm_single,
}  # fmt: skip
WRAPPED = {f"{name}, {'gain' if gain else 'no gain'}": (form, gain) for name, form in FORMS.items() for gain in (False, True)}
SHAPES = {name: LAYERS[name] for name in LAYERS if name not in ("conv2d", "linear")}


def build(layer: str, form: str, dtype: torch.dtype) -> tuple[nn.Module, tuple[int, ...]]:
    """A layer of the table with its weight in this form, followed by something that is not linear."""
    torch.manual_seed(0)
    make, shape = LAYERS[layer]
    if form in ("weight norm", "old weight norm"):
        wrapped = (weight_norm if form == "weight norm" else old_weight_norm)(make())
    else:
        wrapped = Standardised(make(), *WRAPPED[form])
    return nn.Sequential(wrapped, nn.Tanh()).to(dtype), shape


def batch(shape: tuple[int, ...], size: int, dtype: torch.dtype) -> Tensor:
    """The same examples every time."""
    return torch.randn(size, *shape, generator=torch.Generator().manual_seed(size), dtype=torch.float64).to(dtype)


def transformed(model: nn.Module) -> list[str]:
    """The names of the parameters behind the normalisation."""
    return [name for name, _ in model.named_parameters() if "bias" not in name]


@cache
def expected_of(layer: str, form: str, dtype: torch.dtype, size: int) -> Expected:
    """The oracle's step; the clip norm is the mean norm of seven examples."""
    model, shape = build(layer, form, dtype)
    limit = None if size == 7 else expected_of(layer, form, dtype, 7).max_grad_norm
    return expect(model, squares, (batch(shape, size, dtype),), max_grad_norm=limit)


def private_of(layer: str, form: str, dtype: torch.dtype, **options: Any) -> Any:
    """The compiled step with every such parameter by the strategy, which must not decline."""
    model, _ = build(layer, form, dtype)
    options.setdefault("strategy", dict.fromkeys(transformed(model), "projected"))
    return dpcompile(model, loss=squares, max_grad_norm=expected_of(layer, form, dtype, 7).max_grad_norm, **options)


def check(layer: str, form: str, dtype: torch.dtype = torch.float64, sizes: tuple[int, ...] = (7, 1, 0), **options: Any) -> Any:
    """One compiled step against the oracle at several batch sizes."""
    private = private_of(layer, form, dtype, **options)
    for size in sizes:
        found = errors(private(batch(LAYERS[layer][1], size, dtype)), expected_of(layer, form, dtype, size))
        assert max(found.values()) < TOLERANCE[dtype], (size, found)
    return private


ALL_FORMS = (*WRAPPED, "weight norm", "old weight norm")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layer", ["conv2d", "linear"])
@pytest.mark.parametrize("form", ALL_FORMS)
def test_every_form_gives_the_step_of_the_loop(form: str, layer: str, dtype: torch.dtype) -> None:
    private = check(layer, form, dtype)
    called = {getattr(node.target, "kernel", node.target) for node in private.graph_module.graph.nodes}
    assert not called & MATERIALISING and row_products.projected in called


@pytest.mark.parametrize("form", ["by_batch_norm, gain", "by_var_mean, no gain", "weight norm"])
@pytest.mark.parametrize("layer", SHAPES)
def test_every_shape_of_layer_gives_the_step_of_the_loop(layer: str, form: str) -> None:
    check(layer, form)
    check(layer, form, torch.float32)


def test_transposed_convolutions_are_normalised_by_input_channel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(weight_norm(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1)), nn.Tanh()).double()
    x = torch.randn(7, 4, 3, 4).double()
    right = expect(model, squares, (x,))
    private = dpcompile(model, loss=squares, strategy="projected", max_grad_norm=right.max_grad_norm)
    assert max(errors(private(x), right).values()) < 1e-9
    assert [c.option.norm for c in private.plan.choices].count("projected") == 2


def scaled(weight: Tensor, gain: Tensor | None) -> Tensor:
    """A gain per row and nothing else."""
    assert gain is not None
    return weight * gain


def shifted(weight: Tensor, gain: Tensor | None) -> Tensor:
    """A number per row that is added."""
    assert gain is not None
    return weight * 2 + gain


@pytest.mark.parametrize("form", [scaled, shifted])
@pytest.mark.parametrize("layer", ["conv2d", "linear on sequences"])
def test_rows_that_are_scaled_or_shifted_only(layer: str, form: Any) -> None:
    make, shape = LAYERS[layer]
    model, x = nn.Sequential(Standardised(make(), form, has_gain=True), nn.Tanh()).double(), batch(shape, 5, torch.float64)
    right = expect(model, squares, (x,))
    private = dpcompile(model, loss=squares, strategy="projected", max_grad_norm=right.max_grad_norm)
    assert max(errors(private(x), right).values()) < 1e-9
    assert {c.site.parameter: c.option.norm for c in private.plan.choices}["0.gain"] == "projected"


@pytest.mark.parametrize("form", ALL_FORMS)
@pytest.mark.parametrize("layer", ["conv2d", "linear on sequences"])
def test_in_half_types_norms_are_those_of_what_the_tail_adds_up(layer: str, form: str) -> None:
    model, shape = build(layer, form, torch.bfloat16)
    names, x = transformed(model), batch(shape, 5, torch.bfloat16)
    ways = (dict.fromkeys(names, norm) for norm in ("materialize", "projected"))
    try:
        right, found = (dpcompile(model, loss=squares, strategy=way)(x).norms for way in ways)
    except StrategyError as error:
        assert "more directions" in str(error)  # values that were rounded on the way count as directions of their own
        return
    assert float(((found - right) / right).abs().max()) < 1e-5
    used = [site.projection for site in captured(model, squares, x).sites if site.parameter in names]
    assert all(f.output is None for one in used if isinstance(one, Projection) for f in one.functionals)


@pytest.mark.parametrize("form", ["by_batch_norm, gain", "weight norm", "by_clamped_variance, gain"])
def test_a_gain_of_zero_stops_its_row_only(form: str) -> None:
    model, shape = build("conv2d", form, torch.float64)
    name = next(name for name in transformed(model) if model.get_parameter(name)[0].numel() == 1)
    with torch.no_grad():
        model.get_parameter(name)[[0, 3]] = 0.0
    x = batch(shape, 5, torch.float64)
    right = expect(model, squares, (x,))
    step = dpcompile(model, loss=squares, strategy="projected", max_grad_norm=right.max_grad_norm)(x)
    assert not step.nonfinite.any() and max(errors(step, right).values()) < 1e-9


@pytest.mark.parametrize("form", ["by_batch_norm, no gain", "by_var_mean, gain", "by_layer_norm, no gain"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rows_without_variance_have_epsilon_alone(form: str, dtype: torch.dtype) -> None:
    model, shape = build("conv2d", form, dtype)
    with torch.no_grad():
        model.get_parameter("0.layer.weight")[1] = 0.25
    x = batch(shape, 5, dtype)
    right = expect(model, squares, (x,))
    step = dpcompile(model, loss=squares, strategy="projected", max_grad_norm=right.max_grad_norm)(x)
    assert max(errors(step, right).values()) < TOLERANCE[dtype]


@pytest.mark.parametrize("form", ["by_batch_norm, gain", "weight norm"])
@pytest.mark.parametrize("options", [{"backend": "inductor"}, {"schedule": "microbatch", "microbatch": 3}], ids=str)
def test_inductor_and_chunks_compute_the_same(form: str, options: dict[str, Any]) -> None:
    check("stride and padding", form, torch.float32, sizes=(7, 1), **options)
    check("linear on sequences", form, torch.float32, sizes=(7, 1), **options)


@pytest.mark.parametrize("form", ["by_batch_norm, gain", "weight norm"])
def test_masked_and_non_finite_examples_contribute_nothing(form: str) -> None:
    private, (model, shape) = private_of("conv2d", form, torch.float64), build("conv2d", form, torch.float64)
    x = batch(shape, 7, torch.float64)
    limit = expected_of("conv2d", form, torch.float64, 7).max_grad_norm
    right = expect(model, squares, (x[[0, 3, 6]],), max_grad_norm=limit)
    x[1, 0, 0, 0], x[2, 1], x[5, 1, 2, 3] = float("nan"), float("inf"), -float("inf")
    step = private(x, mask=torch.tensor([True, True, True, True, False, True, True]))
    assert step.nonfinite[[0, 3, 4, 6]].tolist() == [False] * 4
    assert step.clip_factors[[1, 4]].tolist() == [0.0] * 2
    finite = private(x[[0, 3, 6]])
    assert torch.allclose(step.norms[[0, 3, 6]].double(), right.norms, rtol=1e-6)
    assert max(errors(finite, right).values()) < 1e-9


# -- what declines, and what is kept ---------------------------------------------------------------------------


def reason_of(model: nn.Module, x: Tensor, name: str) -> str:
    """Why the strategy declines a parameter."""
    with pytest.raises(StrategyError) as error:
        dpcompile(model, loss=squares, strategy={name: "projected"})(x)
    return str(error.value)


def by_outer_norm(weight: Tensor) -> Tensor:
    """A vector along the columns."""
    return weight / weight.norm(dim=0)


DECLINED = {
    "used twice": (lambda m, x: x @ by_norm(m.w, None).t() + x.square() @ by_norm(m.w, None).t(), "used 2 times"),
    "whole": (lambda m, x: x @ (m.w / m.w.norm()).t(), "sum does not keep rows apart"),
    "columns": (lambda m, x: x @ by_outer_norm(m.w).t(), "no row by row form of div"),
    "elementwise": (lambda m, x: x @ (m.w * m.w.detach()).t(), "differ within a row"),
    "function": (lambda m, x: x @ m.w.sigmoid().t(), "sigmoid_backward"),
    "isometric": (lambda m, x: x @ m.w.t(), "nothing that changes norms"),
    "weight norm along columns": (lambda m, x: x @ torch._weight_norm(m.w, m.g, 1).t(), ""),
}


@pytest.mark.parametrize(("call", "reason"), DECLINED.values(), ids=DECLINED)
def test_other_tails_decline_with_the_reason_and_stay_right(call: Any, reason: str) -> None:
    torch.manual_seed(0)
    model, x = Using(call, w=parameter(3, 5), g=parameter(1, 5)).double(), torch.randn(4, 5).double()
    assert reason in reason_of(model, x, "w")
    right = expect(model, squares, (x,))
    assert max(errors(dpcompile(model, loss=squares, max_grad_norm=right.max_grad_norm)(x), right).values()) < 1e-9


def test_a_square_weight_does_not_confuse_rows_with_columns() -> None:
    model, x = Using(lambda m, x: x @ (m.w * m.g).t(), w=parameter(5, 5), g=parameter(5)).double(), torch.randn(4, 5).double()
    assert "no row by row form of mul" in reason_of(model, x, "w")
    right = expect(model, squares, (x,))
    assert max(errors(dpcompile(model, loss=squares, max_grad_norm=right.max_grad_norm)(x), right).values()) < 1e-9


def test_a_standardised_convolution_that_is_used_twice_declines() -> None:
    layer = Standardised(nn.Conv2d(3, 3, 3, padding=1), by_batch_norm)
    model, x = nn.Sequential(layer, nn.Tanh(), layer), torch.randn(4, 3, 5, 5)
    assert "2 times" in reason_of(model, x, "0.layer.weight")


def site_of(layer: str, form: str, dtype: torch.dtype = torch.float64) -> Captured:
    """A captured layer."""
    model, shape = build(layer, form, dtype)
    return captured(model, squares, batch(shape, 3, dtype))


@pytest.mark.parametrize("layer", ["conv2d", "linear", "linear on sequences", "groups"])
@pytest.mark.parametrize(
    "form", ["by_batch_norm, gain", "by_var_mean, no gain", "weight norm", "by_std, gain", "by_normalize, gain"]
)
def test_weights_use_the_forward_output_and_gains_pay_for_one_contraction(layer: str, form: str) -> None:
    for site in site_of(layer, form).sites:
        if "bias" not in site.parameter:
            found = site.projection
            assert isinstance(found, Projection)
            assert found.computed == (0 if found.scale else 1), (site.parameter, found)


def test_a_gain_that_the_gradient_is_multiplied_by_uses_the_forward_output() -> None:
    gain = site_of("conv2d", "by_exponential, gain").site("0.gain").projection
    assert isinstance(gain, Projection) and gain.computed == 0


@pytest.mark.parametrize("form", ["by_batch_norm, gain", "weight norm", "by_var_mean, no gain"])
@pytest.mark.parametrize("layer", ["conv2d", "linear on sequences"])
def test_matrix_flops_are_those_of_the_emitted_kernels(layer: str, form: str) -> None:
    found = site_of(layer, form)
    for site in (site for site in found.sites if "bias" not in site.parameter):
        options, _ = options_of(site, HARDWARE["cpu"], 3)
        option = next(o for o in options if (o.norm, o.sum) == ("projected", "bookkeep"))
        program = extract(found.joint, site, "projected", "bookkeep")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            program.module(*program.inputs(3))
        assert counter.get_total_flops() == option.cost.total("matrix_flops"), site.parameter


def test_bias_of_the_layer_is_taken_out_of_the_output() -> None:
    layer = Standardised(nn.Conv2d(3, 5, 3), by_var_mean)
    with torch.no_grad():
        layer.layer.bias[:] = torch.tensor([100.0, -50.0, 0.0, 7.0, 1e3])
    model, x = nn.Sequential(layer, nn.Softsign()).double(), torch.randn(5, 3, 5, 7).double()
    right = expect(model, squares, (x,))
    step = dpcompile(model, loss=squares, strategy="projected", max_grad_norm=right.max_grad_norm)(x)
    assert max(errors(step, right).values()) < 1e-9


def test_the_planner_takes_it_for_a_late_layer_of_a_large_network() -> None:
    model = nn.Sequential(Standardised(nn.Conv2d(256, 256, 3, padding=1, bias=False), by_var_mean), nn.GroupNorm(32, 256))
    private = dpcompile(model, loss=squares, hardware="cpu")
    private(torch.randn(8, 256, 4, 4))
    assert private.plan.choices[0].option.norm == "projected"
