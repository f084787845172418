"""Which parameters are clipped together, what is refused, and that groups need no more memory than an ordinary step."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from clip_oracle import SUBJECTS
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from typer.testing import CliRunner
from zoo_case import squares
from zoo_networks import mlp

from dpcompile import (
    PSAC,
    Automatic,
    Flat,
    Global,
    GroupWise,
    InvalidInput,
    Normalized,
    PerLayer,
    StrategyError,
    dpcompile,
)
from dpcompile.__main__ import app
from dpcompile.clip.groups import owner
from dpcompile.predict.memory import memory

SIZE = 4096


def test_the_groups_of_a_model_are_its_modules() -> None:
    private = dpcompile(SUBJECTS["tied"].make(), squares, clipping="per-layer", max_grad_norm=2.0)
    share = 2.0 / 3**0.5
    groups = {"": ("bias_of_all",), "table": ("table.weight",), "layer": ("layer.weight", "layer.bias")}
    assert {name: names for name, (names, _) in private.clip_groups.items()} == groups
    assert [norm for _, norm in private.clip_groups.values()] == pytest.approx([share] * 3)


def test_a_recurrent_layer_and_a_parametrized_one_are_one_module_each() -> None:
    model = nn.Sequential(weight_norm(nn.Linear(3, 4)), nn.LSTM(4, 5, batch_first=True))
    groups = dpcompile(model, squares, clipping="per-layer").clip_groups
    assert {name: len(names) for name, (names, _) in groups.items()} == {"0": 3, "1": 4}
    assert (
        owner("0.parametrizations.weight.original0") == "0" and owner("parametrizations.weight.original1") == owner("bias") == ""
    )


def test_freezing_changes_the_groups() -> None:
    model = mlp(3, 5, 2)
    private = dpcompile(model, nn.CrossEntropyLoss(), clipping="per-layer")
    batch = torch.randn(3, 3), torch.tensor([0, 1, 0])
    assert private(*batch).clip_factors.shape == (3, 2)
    model[0].requires_grad_(False)
    assert private(*batch).clip_factors.shape == (3, 1) and list(private.clip_groups) == ["2"]


def test_one_factor_is_one_group() -> None:
    private = dpcompile(mlp(3, 5, 2), nn.CrossEntropyLoss(), clipping=Flat(), max_grad_norm=0.5)
    assert private.clip_groups == {"*": (("0.weight", "0.bias", "2.weight", "2.bias"), 0.5)}


def test_a_name_comes_before_a_glob_and_values_are_clip_norms() -> None:
    private = dpcompile(mlp(3, 5, 2), nn.CrossEntropyLoss(), clipping=GroupWise({"*": 3, "2.bias": 4}))
    assert private.clip_groups == {"*": (("0.weight", "0.bias", "2.weight"), 3.0), "2.bias": (("2.bias",), 4.0)}
    assert private.max_grad_norm == private.sensitivity() == 5.0
    private.max_grad_norm = 10.0
    assert [norm for _, norm in private.clip_groups.values()] == [6.0, 8.0]


def make(clipping: Any, **options: Any) -> Any:
    """A step of a small classifier."""
    return dpcompile(mlp(3, 5, 2), nn.CrossEntropyLoss(), clipping=clipping, **options)


REFUSED: list[tuple[type[Exception], str, Callable[[], Any]]] = [
    (StrategyError, r"'median'.*flat, automatic, normalized, psac, global, per-layer.*GroupWise", lambda: make("median")),
    (StrategyError, "Automatic.*does not exist", lambda: make(Automatic)),
    (StrategyError, "needs its groups", lambda: make("group-wise")),
    (StrategyError, "2.weight is in no group", lambda: make(GroupWise({"0.*": 1.0}))),
    (
        StrategyError,
        r"0.weight is in 2 groups of GroupWise: '0.\*', '\*.weight'",
        lambda: make(GroupWise({"0.*": 1, "*.weight": 1})),
    ),
    (StrategyError, "'9.*' ?, which is left without", lambda: make(GroupWise({"*": 1.0, "9.*": 1.0}))),
    (StrategyError, "amount to 5; leave max_grad_norm= out", lambda: make(GroupWise({"0.*": 3, "2.*": 4}), max_grad_norm=1.0)),
    (InvalidInput, "GroupWise takes", lambda: GroupWise({})),
    (InvalidInput, "GroupWise takes", lambda: GroupWise({3: 1.0})),  # type: ignore[dict-item]
    (InvalidInput, r"clip norm of '\*' must be", lambda: GroupWise({"*": float("nan")})),
    (InvalidInput, r"clip norm of '\*' is 1e-10", lambda: GroupWise({"*": 1e-10})),
    (InvalidInput, "stability", lambda: Automatic(0.0)),
    (InvalidInput, "stability", lambda: Automatic(-1.0)),
    (InvalidInput, "stability", lambda: Automatic(float("nan"))),
    (InvalidInput, "stability", lambda: Automatic(True)),
    (InvalidInput, "stability", lambda: Automatic("much")),  # type: ignore[arg-type]
    (InvalidInput, "r must be", lambda: PSAC(float("inf"))),
    (InvalidInput, "r must be", lambda: PSAC(0)),
    (InvalidInput, "threshold", lambda: Global(0.0)),
    (InvalidInput, "threshold", lambda: Global(float("nan"))),
    (InvalidInput, "threshold is 1e-12", lambda: Global(1e-12)),
    (InvalidInput, "max_grad_norm", lambda: make("automatic", max_grad_norm=-1.0)),
]


@pytest.mark.parametrize(("error", "message", "attempt"), REFUSED, ids=lambda item: item if isinstance(item, str) else "")
def test_what_is_no_kind_is_refused(error: type[Exception], message: str, attempt: Callable[[], Any]) -> None:
    with pytest.raises(error, match=message):
        attempt()


def test_a_clip_norm_that_leaves_a_group_too_little_is_refused() -> None:
    private = make("per-layer", max_grad_norm=1.2e-9)
    with pytest.raises(InvalidInput, match=r"leaves a group of parameters 8\.4"):
        private(torch.randn(2, 3), torch.tensor([0, 1]))


@pytest.mark.parametrize("clipping", [PerLayer(), GroupWise({"*": 1.0})], ids=["per-layer", "group-wise"])
def test_groups_exclude_a_second_backward(clipping: Any) -> None:
    batch = torch.randn(3, 3), torch.tensor([0, 1, 0])
    with pytest.raises(StrategyError, match=r"two-pass.*every group has its own"):
        make(clipping, schedule="two-pass")
    with pytest.raises(StrategyError, match=r"reweight.*every group has its own"):
        make(clipping, strategy={"*": ("auto", "reweight")})
    twice = make("flat", schedule="two-pass")
    twice(*batch)
    with pytest.raises(StrategyError, match=r"reweight.*every group has its own"):
        make(clipping, plan=twice.plan)
    assert make("psac", plan=twice.plan)(*batch).norms.shape == (3,)


def deep(clipping: str) -> Any:
    """A deep MLP, looked at but never run at the size that is asked about."""
    torch.manual_seed(0)
    batch = torch.randn(SIZE, 64), torch.randint(0, 10, (SIZE,))
    model = mlp(64, *[256] * 8, 10)
    return dpcompile(model, nn.CrossEntropyLoss(), clipping=clipping, example_batch=batch, check_examples=False)


def test_a_deep_network_needs_no_more_memory_per_layer_than_without_privacy() -> None:
    flat, layers = deep("flat"), deep("per-layer")
    ordinary = memory(flat.ready().outlook.source.joint, SIZE).peak
    whole, each = (private.report().what_if().peak_bytes for private in (flat, layers))
    assert {total for _, total in flat.plan.strategies().values()} == {"bookkeep", "reuse"}
    assert each < 1.1 * ordinary < 1.4 * ordinary < whole
    tight = flat.report().what_if(memory_budget=1.1 * ordinary).plan
    assert tight.cut is not None or tight.is_chunked  # what flat clipping does for such a budget, and groups need not
    plan = layers.report().what_if(memory_budget=1.1 * ordinary).plan
    assert plan.cut is None and not plan.is_chunked


def test_a_budget_below_the_ordinary_step_takes_chunks_and_no_second_backward() -> None:
    layers = deep("per-layer")
    plan = layers.report().what_if(memory_budget=0.3 * layers.report().what_if().peak_bytes).plan
    assert plan.cut is None and plan.is_chunked


@pytest.mark.parametrize("kind", [Automatic(0.5), Normalized(), Global(3.0), GroupWise({"0.*": 1.0, "2.*": 2.0})], ids=str)
def test_kinds_are_values(kind: Any) -> None:
    assert copy.deepcopy(kind) == kind == pickle.loads(pickle.dumps(kind)) and isinstance(hash(kind), int)
    private = copy.deepcopy(make(kind))
    assert private(torch.randn(2, 3), torch.tensor([0, 1])).kind == kind


def factory(size: int) -> Any:
    """What `explain` compiles."""
    return mlp(3, 5, 2), nn.CrossEntropyLoss(), (torch.randn(size, 3), torch.randint(0, 2, (size,)))


def test_the_command_line_knows_the_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpcompile.__main__.load_factory", lambda path: factory)
    found = CliRunner().invoke(app, ["explain", "here:factory", "--batch-size", "4", "--clipping", "per-layer"])
    assert found.exit_code == 0 and "clipping: per-layer in 2 groups, min(1, C_k / n_k)" in found.output
    refused = CliRunner().invoke(app, ["explain", "here:factory", "--clipping", "median"])
    assert refused.exit_code == 1 and "per-layer" in refused.output
