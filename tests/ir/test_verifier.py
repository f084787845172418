"""The verifier finds planted violations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from captured import Captured, captured, rewritten
from torch import nn
from zoo_case import squares

from dpcompile import dpcompile, torch_private
from dpcompile.forecast import rewriting
from dpcompile.ir.errors import CaptureError
from dpcompile.ir.graph import Input, JointGraph, value
from dpcompile.ir.randomness import has_draws
from dpcompile.ir.verifier import check, violations
from dpcompile.passes import PIPELINE
from dpcompile.plan.plan import Plan

aten = torch.ops.aten


@pytest.fixture(scope="module")
def model() -> Captured:
    """A captured layer."""
    return captured(nn.Linear(5, 3), squares, torch.randn(2, 5))


def one(joint: JointGraph, target: object) -> torch.fx.Node:
    """The first call of an operation."""
    return next(node for node in joint.graph.nodes if node.target is target)


def forgotten_input(joint: JointGraph) -> None:
    joint.inputs.pop()


def undescribed_output(joint: JointGraph) -> None:
    joint.outputs.append(("buffer", "nothing"))


def use_before_definition(joint: JointGraph) -> None:
    next(iter(joint.graph.nodes)).append(one(joint, aten.mm.default))


def losses_summed(joint: JointGraph) -> None:
    outputs = {key: joint.output(*key) for key in joint.outputs}
    joint.replace_outputs(outputs | {("losses", ""): outputs["gradient", "bias"]})


def gradients_exchanged(joint: JointGraph) -> None:
    outputs = {key: joint.output(*key) for key in joint.outputs}
    joint.replace_outputs(outputs | {("gradient", "weight"): outputs["gradient", "bias"]})


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (forgotten_input, "placeholders but"),
        (undescribed_output, "differ in length"),
        (use_before_definition, "stands before"),
        (losses_summed, "losses has shape"),
        (gradients_exchanged, "gradient of weight has shape"),
    ],
)
def test_planted_violation_is_found(plant: Callable[[JointGraph], None], message: str, model: Captured) -> None:
    joint = model.copied().joint
    assert violations(joint) == []
    plant(joint)
    assert any(message in violation for violation in violations(joint))
    with pytest.raises(CaptureError, match="internal error after a test"):
        check(joint, "a test")


def test_a_node_without_value_is_found(model: Captured) -> None:
    joint = model.copied().joint
    one(joint, aten.t.default).meta = {}
    assert any("has no value" in violation for violation in violations(joint))


def test_a_fixed_batch_size_is_found() -> None:
    joint = captured(nn.Linear(5, 3), squares, torch.randn(2, 5)).joint
    node = joint.output("losses")
    assert node is not None and node.meta["val"].shape[0] == 23
    assert "the batch size became fixed" in violations(joint)


def test_norms_of_another_shape_are_found(model: Captured) -> None:
    joint = rewritten(model).joint
    outputs = {key: joint.output(*key) for key in joint.outputs}
    joint.replace_outputs(outputs | {("norms", ""): outputs["gradient", "bias"]})
    assert any("norms has shape" in violation for violation in violations(joint))


def test_random_operations_are_found(model: Captured) -> None:
    dropout = captured(nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5)), squares, torch.randn(2, 5))
    assert has_draws(dropout.joint.graph.nodes) and not has_draws(model.joint.graph.nodes)


def test_an_input_more_than_placeholders_is_found(model: Captured) -> None:
    joint = model.copied().joint
    joint.inputs.append(Input("step", "mask"))
    assert any("3 placeholders but 4" in violation for violation in violations(joint))


@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_fused_attention_draws_only_with_dropout(probability: float) -> None:
    def attend(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        query = model(x).unflatten(2, (2, 4)).transpose(1, 2)
        attended = nn.functional.scaled_dot_product_attention(query, query, query, dropout_p=probability)
        return attended.square().flatten(1).sum(1)

    joint = captured(nn.Linear(8, 8), attend, torch.randn(2, 3, 8)).joint
    assert has_draws(joint.graph.nodes) == (probability > 0)


def fixes_the_batch_size(joint: JointGraph, plan: Plan) -> None:
    losses = joint.output("losses")
    assert losses is not None and int(value(losses).shape[0]) > 0


def relies_on_a_large_batch(joint: JointGraph, plan: Plan) -> None:
    losses = joint.output("losses")
    assert losses is not None and bool(value(losses).shape[0] > 10)


def brings_in_another_size(joint: JointGraph, plan: Plan) -> None:
    assert joint.fakes.shape_env is not None
    with joint.fakes:
        one(joint, aten.t.default).meta["val"] = torch.empty(joint.fakes.shape_env.create_unbacked_symint())


def fixes_an_input(joint: JointGraph, plan: Plan) -> None:
    node = next(
        node for item, node in zip(joint.inputs, joint.graph.find_nodes(op="placeholder"), strict=True) if item.kind == "batch"
    )
    node.meta["val"] = torch_private.fake(joint.fakes, torch.zeros(23, 5), None, 23)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (fixes_the_batch_size, "the batch size became fixed"),
        (relies_on_a_large_batch, "> 10 is relied on|>= 11 is relied on"),
        (brings_in_another_size, "a size of t.* which is not the batch size"),
        (fixes_an_input, "no longer has the batch size at the examples' axis"),
    ],
)
@pytest.mark.parametrize("place", [0, 3, -1])
def test_a_broken_pass_is_refused_by_its_name(
    broken: Callable[[JointGraph, Plan], None], message: str, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = list(PIPELINE)
    passes.insert(place % len(passes), broken)
    monkeypatch.setattr(rewriting, "PIPELINE", tuple(passes))
    private = dpcompile(nn.Linear(5, 3), loss=squares)
    with pytest.raises(CaptureError, match=f"internal error after {broken.__name__}: .*({message})"):
        private(torch.randn(2, 5))


def test_a_condition_that_every_batch_size_meets_is_no_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    def harmless(joint: JointGraph, plan: Plan) -> None:
        losses = joint.output("losses")
        assert losses is not None and bool(3 * value(losses).shape[0] < 2**31)

    monkeypatch.setattr(rewriting, "PIPELINE", (*PIPELINE, harmless))
    assert dpcompile(nn.Linear(5, 3), loss=squares)(torch.randn(2, 5)).norms.shape == (2,)
