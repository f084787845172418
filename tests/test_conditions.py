"""Two traces are the same program if they differ only in where a size was read."""

from __future__ import annotations

import pytest
import torch
from captured import Captured, captured
from torch import nn
from zoo_case import squares

from dpcompile.conditions import outline


def small() -> Captured:
    """Two inputs, one layer."""
    x = torch.randn(6, 4)
    return captured(nn.Linear(4, 3), lambda m, x, y: squares(m, x) + y.new_zeros(y.shape[0]) + y, x, torch.randn(6))


@pytest.mark.parametrize("dim", [0, 1])
def test_sizes_that_are_read_once_more_change_nothing(dim: int) -> None:
    model = small().copied()
    before = outline(model.joint)
    inputs = [node for node in model.joint.graph.nodes if node.op == "placeholder" and node.meta["val"].dim() > dim]
    with model.joint.graph.inserting_after(inputs[-1]):
        size = model.joint.graph.call_function(torch.ops.aten.sym_size.int, (inputs[-1], dim))
    size.meta["val"] = inputs[-1].meta["val"].shape[dim]
    assert outline(model.joint) == before


def test_another_size_in_the_same_place_is_another_program() -> None:
    model = small().copied()
    before = outline(model.joint)
    size = next(node for node in model.joint.graph.nodes if node.target is torch.ops.aten.sym_size.int and node.users)
    size.meta["val"] = 5
    assert outline(model.joint) != before
