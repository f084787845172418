"""Prices of nodes: matrix FLOPs of whole graphs are those that torch counts, views are nearly free, time adds up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from captured import Captured, captured, captured_case, rewritten, tensors
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from dpcompile.cost.hardware import HARDWARE
from dpcompile.kernels import recurrent_ops
from dpcompile.predict.nodes import is_view, predict, work_of

COUNTED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu in flop_registry
"""Whether torch counts attention on a CPU, as from 2.15 on."""
NAMES = ["MLP", "CNN", "ResNet-18", "ViT", "GPT-2, sdpa", "BERT, eager"]


def flops(model: Captured, max_grad_norm: float | None) -> tuple[float, int]:
    """Predicted and counted matrix FLOPs of a graph."""
    works = [work_of(node, 3) for node in model.joint.graph.nodes if node.op == "call_function"]
    found = sum(work.matrix_flops for work in works if COUNTED or not work.form.startswith("attention"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.joint.module(*tensors(model, max_grad_norm))
    return found, counter.get_total_flops()


@pytest.mark.parametrize("name", NAMES)
def test_matrix_flops_of_an_ordinary_step_are_what_torch_counts(name: str) -> None:
    found, counted = flops(captured_case(name), None)
    assert found == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_matrix_flops_of_a_private_step_are_what_torch_counts(name: str) -> None:
    case = captured_case(name)
    plan = case.plan("auto").strategies()  # torch counts all channels with all channels in weight gradients of groups
    alike = {name: ("single" if norm == "grouped-gradient" else norm, total) for name, (norm, total) in plan.items()}
    found, counted = flops(rewritten(case, alike), 1.0)
    assert found == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_every_call_has_a_price(name: str) -> None:
    model = rewritten(captured_case(name))
    seconds = predict(model.joint.graph, HARDWARE["cpu"], 3)
    calls = [node for node in model.joint.graph.nodes if node.op == "call_function"]
    assert list(seconds) == calls and all(0 < spent < 1 for spent in seconds.values())
    views = [seconds[node] for node in calls if is_view(node)]
    assert views and max(views) < 3e-6


SEQUENCES: dict[str, Callable[[], nn.RNNBase]] = {
    "lstm": lambda: nn.LSTM(3, 5),
    "lstm, projected": lambda: nn.LSTM(3, 5, proj_size=2),
    "gru": lambda: nn.GRU(3, 5),
    "rnn": lambda: nn.RNN(3, 5),
}


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("size", [3, 64])
def test_matrix_flops_of_a_recurrent_operation_are_those_of_torchs_own_layer(name: str, size: int) -> None:
    layer = SEQUENCES[name]().double()  # torch unrolls it into products that it counts
    made = captured(layer, lambda m, x: m(x)[0].square().sum((0, 2)), torch.randn(7, 3, 3).double(), batch_dim=1)
    forward = (recurrent_ops.lstm, recurrent_ops.gru, recurrent_ops.rnn)
    (node,) = (node for node in made.joint.graph.nodes if node.target in forward)
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(7, size, 3).double())
    assert work_of(node, size).matrix_flops == counter.get_total_flops()
