"""The printer: short types, roles for names, sizes as expressions, the same text whatever the sizes happen to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
import torch
from captured import captured, rewritten
from torch import nn
from zoo_case import squares

from dpcompile import torch_private
from dpcompile.ir.graph import size_expression
from dpcompile.ir.printer import argument_text, format_graph, target_text, type_text
from dpcompile.kernels.dense import sqnorm_outer

aten = torch.ops.aten


def types(*sizes: int | Callable[[Any], Any] | None, dtype: torch.dtype = torch.float32) -> str:
    """The text of a fake tensor; None stands for the batch size."""
    mode = torch_private.new_fakes()
    batch = torch_private.fake(mode, torch.empty(23), 0, 23).shape[0]
    with mode:
        fake = torch.empty([batch if size is None else size(batch) if callable(size) else size for size in sizes], dtype=dtype)
    return type_text(fake, size_expression(batch))


def test_types_are_short_and_the_batch_is_b() -> None:
    assert types(None, 5) == "f32[B, 5]" and types() == "f32[]"
    assert types(7, lambda b: 3 * b, dtype=torch.int64) == "i64[7, 3*B]"
    assert [types(2, dtype=t) for t in (torch.bfloat16, torch.bool, torch.complex64)] == ["bf16[2]", "bool[2]", "c64[2]"]


def test_several_results_and_missing_ones() -> None:
    assert type_text((torch.empty(2), None), sympy.Symbol("s")) == "(f32[2], None)"


def test_targets_lose_their_namespace_and_kernels_read_dp() -> None:
    assert target_text(aten.mm.default) == "mm" and target_text(sqnorm_outer) == "dp.sqnorm_outer"
    assert target_text(torch.ops.dpcompile.lstm.default) == "dpcompile.lstm"


def test_arguments_read_as_they_are_written() -> None:
    assert argument_text([1, (2.5,), (None, True)], {}) == "[1, (2.5,), (None, True)]"


def test_graph_of_a_small_network(golden: Callable[[str], None]) -> None:
    model = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2, bias=False))
    golden(format_graph(captured(model, squares, torch.randn(2, 5)).joint))


def test_places_name_the_module_before_its_nodes() -> None:
    model = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2))
    lines = format_graph(captured(model, squares, torch.randn(2, 5)).joint, places=True).splitlines()
    assert any(line.startswith("# 0") or line.startswith("# model.0") for line in lines)
    assert [line for line in lines if not line.startswith("#")] == format_graph(
        captured(model, squares, torch.randn(2, 5)).joint
    ).splitlines()


def test_text_does_not_depend_on_the_batch_that_was_traced() -> None:
    model = nn.Linear(5, 3)
    texts = {format_graph(rewritten(captured(model, squares, torch.randn(size, 5)), "materialize").joint) for size in (2, 3, 23)}
    assert len(texts) == 1


def test_sizes_are_written_as_expressions_and_not_as_nodes() -> None:
    text = format_graph(captured(nn.Linear(5, 3), squares, torch.randn(2, 7, 5)).joint)
    assert "[7*B, 3]" in text and "sym_size" not in text
