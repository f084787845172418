"""The verifier finds planted violations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from captured import Captured, captured, rewritten
from torch import nn
from zoo_case import squares

from dpcompile.ir.errors import CaptureError
from dpcompile.ir.graph import Input, JointGraph
from dpcompile.ir.randomness import has_draws
from dpcompile.ir.verifier import check, violations

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
