"""Where the examples lie in captured models, and refusals at the first place where they meet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captured import Captured, captured, captured_case
from torch import nn
from zoo_case import squares
from zoo_layers import Using, parameter

from dpcompile.analysis.example_axis import example_axis, state_of
from dpcompile.ir.axis import SHARED, SUMMED, Batched, Constant
from dpcompile.ir.errors import MixedExamplesError, UnsupportedOperation
from dpcompile.rules.rule import Result, Use

aten = torch.ops.aten
CASES = (
    "linear",
    "linear on sequences",
    "sequence-first inside",
    "folded batch",
    "LSTM, sequence first",
    "module tie",
    "layer norm",
    "instance norm",
    "position embedding",
    "gather by length",
    "self-attention, sequence first",
    "conv2d grouped",
)


def state_of_output(found: Captured, kind: str, name: str = "") -> Result:
    """The state of what is returned under a name."""
    node = found.joint.output(kind, name)
    assert node is not None
    return found.states[node]


@pytest.mark.parametrize("name", CASES)
def test_losses_are_one_per_example_and_gradients_sums(name: str) -> None:
    found = captured_case(name)
    assert state_of_output(found, "losses") == Batched(0)
    assert all(state_of_output(found, "gradient", name) == SUMMED for name in found.joint.named("gradient"))


@pytest.mark.parametrize("name", CASES)
def test_parameters_are_shared_and_the_batch_lies_where_it_was_said(name: str) -> None:
    found = captured_case(name)
    for item, node in zip(found.joint.inputs, found.joint.placeholders().values(), strict=True):
        assert (item.kind == "batch") == (item.dim is not None)
        assert found.states[node] == (SHARED if item.dim is None else Batched(item.dim))


def states_of(name: str, target: Any) -> list[Any]:
    """The states of all calls of an operation in a model of the zoo."""
    found = captured_case(name)
    return [found.states[node] for node in found.joint.graph.nodes if node.target is target]


def test_positions_are_folded_into_the_rows_of_a_matrix_product() -> None:
    assert Batched(0, 1, 7) in states_of("linear on sequences", aten.addmm.default)


def test_sequences_first_are_folded_with_positions_outside() -> None:
    assert Batched(0, 7, 1) in captured_case("sequence-first inside").states.values()


def test_recurrent_operations_hold_the_examples_second() -> None:
    (found,) = states_of("LSTM", torch.ops.dpcompile.lstm.default)
    assert [state.dim for state in found] == [1, 0, 0, 1, 1]


def test_instance_norm_folds_the_examples_into_the_channels() -> None:
    found = [state for state in captured_case("instance norm").states.values() if isinstance(state, tuple)]
    assert any(states[0] == Batched(1, 1, 5) for states in found)


def test_gradients_of_ones_are_constants() -> None:
    found = captured(nn.Linear(5, 3), lambda m, x: m(x).sum(1), torch.randn(2, 5))
    assert any(isinstance(state, Constant) for state in found.states.values())
    assert state_of_output(found, "gradient", "bias") == SUMMED


def use_of(model: nn.Module, *args: Any) -> dict[Any, Any]:
    """The states of a model's graph."""
    return captured(model, squares, *args).states


@pytest.mark.parametrize(
    ("why", "forward"),
    [
        ("runs along dimension 0", lambda m, x: m.a(x).softmax(0)),
        ("mean over the batch", lambda m, x: m.a(x) - m.a(x).mean(0)),
        ("sum over the batch", lambda m, x: m.a(x) * m.a(x).sum(0)),
        ("reduction runs over the examples", lambda m, x: m.a(x) / m.a(x).norm()),
        ("batch size is used as a value", lambda m, x: m.a(x) / x.shape[0]),
        ("position in the batch is used as a value", lambda m, x: m.a(x) + torch.arange(x.shape[0])[:, None]),
        ("by their place in the batch", lambda m, x: m.a(x) + m.a(x)[0]),
        ("into another", lambda m, x: m.a(x).roll(1)),
        ("cuts across examples", lambda m, x: m.a(x).reshape(3, -1).t() + x[:, :3]),
        ("every example of one operand meets", lambda m, x: (m.a(x) @ m.a(x).t()) @ m.a(x)),
        ("norms over all dimensions but one", lambda m, x: torch.renorm(m.a(x), 2, 1, 1.0)),
        (
            "examples are picked by an index",
            lambda m, x: m.a(x)[torch.arange(x.shape[0]), torch.arange(x.shape[0])][:, None] + m.a(x),
        ),
        ("written across examples", lambda m, x: m.a(x).index_put((torch.zeros(1, dtype=torch.long),), torch.zeros(()))),
    ],
)
def test_a_mixture_is_refused_with_its_reason(why: str, forward: Any) -> None:
    model = Using(forward, a=nn.Linear(5, 3), rows=parameter(11, 3))
    with pytest.raises(MixedExamplesError, match=why):
        use_of(model, torch.randn(2, 5))


def test_a_value_filled_with_the_batch_size_is_refused() -> None:
    model = Using(lambda m, x: m.a(x) + torch.full((3,), x.shape[0], dtype=x.dtype), a=nn.Linear(5, 3))
    with pytest.raises(MixedExamplesError, match="batch or its size"):
        use_of(model, torch.randn(2, 5))


def test_a_range_that_starts_at_the_batch_size_is_refused() -> None:
    model = Using(lambda m, x: m.a(x) + torch.arange(x.shape[0], x.shape[0] + 3), a=nn.Linear(5, 3))
    with pytest.raises(MixedExamplesError, match="counted over the whole batch"):
        use_of(model, torch.randn(2, 5))


LIBRARY = torch.library.Library("dpcompile_tests", "FRAGMENT")
LIBRARY.define("unknown(Tensor x) -> Tensor")
LIBRARY.impl("unknown", lambda x: 2 * x, "CompositeExplicitAutograd")


def test_an_operation_without_a_rule_is_refused_by_name() -> None:
    model = Using(lambda m, x: m.a(x) + torch.ops.dpcompile_tests.unknown(x), a=nn.Linear(5, 5))
    with pytest.raises(UnsupportedOperation, match=r"dpcompile_tests\.unknown"):
        use_of(model, torch.randn(2, 5))


def test_an_operation_without_a_rule_is_fine_on_shared_values() -> None:
    model = Using(lambda m, x: x @ torch.linalg.matrix_exp(m.w).detach() + m.a(x), a=nn.Linear(5, 5), w=parameter(5, 5))
    assert use_of(model, torch.randn(2, 5))


def test_a_buffer_that_takes_in_the_batch_is_refused() -> None:
    class Remembers(nn.Module):
        seen: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(5, 3)
            self.register_buffer("seen", torch.zeros(5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.copy_(x.detach().sum(0))
            return self.a(x)

    with pytest.raises(MixedExamplesError, match="buffer seen"):
        use_of(Remembers(), torch.randn(2, 5))


def test_the_analysis_changes_nothing() -> None:
    found = captured_case("linear")
    before = [(node, node.args, dict(node.meta)) for node in found.joint.graph.nodes]
    example_axis(found.joint)
    assert before == [(node, node.args, dict(node.meta)) for node in found.joint.graph.nodes]


def test_a_state_that_contradicts_the_shape_is_refused() -> None:
    found = captured_case("linear")
    node = next(n for n in found.joint.graph.nodes if n.target is aten.addmm.default)
    wrong = {n: SUMMED if n.op == "placeholder" else s for n, s in found.states.items()}
    with pytest.raises(MixedExamplesError):
        state_of(Use(node, wrong, found.joint.symbol))
