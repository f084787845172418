"""Every method of the founding papers gives the loop's norms and sums, at every batch size, or says why it does not apply.

The declines are written down by name: a method that begins to refuse a model, or to accept one, is noticed.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from oracle import Expected, errors, expect, whole_norm
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import ZOO
from zoo_calling import RANDOM
from zoo_case import Case, squares
from zoo_networks import mlp

from dpcompile import DPCompileError, InvalidInput, StrategyError, dpcompile
from dpcompile.plan.methods import METHODS

SIZES = (3, 0, 1, 5)
MODELS = (
    "linear", "linear on sequences", "linear on 4-D input", "module tie", "called twice", "weight norm", "folded batch",
    "convolution called twice", "position embedding", "in-place arithmetic", "layer norm", "group norm", "instance norm",
    "embedding with padding", "embedding bag, mean", "conv1d dilated", "conv2d strided", "conv2d grouped", "conv2d depthwise",
    "conv2d reflect padding", "conv2d made channels_last", "conv3d", "transposed conv2d grouped", "transposed conv3d", "LSTM",
    "GRU, two layers without bias", "self-attention, batch first", "token loss", "nested inputs", "model returns losses",
    "loss with parameters", "shared input", "sequence-first transformer", "unused parameter", "MLP, first layer frozen", "CNN",
    "GPT-2, eager", "BERT, sdpa",
)  # fmt: skip
CASES = [case for case in ZOO if case.name in MODELS]
IMAGES, TWICE = "several images", "used 2 times"
NO_GRAM = {"folded batch": IMAGES, "convolution called twice": TWICE}
DECLINED = {
    **{(method, case): reason for method in ("ghost", "bookkeep") for case, reason in NO_GRAM.items()},
    **{("crb", case): "in 3 dimensions" for case in ("conv3d", "transposed conv3d")},
}
TOLERANCE = 1e-9


def test_all_models_are_there() -> None:
    assert {case.name for case in CASES} == set(MODELS)


@cache
def expected_of(case: Case, size: int) -> Expected:
    """The oracle's step; the clip norm is the mean norm of three examples."""
    model, loss = case.build(torch.float64)
    limit = None if size == SIZES[0] else expected_of(case, SIZES[0]).max_grad_norm
    return expect(model, loss, case.batch(size, torch.float64), case.kwargs(size, torch.float64), case.batch_dim, limit)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_method_gives_the_step_of_the_loop_or_a_reason(case: Case, name: str) -> None:
    model, loss = case.build(torch.float64)
    limit = expected_of(case, SIZES[0]).max_grad_norm
    private = dpcompile(model, loss=loss, strategy=name, batch_dim=case.batch_dim, max_grad_norm=limit)
    if (name, case.name) in DECLINED:
        with pytest.raises(StrategyError, match=DECLINED[name, case.name]):
            private(*case.batch(3, torch.float64), **case.kwargs(3, torch.float64))
        return
    for size in SIZES:
        step = private(*case.batch(size, torch.float64), **case.kwargs(size, torch.float64))
        found = errors(step, expected_of(case, size))
        assert max(found.values()) < TOLERANCE, (size, found)
    assert (private.plan.cut is not None) == (METHODS[name].schedule == "two-pass")
    assert private.plan.microbatch == (1 if name == "naive" else None)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "multi"])
@pytest.mark.parametrize("case", RANDOM, ids=str)
def test_random_models_use_one_draw_for_norm_and_sum(case: Case, name: str) -> None:
    model, loss = case.build(torch.float64)
    private = dpcompile(model, loss=loss, strategy=name, max_grad_norm=0.1)
    for _ in range(3):
        step = private(*case.batch(1, torch.float64))
        assert whole_norm(step.grads) == pytest.approx(float(step.norms * step.clip_factors), rel=1e-9)


@pytest.mark.parametrize("case", RANDOM, ids=str)
def test_copies_of_the_parameters_refuse_random_models(case: Case) -> None:
    model, loss = case.build(torch.float64)
    with pytest.raises(StrategyError, match="draws random numbers"):
        dpcompile(model, loss=loss, strategy="multi")(*case.batch(3, torch.float64))


def images(size: int) -> tuple[Tensor, ...]:
    """Images f64[B, 2, 7, 7], the same every time."""
    return (torch.randn(size, 2, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(size)),)


