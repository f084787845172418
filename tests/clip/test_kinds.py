"""Every kind of clipping against the oracle: sizes, strategies, schedules, backends, and everything that speaks of a step."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from clip_oracle import GLOBS, KINDS, SUBJECTS, Clipped, expected, given, worst
from torch import Tensor, nn
from zoo_networks import mlp

from dpcompile import Flat, GroupWise, PerLayer, dpcompile

TOLERANCE = 1e-9
GROUPED = ["per-layer", "group-wise"]
VARIED = [name for name in KINDS if "," in name]
PLAIN = [name for name in KINDS if name not in VARIED]


def compiled(name: str, subject: str, limit: float | None = None, **options: Any) -> tuple[Any, nn.Module, float]:
    """A step of a kind whose clip norm is the mean norm, so that some examples are clipped; its model and clip norm."""
    private, model, bound = made(name, subject) if not options else fresh(name, subject, **options)
    private.max_grad_norm = limit or bound
    return private, model, limit or bound


def fresh(name: str, subject: str, **options: Any) -> tuple[Any, nn.Module, float]:
    """The same with options of its own."""
    torch.manual_seed(0)
    case = SUBJECTS[subject]
    model = case.make()
    bound = float(expected("flat", case, model, case.batch(7), 1.0).norms.mean())
    return dpcompile(model, loss=case.loss, clipping=given(name, case), **options), model, bound


@cache
def made(name: str, subject: str) -> tuple[Any, nn.Module, float]:
    """Compiled once for all tests."""
    return fresh(name, subject)


def wanted(name: str, subject: str, model: nn.Module, batch: tuple[Tensor, ...], bound: float) -> Clipped:
    """What the oracle says."""
    return expected(name, SUBJECTS[subject], model, batch, bound)


CASES = [(name, "classifier") for name in KINDS] + [(n, s) for n in ("psac", *GROUPED) for s in SUBJECTS if s != "classifier"]


@pytest.mark.parametrize(("name", "subject"), CASES)
def test_norms_factors_and_sums_at_every_size(name: str, subject: str) -> None:
    private, model, bound = compiled(name, subject)
    for size in (3, 0, 1, 7):
        batch = SUBJECTS[subject].batch(size)
        assert worst(private(*batch), wanted(name, subject, model, batch, bound), bound) < TOLERANCE, size
    assert private.sensitivity() == bound
    total = sum(norm**2 for _, norm in private.clip_groups.values()) ** 0.5
    assert total == pytest.approx(bound, rel=1e-12)


@pytest.mark.parametrize("strategy", ["gram", "materialize", "fused", "grouped"])
@pytest.mark.parametrize("name", ["normalized", "per-layer", "group-wise"])
def test_norm_strategies_agree(name: str, strategy: str) -> None:
    subject = "images" if strategy == "grouped" else "added"
    private, model, bound = compiled(name, subject, strategy=strategy)
    batch = SUBJECTS[subject].batch(3)
    assert worst(private(*batch), wanted(name, subject, model, batch, bound), bound) < TOLERANCE
    assert strategy in {norm for norm, _ in private.plan.strategies().values()}


@pytest.mark.parametrize("name", PLAIN)
def test_schedules_agree(name: str) -> None:
    ways: list[dict[str, Any]] = [{"schedule": "microbatch", "microbatch": 3}]
    ways += [] if name in GROUPED else [{"schedule": "two-pass"}]
    for way in ways:
        private, model, bound = compiled(name, "classifier", **way)
        batch = SUBJECTS["classifier"].batch(7)
        assert worst(private(*batch), wanted(name, "classifier", model, batch, bound), bound) < TOLERANCE, way


def test_inductor_computes_the_same() -> None:
    private, model, bound = compiled("per-layer", "added", backend="inductor")
    for size in (3, 1):
        batch = SUBJECTS["added"].batch(size)
        assert worst(private(*batch), wanted("per-layer", "added", model, batch, bound), bound) < TOLERANCE
    assert private.report().backend == "inductor"


@pytest.mark.parametrize("name", KINDS)
def test_masked_and_non_finite_examples_contribute_nothing(name: str) -> None:
    private, model, bound = compiled(name, "classifier")
    x, y = SUBJECTS["classifier"].batch(7)
    x[2, 0], x[5, 1] = float("nan"), float("inf")
    mask = torch.tensor([True, False, True, True, False, True, True])
    left = torch.tensor([0, 3, 6])
    step = private(x, y, mask=mask)
    whole = wanted(name, "classifier", model, (x[left], y[left]), bound)
    assert worst(replace(step, norms=step.norms[left], clip_factors=step.clip_factors[left]), whole, bound) < TOLERANCE
    out = [1, 2, 4, 5]
    assert not step.clip_factors[out].any() and not step.unclipped[out].any()
    assert step.nonfinite.tolist() == [False, False, True, False, False, True, False]


@pytest.mark.parametrize("name", KINDS)
def test_counts_and_shares_are_those_of_the_unmasked_examples(name: str) -> None:
    private, model, bound = compiled(name, "classifier", limit=1.5)
    torch.manual_seed(0)  # the batch must not depend on whether an earlier test has compiled the step
    batch, mask = SUBJECTS["classifier"].batch(7), torch.tensor([True] * 5 + [False] * 2)
    step, oracle = private(*batch, mask=mask), wanted(name, "classifier", model, batch, bound)
    below = oracle.norms <= (2.0 if name == "global, 2" else bound)
    kept = oracle.factors == 1 if name in GROUPED else below
    counted = mask[:, None] if name in GROUPED else mask
    assert torch.equal(step.unclipped, kept & counted)
    assert torch.equal(step.count_unclipped, (kept & counted).sum(0)) and 0 < int(step.unclipped.sum()) < step.unclipped.numel()
    whole = kept.all(1) if name in GROUPED else kept
    assert step.share_clipped == pytest.approx(float((~whole)[:5].double().mean()))
    assert private(*batch, mask=torch.zeros(7, dtype=torch.bool)).share_clipped == 0


@pytest.mark.parametrize("name", PLAIN)
def test_another_clip_norm_compiles_nothing(name: str) -> None:
    private, model, bound = compiled(name, "classifier")
    batch = SUBJECTS["classifier"].batch(7)
    private(*batch)
    before = private.ready()
    for factor in (0.5, 3.0):
        private.max_grad_norm = factor * bound
        step = private(*batch)
        assert worst(step, wanted(name, "classifier", model, batch, factor * bound), factor * bound) < TOLERANCE
        assert private.ready() is before and step.max_grad_norm == private.sensitivity() == factor * bound


@pytest.mark.parametrize("name", PLAIN)
def test_backward_and_the_drop_in_leave_the_same_sums(name: str) -> None:
    private, model, bound = compiled(name, "classifier")
    batch = SUBJECTS["classifier"].batch(3)
    sums = wanted(name, "classifier", model, batch, bound).sums
    private.backward(*batch)
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert all(torch.allclose(found[n], total, atol=1e-9 * bound) for n, total in sums.items())
    model.zero_grad()
    module = private.as_module()
    F.cross_entropy(module(batch[0]), batch[1]).backward()
    again = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert all(torch.allclose(again[n], total, atol=1e-9 * bound) for n, total in sums.items())
    assert module.last_step.clip_factors.shape == private(*batch).clip_factors.shape


@pytest.mark.parametrize("name", PLAIN)
def test_verify_knows_the_kind(name: str) -> None:
    private, _, bound = fresh(name, "classifier")
    private.max_grad_norm = bound
    batch = SUBJECTS["classifier"].batch(5)
    assert private.verify(*batch, strict=True).ok
    other = PerLayer() if name == "flat" else Flat()
    private.options = replace(private.options, clipping=other)  # the compiled step stays what it was
    assert not private.verify(*batch).ok


def test_verify_takes_the_steps_word_where_rounding_decides() -> None:
    private, model, _ = compiled("global", "classifier")
    batch = SUBJECTS["classifier"].batch(1)
    private.max_grad_norm = float(wanted("flat", "classifier", model, batch, 1.0).norms[0])
    found = private.verify(*batch)
    assert found.ok and any("rounding decides" in note for note in found.notes)


def test_verify_of_a_model_with_dropout() -> None:
    private = dpcompile(
        nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.5), nn.Linear(7, 3)), nn.CrossEntropyLoss(), clipping="per-layer"
    )
    assert private.verify(torch.randn(4, 5), torch.tensor([0, 1, 2, 0])).ok


@pytest.mark.parametrize("name", KINDS)
def test_report_and_certificate_name_the_kind(name: str) -> None:
    private, _, bound = compiled(name, "classifier")
    private(*SUBJECTS["classifier"].batch(3))
    kind = private.kind.name
    documents = json.loads(private.report().json()), json.loads(private.certificate().json())
    for document in documents:
        assert document["clipping"]["kind"] == kind and document["sensitivity"]["l2"] == bound
        groups = {group["name"]: (tuple(group["parameters"]), group["clip_norm"]) for group in document["clipping"]["groups"]}
        assert groups == private.clip_groups
    assert f"clipping: {kind}" in str(private.certificate())
    assert (f"clipping: {kind}" in str(private.report())) == (kind != "flat")
    assert f"dp.{private.kind.kernel(0.0)[0].__name__}(" in private.print_readable(False)


def test_norms_and_sums_of_groups_are_counted_as_such() -> None:
    private = dpcompile(mlp(5, 7, 3), nn.CrossEntropyLoss(), clipping="per-layer")
    private(torch.randn(3, 5), torch.tensor([0, 1, 2]))
    found = private.report().facts.private
    kinds = {node.target.__name__: kind for node, kind in found.kinds.items() if hasattr(node.target, "__name__")}
    assert kinds["group_factors"] == kinds["sqnorm_outer"] == "norms" and kinds["contract"] == "clipped sums"


def test_a_zero_gradient_contributes_nothing_and_nothing_is_divided_by_zero() -> None:
    def loss(m: nn.Module, x: Tensor) -> Tensor:
        return m(x).sum(1) * x[:, 0]

    x = torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    factors = {"flat": 1.0, "automatic": 100.0, "normalized": 0.0, "psac": 1.0, "global": 1.0}
    for name, factor in factors.items():
        step = dpcompile(nn.Linear(2, 3).double(), loss, clipping=name)(x)
        assert float(step.clip_factors[0]) == pytest.approx(factor) and float(step.norms[0]) == 0
        assert all(bool(total.isfinite().all()) for total in step.grads.values())
    grouped = dpcompile(nn.Linear(2, 3).double(), loss, clipping=GroupWise(GLOBS))(x)
    assert grouped.clip_factors[0].tolist() == [1.0, 1.0]
