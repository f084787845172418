"""`report.formula`: formulas that give their numbers, and break-even points at which the sides are equal."""

from __future__ import annotations

import math

import pytest
import torch
from captured import captured
from torch import nn
from zoo_case import squares

from dpcompile import InvalidInput, dpcompile
from dpcompile.cost.hardware import HARDWARE
from dpcompile.cost.prices import complete, sizes_of
from dpcompile.plan.select import choose, cost_of
from dpcompile.report.formula import crossing_point, flop_roots, formula, timed
from dpcompile.strategies import NORMS, SUMS

CPU = HARDWARE["cpu"]
MATERIALIZE, GRAM = (NORMS["materialize"], SUMS["reuse"]), (NORMS["gram"], SUMS["bookkeep"])


def test_materialising_and_gram_need_equal_flops_where_the_formula_says() -> None:
    site = captured(nn.Linear(64, 32, bias=False), squares, torch.randn(2, 5, 64)).sites[0]
    sizes = sizes_of(site, 2)
    roots = dict(flop_roots(cost_of(site, *MATERIALIZE), cost_of(site, *GRAM), sizes[0]))
    assert [pytest.approx(math.sqrt(64 * 32 / (64 + 32 + 2)))] == list(roots.values())
    (root,) = roots
    assert str(root) == "sqrt(P)/sqrt(d + p + 2)"


@pytest.mark.parametrize(("norm", "total"), [MATERIALIZE, (NORMS["fused"], SUMS["bookkeep"])])
def test_flops_are_equal_at_a_root_that_is_a_whole_number_of_blocks(norm: object, total: object) -> None:
    site = captured(nn.Linear(512, 256, bias=False), squares, torch.randn(2, 5, 512)).sites[0]
    left, right = cost_of(site, norm, total), cost_of(site, *GRAM)  # type: ignore[arg-type]
    for _, value in flop_roots(left, right, sizes_of(site, 2)[0]):
        sizes = [complete({**s, "T": value}) for s in sizes_of(site, 2)]
        blocks = value / 128 if 128 < value <= 1024 else sizes[0]["N"]
        smooth = value**2 * (1 + 1 / blocks) * (512 + 256 + 2) * 2  # without rounding to whole blocks, B = 2
        others = left.at(sizes).total("matrix_flops") - (right.at(sizes).work[1].matrix_flops)
        assert smooth == pytest.approx(others, rel=1e-6)


def test_the_order_of_times_changes_at_the_crossing_point() -> None:
    site = captured(nn.Linear(256, 512, bias=False), squares, torch.randn(2, 5, 256)).sites[0]
    left, right = (timed(cost_of(site, *way), CPU, sizes_of(site, 16)) for way in (MATERIALIZE, GRAM))
    crossing = crossing_point(left, right)
    assert crossing is not None and (left(crossing) <= right(crossing)) != (left(1) <= right(1))
    assert (left(crossing - 1) <= right(crossing - 1)) == (left(1) <= right(1))


def test_equal_times_never_cross() -> None:
    assert crossing_point(lambda positions: 1.0, lambda positions: 2.0) is None


def test_every_option_is_described_with_its_numbers() -> None:
    made = captured(nn.Linear(5, 3), squares, torch.randn(2, 7, 5))
    plan = choose(made.sites, CPU, 4)
    text = formula(plan, CPU, "weight")
    choice = next(c for c in plan.choices if c.site.parameter == "weight")
    for option in (choice.option, *choice.others):
        assert f"{option.norm}+{option.sum}" in text
    assert "matrix FLOPs = 2*B*G*T*d*p = 840" in text and text.count("(chosen)") == 1


def test_a_parameter_that_does_not_exist_is_named() -> None:
    private = dpcompile(nn.Linear(5, 3), loss=squares, example_batch=(torch.randn(2, 7, 5),))
    assert "bti,bto->oi" in private.report().formula("weight")
    with pytest.raises(InvalidInput, match=r"'wieght' is not a parameter.*weight, bias"):
        private.report().formula("wieght")
