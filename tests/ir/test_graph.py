"""The joint graph's own words: inputs and outputs by role, places, states and refusals as text."""

from __future__ import annotations

import pytest
import torch
from captured import Captured, captured
from torch import nn
from zoo_case import squares

from dpcompile.ir.axis import BATCH_SIZE, SHARED, SUMMED, Batched, Constant, Mixes, Position, Uniform
from dpcompile.ir.errors import refusal
from dpcompile.ir.graph import where


@pytest.fixture(scope="module")
def model() -> Captured:
    """A layer with a frozen one before it."""
    net = nn.Sequential(nn.Linear(5, 3).requires_grad_(False), nn.Linear(3, 2))
    return captured(net, squares, torch.randn(2, 5))


def test_inputs_are_found_by_kind_and_name(model: Captured) -> None:
    kinds = [(kind, name) for kind, name in model.joint.placeholders()]
    assert kinds == [
        ("parameter", "1.weight"),
        ("parameter", "1.bias"),
        ("state", "0.weight"),
        ("state", "0.bias"),
        ("batch", "args[0]"),
    ]


def test_outputs_are_found_by_kind_and_name(model: Captured) -> None:
    assert model.joint.outputs == [("losses", ""), ("gradient", "1.weight"), ("gradient", "1.bias")]
    assert list(model.joint.named("gradient")) == ["1.weight", "1.bias"]


def test_an_output_that_does_not_exist_is_an_error(model: Captured) -> None:
    with pytest.raises(ValueError):
        model.joint.output("norms")


def test_forward_nodes_know_the_users_line_or_their_module(model: Captured) -> None:
    assert sum(bool(where(node)) for node in model.joint.graph.nodes if node.op == "call_function") >= 3


def test_states_print_as_they_are_written() -> None:
    states = (SHARED, SUMMED, BATCH_SIZE, Batched(1), Batched(0, inner=5), Uniform(0), Constant(2.0), Position(1))
    assert [str(state) for state in states] == [
        "Shared",
        "Summed",
        "BatchSize",
        "Batched(1)",
        "Batched(0, outer=1, inner=5)",
        "Uniform(0, outer=1, inner=1)",
        "Constant(2)",
        "Position(1)",
    ]


def test_a_mixture_keeps_its_reason_and_its_way_out() -> None:
    error = Mixes("they meet", "part them")
    assert (error.why, error.way_out, str(error)) == ("they meet", "part them", "they meet")


def test_a_refusal_leaves_out_what_is_unknown() -> None:
    assert refusal("culprit", "", "reason", "way out").splitlines() == ["culprit", "  why: reason", "  what to do: way out"]