def network() -> nn.Module:
    """A convolution, a norm and a linear layer in float64."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.GroupNorm(3, 3), nn.Flatten(), nn.Linear(75, 5)).double()


@pytest.mark.parametrize("name", METHODS)
def test_masked_and_non_finite_examples_contribute_nothing(name: str) -> None:
    private = dpcompile(network(), loss=squares, strategy=name, max_grad_norm=1.0)
    (x,) = images(7)
    right = expect(network(), squares, (x[[0, 3, 6]],), max_grad_norm=1.0)
    x[1, 0, 0, 0], x[2, 1], x[5, 1, 2, 3] = float("nan"), float("inf"), -float("inf")
    mask = torch.tensor([True, True, True, True, False, True, True])
    step = private(x, mask=mask)
    assert step.nonfinite.tolist() == [False, True, True, False, False, True, False]
    assert step.clip_factors[[1, 2, 4, 5]].tolist() == [0.0] * 4
    for parameter, total in right.sums.items():
        assert torch.allclose(step.grads[parameter], total, rtol=1e-9, atol=1e-12)
    bad = private(x[[1, 2, 5]])
    assert not any(gradient.any() for gradient in bad.grads.values())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("clipping", ["automatic", "normalized", "psac", "global", "per-layer"])
def test_kinds_of_clipping_are_those_of_the_default(name: str, clipping: str) -> None:
    if clipping == "per-layer" and METHODS[name].schedule == "two-pass":
        with pytest.raises(StrategyError, match="bookkeep"):
            dpcompile(network(), loss=squares, strategy=name, clipping=clipping)
        return
    found, right = (
        dpcompile(network(), loss=squares, strategy=way, clipping=clipping, max_grad_norm=1.5)(*images(5))
        for way in (name, "auto")
    )
    assert torch.allclose(found.norms, right.norms, rtol=1e-9)
    assert torch.allclose(found.clip_factors, right.clip_factors, rtol=1e-9)
    for parameter, total in right.grads.items():
        assert torch.allclose(found.grads[parameter], total, rtol=1e-9, atol=1e-12), parameter


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_change_nothing(name: str, chunk: int) -> None:
    if name == "naive" and chunk > 1:
        return  # refused, see tests/plan/test_methods.py
    private = dpcompile(network(), loss=squares, strategy=name, schedule="microbatch", microbatch=chunk, max_grad_norm=0.5)
    found = errors(private(*images(7)), expect(network(), squares, images(7), max_grad_norm=0.5))
    assert max(found.values()) < TOLERANCE, found
    assert private.plan.microbatch == chunk


class AddedSums(nn.Module):
    """Two parameters that are used alike, whose gradient is one number for all entries, beside a layer; losses f64[B]."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.arange(3.0, dtype=torch.float64)) for _ in range(2))
        self.layer = nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        losses: Tensor = self.layer(x).square().sum(1) + (self.a + self.b).sum()
        return losses


