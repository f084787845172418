"""Kernels of convolution sites agree with autograd in float64, one example at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dpcompile.kernels import convolution, dense, own_gradient
from dpcompile.kernels.convolution import Geometry
from dpcompile.kernels.extra_dimension import MOST_DIMENSIONS, materialize_extra_dimension

CheckTraceable = Callable[[Callable[..., Any], Callable[[int], tuple[Any, ...]]], None]
Case = tuple[Geometry, int, int, int]
B = 3
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
FORMS = [
    *(getattr(convolution, f"materialize_{form}") for form in ("unfold", "grouped", "grouped_traceable")),
    own_gradient.materialize_grouped_gradient, own_gradient.materialize_single,
]  # fmt: skip


def geometry(
    dims: int = 2, kernel: int = 3, stride: int = 1, padding: int = 0, dilation: int = 1,
    transposed: bool = False, output_padding: int = 0, groups: int = 1,
) -> Geometry:  # fmt: skip
    """The same numbers in every dimension, except that the last kernel size is one larger."""
    sizes = (kernel,) * (dims - 1) + (kernel + 1 if kernel > 1 else 1,)
    steps, pads, gaps, extra = ((number,) * dims for number in (stride, padding, dilation, output_padding))
    return Geometry(sizes, steps, pads, gaps, transposed, extra, groups)


CASES = {
    "plain": (geometry(), 2, 5, 11),
    "padded": (geometry(padding=1), 2, 5, 7),
    "padded by more than half a kernel": (geometry(padding=3), 2, 5, 7),
    "padded by more than half a kernel, grouped": (geometry(padding=3, stride=2, groups=2), 4, 6, 7),
    "padded by more than half a kernel, 1d": (geometry(dims=1, padding=5, dilation=2), 2, 5, 7),
    "padded by more than half a kernel, 3d": (geometry(dims=3, padding=2), 2, 3, 4),
    "padded unequally": (geometry()._replace(padding=(3, 1)), 2, 5, 7),
    "padded points": (geometry(kernel=1, padding=1), 2, 5, 7),
    "strided": (geometry(stride=2, padding=1), 2, 5, 11),
    "strided with a remainder": (geometry(stride=3), 2, 3, 11),
    "dilated": (geometry(dilation=2, padding=2), 2, 5, 11),
    "strided and dilated": (geometry(stride=2, dilation=3, padding=3), 2, 5, 11),
    "grouped": (geometry(groups=2, padding=1), 4, 6, 5),
    "depthwise": (geometry(groups=3, padding=1), 3, 3, 7),
    "depthwise with a multiplier": (geometry(groups=3, padding=1), 3, 6, 7),
    "pointwise": (geometry(kernel=1), 3, 5, 7),
    "pointwise, few positions": (geometry(kernel=1), 3, 5, 2),
    "pointwise, strided": (geometry(kernel=1, stride=2), 3, 5, 7),
    "deep": (geometry(padding=1), 13, 11, 3),
    "whole image": (geometry(kernel=4), 2, 5, 5),
    "1d": (geometry(dims=1, stride=2, padding=1), 3, 5, 13),
    "1d, grouped": (geometry(dims=1, groups=2), 4, 2, 7),
    "3d": (geometry(dims=3, kernel=2, padding=1), 2, 3, 5),
    "3d, grouped and strided": (geometry(dims=3, kernel=2, stride=2, groups=2), 2, 4, 5),
    "transposed": (geometry(transposed=True), 3, 5, 7),
    "transposed, strided": (geometry(transposed=True, stride=2, padding=1, output_padding=1), 3, 5, 5),
    "transposed, dilated": (geometry(transposed=True, dilation=3, stride=2, output_padding=2), 2, 3, 5),
    "transposed, grouped": (geometry(transposed=True, groups=2, stride=2), 4, 6, 3),
    "transposed, pointwise": (geometry(transposed=True, kernel=1), 3, 5, 7),
    "transposed, 1d": (geometry(dims=1, transposed=True, stride=2), 3, 5, 7),
    "transposed, 3d": (geometry(dims=3, kernel=2, transposed=True, stride=2, padding=1), 2, 3, 3),
}
case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def convolve(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    _, stride, padding, dilation, transposed, output_padding, groups = geometry
    options = (stride, padding, dilation, transposed, output_padding, groups)
    result: Tensor = torch.ops.aten.convolution(x, weight, None, *options)
    return result


def weight_of(case: Case, dtype: torch.dtype = torch.float64) -> Tensor:
    sizes, C, D, _ = case
    first, second = (C, D) if sizes.transposed else (D, C)
    return torch.randn(first, second // sizes.groups, *sizes.kernel, dtype=dtype)


def operands(case: Case, dtype: torch.dtype = torch.float32, examples: int = B) -> tuple[Tensor, Tensor]:
    sizes, C, _, size = case
    images = tuple(range(size, size + len(sizes.kernel)))  # no two sizes are equal
    x = torch.randn(examples, C, *images)
    g = torch.randn_like(convolve(x, weight_of(case, torch.float32), sizes))
    return x.to(dtype), g.to(dtype)


def gradients(case: Case, x: Tensor, g: Tensor) -> Tensor:
    """f64[B, *weight shape] by autograd, one example at a time."""
    rows = []
    for image, gradient in zip(x.double().unsqueeze(1), g.double().unsqueeze(1), strict=True):
        weight = weight_of(case).requires_grad_()
        rows.append(torch.autograd.grad(convolve(image, weight, case[0]), weight, gradient)[0])
    return torch.stack(rows)


def squares(tensor: Tensor) -> Tensor:
    return tensor.flatten(1).square().sum(1)


def tolerance(dtype: torch.dtype) -> float:
    return 1e-12 if dtype == torch.float64 else 1e-5


def last(x: Tensor) -> Tensor:
    """The same values in channels_last memory."""
    if x.dim() == 3:
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


LAYOUTS = pytest.mark.parametrize("layout", [torch.Tensor.contiguous, last], ids=["contiguous", "channels_last"])


@case
@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_materialised_gradients_are_those_of_autograd(
    case: Case, layout: Callable[[Tensor], Tensor], dtype: torch.dtype, form: Callable[..., Tensor]
) -> None:
    x, g = (layout(t) for t in operands(case, dtype))
    expected = gradients(case, x, g).to(torch.promote_types(dtype, torch.float32))
    assert_close(form(x, g, case[0]), expected, rtol=tolerance(dtype), atol=20 * tolerance(dtype))


FLAT = {name: case for name, case in CASES.items() if len(case[0].kernel) <= MOST_DIMENSIONS}


@pytest.mark.parametrize("case", FLAT.values(), ids=FLAT.keys())
@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_more_dimension_gives_the_gradients_of_autograd(
    case: Case, layout: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    x, g = (layout(t) for t in operands(case, dtype))
    expected = gradients(case, x, g).to(torch.promote_types(dtype, torch.float32))
    assert_close(materialize_extra_dimension(x, g, case[0]), expected, rtol=tolerance(dtype), atol=20 * tolerance(dtype))


@case
@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_are_those_of_autograd(case: Case, layout: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    x, g = (layout(t) for t in operands(case, dtype))
    expected = squares(gradients(case, x, g))
    assert_close(convolution.sqnorm_materialized(x, g, case[0]), expected, rtol=tolerance(dtype), atol=0)
    assert_close(own_gradient.sqnorm_single(x, g, case[0]), expected, rtol=tolerance(dtype), atol=0)
    squared, bound = convolution.sqnorm_gram(x, g, case[0])
    assert_close(squared, expected, rtol=tolerance(dtype), atol=0)
    sizes, G = case[0], case[0].groups
    windowed, other = (case[2], case[1]) if sizes.transposed else (case[1], case[2])
    positions = convolution.unfold(g if sizes.transposed else x, sizes).shape[2]
    gamma = dense.gram_gamma(dtype, positions, windowed // G * sizes.taps, other // G)
    assert ((squared - expected).abs() <= gamma * bound + 1e-15 * expected).all()
    assert (bound >= 0.999 * expected).all()


@case
@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES)
def test_clipped_sum_is_the_weighted_sum_of_autograd(case: Case, layout: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    x, g = (layout(t) for t in operands(case, dtype))
    factor, wide = torch.rand(B), torch.promote_types(dtype, torch.float32)
    expected = torch.einsum("b,b...->...", factor.to(wide).double(), gradients(case, x, g)).to(wide)
    close: dict[str, Any] = {"rtol": tolerance(dtype), "atol": 20 * tolerance(dtype)}
    assert_close(convolution.contract(x, g, factor, case[0]), expected, **close)
    assert_close(convolution.contract_traceable(x, g, factor, case[0]), expected, **close)


@case
def test_one_unfolding_serves_norm_and_clipped_sum(case: Case) -> None:
    x, g = operands(case)
    windowed, other = (g, x) if case[0].transposed else (x, g)
    unfolded, factor = convolution.unfold(windowed, case[0]), torch.rand(B)
    expected = gradients(case, x, g)
    squared, _ = convolution.sqnorm_gram_unfolded(unfolded, other, case[0])
    assert_close(squared, squares(expected), rtol=1e-5, atol=0)
    total = torch.einsum("b,b...->...", factor.double(), expected).float()
    for form in (convolution.contract_unfolded, convolution.contract_unfolded_traceable):
        assert_close(form(unfolded, other, factor, case[0]), total, rtol=1e-5, atol=2e-4)


def test_unfolding_is_that_of_torch() -> None:
    x = torch.randn(2, 3, 7, 5)
    sizes = Geometry((3, 2), (2, 1), (1, 2), (1, 2), False, (0, 0), 1)
    assert_close(convolution.unfold(x, sizes), torch.nn.functional.unfold(x, (3, 2), (1, 2), (1, 2), (2, 1)))


def test_pointwise_unfolding_copies_nothing() -> None:
    x = torch.randn(2, 3, 7, 5)
    assert convolution.unfold(x, geometry(kernel=1)).data_ptr() == x.data_ptr()


def test_norms_in_several_chunks_equal_those_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "WORKSPACE", 64)
    for name in ("plain", "grouped", "transposed, grouped"):
        x, g = operands(CASES[name], examples=7)
        expected = squares(gradients(CASES[name], x, g))
        assert_close(convolution.sqnorm_materialized(x, g, CASES[name][0]), expected, rtol=1e-5, atol=0)


def test_geometry_is_an_argument_that_fx_can_print() -> None:
    graph = torch.fx.Graph()
    x, sizes = graph.placeholder("x"), geometry(padding=1)
    graph.output(graph.call_function(convolution.unfold, (x, sizes)))
    image = torch.randn(2, 3, 5, 7)
    assert_close(torch.fx.GraphModule({}, graph)(image), convolution.unfold(image, sizes))


@case
def test_convolution_kernels_trace_with_a_free_batch_size(case: Case, check_traceable: CheckTraceable) -> None:
    def kernels(x: Tensor, g: Tensor, factor: Tensor) -> tuple[Any, ...]:
        sizes, traceable = case[0], convolution.TRACEABLE
        windowed, other = (g, x) if sizes.transposed else (x, g)
        unfolded = convolution.unfold(windowed, sizes)
        return (
            traceable[convolution.materialize_grouped](x, g, sizes),
            convolution.materialize_unfold(x, g, sizes),
            traceable[convolution.sqnorm_gram](x, g, sizes),
            traceable[convolution.sqnorm_materialized](x, g, sizes),
            traceable[convolution.contract](x, g, factor, sizes),
            traceable[convolution.sqnorm_gram_unfolded](unfolded, other, sizes),
            traceable[convolution.contract_unfolded](unfolded, other, factor, sizes),
            *(form(x, g, sizes) for form in own_gradient.TRACEABLE.values()),
        )

    check_traceable(kernels, lambda examples: (*operands(case, examples=examples), torch.rand(examples)))
