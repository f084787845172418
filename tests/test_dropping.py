"""Steps of which only a part is trained are exact, over the zoo, and need no new trace for another selection."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from dropping_case import expect_parts, mask_of
from oracle import errors
from torch import Tensor, nn
from zoo import ZOO
from zoo_case import Case, squares
from zoo_networks import cnn, mlp

from dpcompile import Blocks, GradientDropping, InvalidInput, PrePruning, dpcompile
from dpcompile.criteria.choices import kept_of
from dpcompile.module import PrivateModule

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
FIXED = [case for case in ZOO if not case.random]
GRANULARITIES = ["weights", "rows", "columns", "layers"]


def dropped(case: Case, granularity: str, dtype: torch.dtype, **options: Any) -> tuple[PrivateModule, Any]:
    """A model of the zoo of whose parameters half is trained; those that have no columns lose single weights."""
    model, loss = case.build(dtype)
    modules = [("", model), *([("loss.", loss)] if isinstance(loss, nn.Module) else [])]
    ranks = {prefix + name: p.dim() for prefix, m in modules for name, p in m.named_parameters() if p.requires_grad}
    least = {"rows": 1, "columns": 2}.get(granularity, 0)
    cuts = {name: granularity if rank >= least else "weights" for name, rank in ranks.items()}
    choice = GradientDropping(0.5, "random", cuts, parameters=["*"], seed=0)
    return dpcompile(model, loss=loss, batch_dim=case.batch_dim, passes=[choice], **options), loss


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("case", FIXED, ids=str)
def test_what_is_not_trained_is_zero_before_the_norm(case: Case, granularity: str) -> None:
    private, loss = dropped(case, granularity, torch.float64)
    batch, kwargs = case.batch(3, torch.float64), case.kwargs(3, torch.float64)
    for _ in range(2):
        expected = expect_parts(private, loss, batch, kwargs, case.batch_dim)
        private.max_grad_norm = expected.max_grad_norm
        step = private(*batch, **kwargs)
        found = errors(step, expected)
        assert max(found.values()) < TOLERANCE[torch.float64], found
        assert all(
            bool((total[mask_of(private, name).expand(total.shape) == 0] == 0).all()) for name, total in step.grads.items()
        )
        private.reselect()
    assert len(private.steps.by_key) == 1


def images(size: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor]:
    """Images f[B, 2, 9, 9], the same every time."""
    return (torch.randn(size, 2, 9, 9, dtype=dtype, generator=torch.Generator().manual_seed(size)),)


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Convolutions, a norm and linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(36, 8),
        nn.Tanh(), nn.Linear(8, 5),
    ).to(dtype)  # fmt: skip


WAYS = [
    {"strategy": "materialize"}, {"strategy": "gram"}, {"strategy": "naive"}, {"strategy": "multi"}, {"strategy": "crb"},
    {"strategy": "ghost"}, {"strategy": "reweight"}, {"schedule": "two-pass"}, {"schedule": "microbatch", "microbatch": 2},
    {"clipping": "per-layer"}, {"clipping": "automatic"}, {"backend": "inductor"},
]  # fmt: skip


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_strategy_schedule_and_kind_of_clipping_composes(way: dict[str, Any], size: int) -> None:
    within = "rows" if way.get("strategy") in ("gram", "ghost") else {"5.*": "weights", "2.*": "columns", "*": "rows"}
    passes = [PrePruning(0.5, granularity="rows", parameters=["0.*", "5.*"]), GradientDropping(0.5, granularity=within, seed=1)]
    private = dpcompile(network(), loss=squares, passes=passes, max_grad_norm=0.7, **way)
    own = dpcompile(private.model, loss=squares, max_grad_norm=0.7, **{k: v for k, v in way.items() if k == "clipping"})
    gradients = private.per_example_gradients(*images(size))
    whole = own.per_example_gradients(*images(size))
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, whole[name] * mask_of(private, name), atol=1e-12)
    norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0).sqrt()
    step = private(*images(size))
    assert torch.allclose(step.norms, norms, rtol=1e-9)
    parts = private.rule().parts(list(gradients))
    for group in parts:
        own_norms = torch.stack([gradients[n].flatten(1).square().sum(1) for n in group.parameters]).sum(0).sqrt()
        column = (
            step.clip_factors if step.clip_factors.dim() == 1 else step.clip_factors[:, [g.name for g in parts].index(group.name)]
        )
        assert bool((column * own_norms <= group.share * 0.7 * (1 + 1e-9)).all())
        for name in group.parameters:
            assert torch.allclose(step.grads[name], torch.tensordot(column, gradients[name], dims=1), atol=1e-12)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_batches_of_any_size_and_masks(size: int) -> None:
    private = dpcompile(network(), loss=squares, passes=[GradientDropping(0.7, granularity="rows", seed=0)])
    step = private(*images(size), mask=torch.arange(size) % 2 == 0)
    kept = [row for row in range(size) if row % 2 == 0]
    expected = expect_parts(private, squares, (images(size)[0][kept],), max_grad_norm=1.0)
    for name, total in expected.sums.items():
        assert torch.allclose(step.grads[name], total, atol=1e-12)


def test_what_is_dropped_may_be_infinite() -> None:
    model = mlp(3, 4, 2).double()
    masks = {"0.weight": torch.ones(4, 3, dtype=torch.bool)}
    masks["0.weight"][1] = False

    def loss(m: nn.Module, x: Tensor) -> Tensor:
        hidden = m.get_submodule("0")(x[:, :3])
        return (hidden * x[:, 3:]).sum(1)

    x = torch.ones(2, 7, dtype=torch.float64)
    x[0, 4] = torch.inf  # of the row that is not trained
    private = dpcompile(model, loss=loss, passes=[PrePruning(masks=masks)])
    assert bool(private(x).norms[1].isfinite())
    found = dpcompile(model, loss=loss, passes=[PrePruning(masks={**masks, "0.bias": masks["0.weight"][:, 0].clone()})])(x)
    assert bool(found.norms.isfinite().all()) and not bool(found.nonfinite.any())


@pytest.mark.parametrize("granularity", ["rows", "columns", Blocks(0, 2), "weights", "layers"])
def test_another_selection_needs_no_new_trace(granularity: Any) -> None:
    dropping = GradientDropping(0.5, granularity=granularity, parameters=["2.weight", "5.weight"], seed=0)
    private = dpcompile(network(), loss=squares, passes=[dropping])
    seen = set()
    for _ in range(100):
        private(*images(3))
        seen.add(tuple(bool(v) for v in mask_of(private, "5.weight").flatten()))
        private.reselect()
    assert len(private.steps.by_key) == 1 and len(seen) > 1


def test_whole_layers_below_the_last_one_that_is_trained_have_no_backward() -> None:
    model = mlp(5, 7, 7, 3).double()
    masks = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters() if not name.startswith("4.")}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    private = dpcompile(model, loss=squares, passes=[PrePruning(masks=masks)])
    x = torch.randn(3, 5, dtype=torch.float64)
    step = private(x)
    text = private.print_readable(False)
    assert "tanh_backward" not in text and "mm(" not in text.split("# step")[1]
    assert all(not step.grads[name].any() for name in masks) and step.grads["4.bias"].any()
    assert all(torch.equal(p, before[n]) == (n not in masks) for n, p in model.named_parameters())


def test_rows_of_convolutions_and_linear_layers_are_cut_out_of_the_operands() -> None:
    private = dpcompile(network(), loss=squares, passes=[PrePruning(0.5, granularity="rows")], example_batch=images(2))
    text = private.print_readable(False)
    assert text.count("choose_kept") >= 4 and "keep_entries" not in text
    assert {site.parameter: site.isometric for site in private.ready().outlook.source.sites}["2.weight"]


def test_wrong_passes_are_refused() -> None:
    model = mlp(5, 7, 3)
    wrong: list[tuple[list[Any], str]] = [
        ([PrePruning(0.5), PrePruning(0.3)], "2 PrePruning; give one"),
        (["prune"], "takes PrePruning"),
        ([GradientDropping(0.5, parameters=["nothing"])], "matches none of"),
        ([PrePruning(masks={"0.weight": torch.ones(7, 5)})], r"must be bool\[7, 5\]"),
        ([PrePruning(masks={"9.weight": torch.ones(7, 5)})], "does not train"),
        ([PrePruning(granularity="row")], "does not exist; use one of weights"),
        ([PrePruning(granularity=Blocks(0, 2), parameters=["0.weight"])], "cannot be cut into Blocks"),
        ([PrePruning(granularity={"2.*": "rows"})], "says nothing of 0.weight"),
    ]
    for passes, words in wrong:
        with pytest.raises(InvalidInput, match=words):
            dpcompile(model, loss=squares, passes=passes)


def test_convolutional_network_trains_half_of_its_channels() -> None:
    model = cnn().double()
    private = dpcompile(model, loss=squares, passes=[PrePruning(0.5, granularity="channels")])
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            left = parameter.flatten(1).any(1)
            assert int(left.sum()) == kept_of(0.5, len(left)) < len(left)
            assert torch.equal(left.double(), mask_of(private, name).flatten(1)[:, 0])


def test_copies_choose_by_themselves() -> None:
    private = dpcompile(network(), loss=squares, passes=[PrePruning(0.3), GradientDropping(0.5, granularity="rows", seed=0)])
    private(*images(3))
    for copied in (copy.deepcopy(private), pickle.loads(pickle.dumps(private))):
        assert torch.equal(mask_of(copied, "5.weight"), mask_of(private, "5.weight"))
        before = mask_of(private, "5.weight").clone()
        copied.reselect()
        assert torch.equal(mask_of(private, "5.weight"), before) and not torch.equal(mask_of(copied, "5.weight"), before)
        found = errors(copied(*images(3)), expect_parts(copied, squares, images(3), max_grad_norm=1.0))
        assert max(found.values()) < TOLERANCE[torch.float64], found


def test_the_drop_in_trains_the_same_parts() -> None:
    private = dpcompile(network(), loss=squares, passes=[GradientDropping(0.5, granularity="rows", seed=0)], max_grad_norm=0.5)
    module = private.as_module(loss_reduction="sum")
    for _ in range(2):
        private.model.zero_grad()
        squares(module, *images(3)).sum().backward()
        expected = expect_parts(private, squares, images(3), max_grad_norm=0.5)
        for name, parameter in private.model.named_parameters():
            assert parameter.grad is not None and torch.allclose(parameter.grad, expected.sums[name], atol=1e-12)
        private.reselect()


def test_the_report_says_what_is_saved() -> None:
    private = dpcompile(mlp(8, 16, 4).double(), loss=squares, passes=[PrePruning(0.5, granularity="rows")])
    private(torch.randn(3, 8, dtype=torch.float64))
    assert "50% of the products of per-example gradients and 50% of their entries" in str(private.report())
    assert private.verify(torch.randn(3, 8, dtype=torch.float64)).ok