@pytest.mark.parametrize("name", ["auto", *METHODS])
@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_sums_that_are_alike_can_be_added_to(name: str, chunk: int | None) -> None:
    if name == "naive" and chunk == 2:
        return  # refused, see tests/plan/test_methods.py
    torch.manual_seed(0)
    model, x = AddedSums(), torch.randn(5, 3, dtype=torch.float64)
    private = dpcompile(model, strategy=name, microbatch=chunk, max_grad_norm=0.5)
    expected = expect(model, None, (x,), max_grad_norm=0.5)
    step = private(x)
    assert max(errors(step, expected).values()) < TOLERANCE
    for parameter, total in expected.sums.items():
        step.grads[parameter].add_(total)
        assert torch.allclose(step.grads[parameter], 2 * total, rtol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_half_types(name: str) -> None:
    torch.manual_seed(0)
    model = mlp(7, 5, 3).bfloat16()
    x = torch.randn(5, 7).bfloat16()
    private = dpcompile(model, loss=squares, strategy=name, max_grad_norm=0.5)
    if METHODS[name].schedule == "two-pass":
        with pytest.raises(StrategyError, match="half type"):
            private(x)
        return
    step = private(x)
    assert all(gradient.dtype == torch.float32 for gradient in step.grads.values())
    right = expect(model, squares, (x,), max_grad_norm=0.5)
    assert torch.allclose(step.norms.double(), right.norms, rtol=0.03)
    for size in range(1, 4):
        assert whole_norm(private(x[:size]).grads) <= 0.5 * size * (1 + 1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_inductor_computes_the_same_or_is_refused(name: str) -> None:
    torch.manual_seed(0)
    model, x = mlp(7, 5, 3).double(), torch.randn(5, 7, dtype=torch.float64)
    private = dpcompile(model, loss=squares, strategy=name, backend="inductor", max_grad_norm=0.5)
    if METHODS[name].copies:
        with pytest.raises(DPCompileError, match=r'inductor.*copies.*backend="eager"'):
            private(x)
        return
    for size in (5, 1):
        found = errors(private(x[:size]), expect(model, squares, (x[:size],), max_grad_norm=0.5))
        assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("name", METHODS)
def test_the_drop_in_and_verify_follow_the_method(name: str) -> None:
    model = network()
    private = dpcompile(model, loss=squares, strategy=name, max_grad_norm=0.5)
    assert private.verify(*images(5)).ok
    module = private.as_module(loss_reduction="sum")
    squares(module, *images(5)).sum().backward()
    right = expect(network(), squares, images(5), max_grad_norm=0.5)
    for parameter, p in model.named_parameters():
        assert p.grad is not None and torch.allclose(p.grad, right.sums[parameter], rtol=1e-9, atol=1e-12)


def test_a_graph_for_one_example_refuses_several() -> None:
    private = dpcompile(network(), loss=squares, strategy="naive", example_batch=images(2))
    compiled = private.ready()
    (x,) = images(2)
    with pytest.raises(InvalidInput, match="got 2 examples"):
        compiled.runner([x], torch.ones(2, dtype=torch.bool), torch.tensor(1.0, dtype=torch.float64))


def counted(name: str, model: nn.Module, x: Tensor) -> int:
    """Matrix FLOPs of one step, as torch counts them."""
    compiled = dpcompile(model, loss=squares, strategy=name, example_batch=(x,)).ready()
    size = compiled.plan.at_a_time(len(x))
    with FlopCounterMode(display=False) as counter:
        compiled.runner([x[:size]], torch.ones(size, dtype=torch.bool), torch.tensor(1.0, dtype=torch.float64))
    return int(counter.get_total_flops()) * (len(x) // size)


def test_flops_are_ordered_as_the_papers_say() -> None:
    """Layers of width d on T positions: 6 B T d^2 is the ordinary step's less the first layer's input gradient (A2.4, C1.6)."""
    T, d, B = 3, 64, 2
    model = nn.Sequential(nn.Linear(d, d, bias=False), nn.Tanh(), nn.Linear(d, d, bias=False))
    x = torch.randn(B, T, d)
    flops = {name: counted(name, model, x) for name in METHODS}
    product = 2 * B * T * d * d
    forward, inputs, weights = 2 * product, product, 2 * product  # one of the two layers has an input gradient
    reused = 2 * 2 * B * d * d  # weighted sums
    assert flops["crb-unfold"] == flops["crb"] == flops["crb-nd"] == forward + inputs + weights + reused
    assert flops["multi"] == flops["crb-unfold"]
    assert flops["naive"] == forward + inputs + weights
    second_backward = flops["ghost"] - flops["bookkeep"]
    assert second_backward == inputs
    assert flops["reweight"] == forward + inputs + weights + inputs + weights
    assert flops["mixed-ghost"] == flops["ghost"] < flops["reweight"]
    assert flops["naive"] < flops["bookkeep"] < flops["ghost"]


def test_gram_norms_cost_more_than_gradients_where_sequences_are_long() -> None:
    model, x = nn.Linear(5, 3, bias=False), torch.randn(2, 131, 5)
    flops = {name: counted(name, model, x) for name in ("ghost", "mixed-ghost", "bookkeep", "crb-unfold")}
    assert flops["mixed-ghost"] < flops["ghost"] and flops["crb-unfold"] < flops["bookkeep"]


def test_copies_are_one_node_of_the_graph() -> None:
    private = dpcompile(network(), loss=squares, strategy="multi", example_batch=images(2))
    text = private.print_readable(print_output=False)
    assert text.count("copies(") == 1 and "convolution" not in text
    assert [stage.name for stage in private.stages][:4] == ["capture", "analysis", "emit_copies", "emit_norms"]


@pytest.mark.parametrize("clipping", ["flat", "per-layer", "automatic"])
def test_naive_takes_one_norm_for_whatever_one_factor_clips(clipping: str) -> None:
    private = dpcompile(network(), loss=squares, strategy="naive", clipping=clipping, example_batch=images(3))
    groups = max(len(private.clip_groups), 1)
    text = private.print_readable(False)
    assert text.count("= dp.total_square(") == groups and "dp.sqnorm(" not in text
