"""What each pass changes, as a diff of printed graphs; where it has nothing to do; what it never creates."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captured import Captured, captured, rewritten, tensors
from torch import nn
from torch.testing import FileCheck
from zoo_case import squares

from dpcompile.ir.printer import format_graph
from dpcompile.ir.verifier import violations
from dpcompile.passes import PIPELINE
from dpcompile.passes.clip_factors import emit_clip_factors
from dpcompile.passes.clipped_sums import emit_clipped_sums
from dpcompile.passes.narrow_backward import narrow_backward
from dpcompile.passes.norms import emit_norms
from dpcompile.passes.order import order_nodes

STEPS = {"norms": (), "clip_factors": PIPELINE[:1], "clipped_sums": PIPELINE[:2], "narrow_backward": PIPELINE[:3]}
PASSES = {
    "norms": emit_norms,
    "clip_factors": emit_clip_factors,
    "clipped_sums": emit_clipped_sums,
    "narrow_backward": narrow_backward,
}


@pytest.fixture(scope="module")
def linear() -> Captured:
    """One linear layer."""
    return captured(nn.Linear(5, 3), squares, torch.randn(2, 5))


@pytest.fixture(scope="module")
def sequence() -> Captured:
    """A linear layer on sequences."""
    return captured(nn.Linear(5, 3, bias=False), squares, torch.randn(2, 7, 5))


@pytest.fixture(scope="module")
def convolution() -> Captured:
    """A convolution behind another, so that its input needs a gradient."""
    model = nn.Sequential(nn.Conv1d(2, 3, 1, bias=False), nn.Conv1d(3, 5, 3))
    return captured(model, squares, torch.randn(2, 2, 7))


def text(model: Captured, strategy: Any, passes: Any) -> str:
    """The printed graph after some passes."""
    return format_graph(rewritten(model, strategy, passes).joint)


def changes(before: str, after: str) -> str:
    """Removed and added lines with one line of context."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=1, lineterm="")
    return "\n".join("..." if line.startswith("@@") else line for line in list(lines)[2:])


@pytest.mark.parametrize("name", ["norms", "clip_factors", "clipped_sums"])
def test_linear_with_book_keeping(name: str, linear: Captured, golden: Callable[[str], None]) -> None:
    before, strategy = STEPS[name], {"weight": ("outer", "bookkeep")}
    golden(changes(text(linear, strategy, before), text(linear, strategy, (*before, PASSES[name]))))


@pytest.mark.parametrize("name", ["norms", "clipped_sums"])
@pytest.mark.parametrize("way", [("gram", "bookkeep"), ("materialize", "reuse")], ids="+".join)
def test_sequence(name: str, way: tuple[str, str], sequence: Captured, golden: Callable[[str], None]) -> None:
    before = STEPS[name]
    golden(changes(text(sequence, {"weight": way}, before), text(sequence, {"weight": way}, (*before, PASSES[name]))))


def test_convolution_backward_is_asked_for_the_input_only(convolution: Captured, golden: Callable[[str], None]) -> None:
    golden(changes(text(convolution, "materialize", PIPELINE[:3]), text(convolution, "materialize", PIPELINE[:4])))


def test_whole_rewriting_of_a_linear_layer(linear: Captured, golden: Callable[[str], None]) -> None:
    golden(
        changes(text(linear, {"weight": ("outer", "bookkeep")}, ()), text(linear, {"weight": ("outer", "bookkeep")}, PIPELINE))
    )


# -- cases in which a pass has nothing to do -----------------------------------------------------------------------


def test_narrow_backward_declines_a_graph_without_masks(linear: Captured) -> None:
    assert text(linear, "auto", PIPELINE[:3]) == text(linear, "auto", PIPELINE[:4])


def test_narrow_backward_keeps_what_is_used(convolution: Captured) -> None:
    alone = text(convolution, "auto", (narrow_backward,))
    assert alone.count("convolution_backward(") == text(convolution, "auto", ()).count("convolution_backward(")
    assert "[True, True, True]" in alone


def test_order_nodes_declines_an_ordered_graph(convolution: Captured) -> None:
    done = rewritten(convolution)
    before = [node.name for node in done.joint.graph.nodes]
    order_nodes(done.joint)
    assert [node.name for node in done.joint.graph.nodes] == before


def test_a_graph_without_gradient_paths_gets_no_norms() -> None:
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2))
    unused = captured(model, lambda m, x: squares(m[0], x), torch.randn(2, 5))
    names = {name for kind, name in rewritten(unused, passes=PIPELINE[:1]).joint.outputs if kind == "squared_norm"}
    assert names == {"0.weight", "0.bias"} and unused.unused == ["1.weight", "1.bias"]


# -- what passes keep --------------------------------------------------------------------------------------------


def test_norms_change_no_result(linear: Captured) -> None:
    done = rewritten(linear, passes=PIPELINE[:1])
    before, after = (model.joint.module(*tensors(model)) for model in (linear, done))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=False))


def test_clip_factors_add_the_inputs_mask_and_clip_norm(linear: Captured) -> None:
    done = rewritten(linear, passes=PIPELINE[:2])
    assert [item.name for item in done.joint.inputs[-2:]] == ["mask", "max_grad_norm"]
    assert {kind for kind, _ in done.joint.outputs} == {"losses", "gradient", "norms", "clip_factors", "nonfinite"}


def test_the_original_graph_is_left_alone_by_a_rewritten_copy(linear: Captured) -> None:
    before = format_graph(linear.joint)
    rewritten(linear)
    assert format_graph(linear.joint) == before


@pytest.mark.parametrize("strategy", ["auto", "gram", "materialize", "fused"])
def test_every_stage_is_well_formed(strategy: str, sequence: Captured, convolution: Captured) -> None:
    for model in (sequence, convolution):
        for count in range(len(PIPELINE) + 1):
            assert violations(rewritten(model, strategy, PIPELINE[:count]).joint) == []


# -- what is never created ---------------------------------------------------------------------------------------


def test_gram_and_book_keeping_create_no_per_example_gradient(sequence: Captured) -> None:
    FileCheck().check_not("[B, 3, 5]").check("dp.sqnorm_gram").check_not("[B, 3, 5]").check("dp.contract").run(
        text(sequence, {"weight": ("gram", "bookkeep")}, PIPELINE)
    )


def test_materialize_creates_it_once_and_reuse_contracts_no_second_time(sequence: Captured) -> None:
    found = text(sequence, {"weight": ("materialize", "reuse")}, PIPELINE)
    FileCheck().check_count("[B, 3, 5]", 1, exactly=True).run(found)
    FileCheck().check_not("dp.contract").check("dp.weighted_sum").run(found)


def test_the_ordinary_gradient_is_no_longer_computed(linear: Captured, convolution: Captured) -> None:
    FileCheck().check_not("f32[3, 5] = mm(").run(text(linear, {"weight": ("outer", "bookkeep")}, PIPELINE))
    done = text(convolution, "materialize", PIPELINE)
    FileCheck().check_not("[True, True").check("convolution_backward").check("[True, False, False]").run(done)


def test_norm_and_sum_share_one_unfolded_input(convolution: Captured) -> None:
    found = text(convolution, {"*.weight": ("gram", "unfold")}, PIPELINE)
    FileCheck().check_count("dp.unfold(", 2, exactly=True).run(found)
