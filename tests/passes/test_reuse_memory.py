"""Results are written only over memory that nothing reads any more, and never over what belongs to the caller."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from captured import Captured, captured, rewritten, tensors
from torch import Tensor, fx, nn
from torch.testing import assert_close
from zoo_case import squares

from dpcompile import dpcompile
from dpcompile.ir.printer import format_graph
from dpcompile.ir.verifier import violations
from dpcompile.kernels.workspace import Workspace
from dpcompile.passes.reuse_memory import reuse_memory


def reused(model: nn.Module, loss: object, *args: Tensor, strategy: str = "auto") -> tuple[Captured, Captured]:
    """A rewritten step, and the same after the pass."""
    graph = captured(model, loss, *args)
    done, copy = rewritten(graph, strategy), rewritten(graph, strategy)
    reuse_memory(copy.joint)
    return done, copy


class Functional(nn.Module):
    """f(linear(x)) for some function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(5, 5), function

    def forward(self, x: Tensor) -> Tensor:
        """f32[B, 5] to f32[B, 5]."""
        return self.function(self.linear(x))


def written(joint: Captured) -> dict[str, str]:
    """Which node is written over which operand."""
    nodes = joint.joint.graph.nodes
    return {n.name: str(v) for n in nodes for k, v in n.kwargs.items() if k in ("out", "grad_input") and isinstance(v, fx.Node)}


@pytest.mark.parametrize("strategy", ["auto", "materialize"])
def test_the_step_stays_the_same_call_after_call(strategy: str) -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3), nn.Sigmoid()).double()
    done, copy = reused(model, squares, torch.randn(3, 2, 5, dtype=torch.float64), strategy=strategy)
    assert len(written(copy)) >= 3 and violations(copy.joint) == []
    expected = done.joint.module(*tensors(done, 1.0))
    for _ in range(2):
        assert_close(copy.joint.module(*tensors(copy, 1.0)), expected, rtol=0, atol=0)


def test_an_operand_that_is_read_later_is_kept() -> None:
    _, once = reused(Functional(torch.tanh), squares, torch.randn(2, 5))
    assert "tanh" in written(once)  # the backward of tanh reads its result only
    _, twice = reused(Functional(F.gelu), squares, torch.randn(2, 5))
    assert "gelu" not in written(twice)  # the backward of gelu reads what went in


def test_an_operand_of_which_a_view_is_read_later_is_kept() -> None:
    def function(y: Tensor) -> Tensor:
        view = y.t()
        return torch.sigmoid(y) * view.t().square()

    _, copy = reused(Functional(function), squares, torch.randn(2, 5))
    assert "sigmoid" not in written(copy)


def test_inputs_and_parameters_are_never_written() -> None:
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x) + torch.relu(x.view(-1, 5)) * torch.tanh(self.weight) + x * self.weight

    x, model = torch.randn(3, 5), Direct()
    before = x.clone(), model.weight.detach().clone()
    _, copy = reused(model, squares, x)
    inputs = {n.name for n in copy.joint.graph.nodes if n.op == "placeholder"}
    assert not inputs & set(written(copy).values())
    copy.joint.module(*tensors(copy, 1.0))
    assert torch.equal(x, before[0]) and torch.equal(model.weight, before[1])


def test_an_operand_used_twice_in_one_operation_through_a_view_is_kept() -> None:
    _, copy = reused(Functional(lambda y: y * y.flip(1) + y.t().t()), squares, torch.randn(2, 5))
    assert violations(copy.joint) == []
    model = Functional(lambda y: y.unflatten(0, (-1, 1)).squeeze(1) * y).double()
    done, copy = reused(model, squares, torch.randn(5, 5, dtype=torch.float64))
    assert_close(copy.joint.module(*tensors(copy, 1.0)), done.joint.module(*tensors(done, 1.0)), rtol=0, atol=0)


def test_materialised_gradients_get_a_workspace_and_outputs_do_not() -> None:
    model, x = nn.Linear(5, 3, bias=False), torch.randn(2, 7, 5)
    _, copy = reused(model, squares, x, strategy="materialize")
    assert sum(isinstance(node.target, Workspace) for node in copy.joint.graph.nodes) == 1
    first, second = (dpcompile(model, loss=squares).per_example_gradients(x)["weight"] for _ in range(2))
    assert first.data_ptr() != second.data_ptr()


def test_gradients_of_two_steps_do_not_share_memory() -> None:
    model, x = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2)), torch.randn(2, 7, 5)
    private = dpcompile(model, loss=squares, strategy="materialize")
    first = private(x).grads
    kept = {name: gradient.clone() for name, gradient in first.items()}
    second = private(2 * x).grads
    for name, gradient in first.items():
        assert torch.equal(gradient, kept[name]) and gradient.data_ptr() != second[name].data_ptr()


def test_printed_calls_say_what_is_written_over() -> None:
    _, copy = reused(Functional(torch.relu), squares, torch.randn(2, 5))
    assert "relu(addmm, out=addmm)" in format_graph(copy.joint)
