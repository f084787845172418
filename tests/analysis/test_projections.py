"""Tails that work row by row: exact arithmetic of polynomials, what counts as a row, and which values are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captured import captured
from torch import Tensor, fx
from zoo_case import squares
from zoo_layers import Using, parameter

from dpcompile.analysis.polynomials import (
    by_direction,
    direction,
    masked,
    number,
    plus,
    power,
    quotient,
    row_factor,
    times,
)  # fmt: skip
from dpcompile.analysis.row_values import Rows, first_of_equals
from dpcompile.ir.projection import Monomial, Projection


@pytest.fixture
def nodes() -> list[fx.Node]:
    """Four nodes to name things with."""
    graph = fx.Graph()
    return [graph.placeholder(name) for name in ("gain", "norm", "weight", "mask")]


def test_polynomials_are_added_and_multiplied_like_polynomials(nodes: list[fx.Node]) -> None:
    gain, norm, weight, _ = nodes
    left, right = plus(direction(weight), row_factor(norm)), plus(direction(weight), row_factor(norm), -1.0)
    product = times(left, right)
    assert product == plus(times(direction(weight), direction(weight)), times(row_factor(norm), row_factor(norm)), -1.0)
    assert plus(left, left, -1.0) == {} and times(left, number(0)) == {}
    inverse = power(row_factor(gain), -1)
    assert inverse is not None and times(inverse, row_factor(gain)) == number(1)
    assert power(left, -1) is None and power(direction(weight), 2) is None


def test_a_quotient_never_divides_by_what_the_program_does_not_divide_by(nodes: list[fx.Node]) -> None:
    gain, norm, *_ = nodes
    by = {name: next(iter(row_factor(node))) for name, node in (("gain", gain), ("norm", norm))}
    assert quotient(number(1), by["gain"], 1.0) is None
    assert quotient(row_factor(gain), by["gain"], 2.0) == number(0.5)
    inverse = power(row_factor(norm), -1)
    assert inverse is not None and quotient(inverse, by["norm"], 1.0) == power(row_factor(norm), -2)
    assert quotient(plus(row_factor(gain), number(1)), by["gain"], 1.0) is None


def test_masks_stay_with_their_monomials(nodes: list[fx.Node]) -> None:
    gain, _, weight, mask = nodes
    hidden = masked(plus(row_factor(gain), direction(weight)), mask, False)
    assert all(monomial.masks == ((mask, False),) for monomial in hidden)
    assert set(by_direction(hidden)) == {(), (weight,)}
    assert power(masked(row_factor(gain), mask, True), -1) is None
    assert masked(hidden, mask, False) == hidden


def test_rows_are_told_from_columns_of_a_square() -> None:
    rows = Rows(5, 5)
    assert rows.kind((5, 5)) == "full" == rows.kind((1, 5, 5)) and rows.kind((5,)) == "row" and rows.kind(()) == "number"
    assert rows.kind((25,)) == "" and rows.kind((5, 3)) == ""
    assert rows.are_aligned((5, 1), (5, 5)) and not rows.are_aligned((5,), (5, 5)) and not rows.are_aligned((1, 5), (5, 5))
    assert rows.are_aligned((), (5, 5)) and rows.are_aligned((5, 5), (1, 5, 5))


def test_rows_of_convolutions_hold_all_that_is_not_an_output_channel() -> None:
    rows = Rows(4, 18)
    assert rows.kind((4, 2, 3, 3)) == "full" and rows.kind((4, 1, 1, 1)) == "row" and rows.kind((2, 2, 18)) == "full"
    assert rows.kind((3, 24)) == ""
    assert rows.are_aligned((4, 1, 1, 1), (4, 2, 3, 3)) and not rows.are_aligned((4, 2, 1, 1), (4, 2, 3, 3))


def twice(m: Any, x: Tensor) -> Tensor:
    """The same mean, written twice, and two draws that look alike."""
    centred = m.w - m.w.mean(1, keepdim=True)
    noise = torch.rand(3, 1) - torch.rand(3, 1)
    return F.linear(x, centred / (m.w - m.w.mean(1, keepdim=True)).norm(dim=1, keepdim=True) + 0 * noise.sum())


def test_equal_values_are_one_and_draws_are_not() -> None:
    found = captured(Using(twice, w=parameter(3, 5)), squares, torch.randn(2, 5))
    firsts = first_of_equals(found.joint.graph, found.states)
    named = {kind: [n for n in found.joint.graph.nodes if kind in str(n.target)] for kind in ("aten.mean", "aten.rand")}
    assert len(named["aten.mean"]) > 1 and len({firsts[node] for node in named["aten.mean"]}) == 1
    assert len(named["aten.rand"]) == len({firsts[node] for node in named["aten.rand"]}) == 2


def test_standardising_removes_the_mean_and_the_weight() -> None:
    weight = captured(Using(lambda m, x: F.linear(x, F.layer_norm(m.w, (5,))), w=parameter(3, 5)), squares, torch.randn(2, 5))
    found = weight.site("w").projection
    assert isinstance(found, Projection) and (found.rows, found.columns, found.computed) == (3, 5, 0)
    assert [functional.is_plain_sum for functional in found.functionals] == [False, True]
    assert {len(nodes) for nodes in found.directions} == {0, 1} and len(found.scale) == 1
    assert all(isinstance(monomial, Monomial) and not monomial.direction for monomial, _ in found.scale)
