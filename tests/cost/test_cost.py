"""Costs add up and turn into numbers; seconds grow with every number; hardware rows are plausible."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sympy

from dpcompile.cost.hardware import HARDWARE, Hardware
from dpcompile.cost.roofline import seconds
from dpcompile.ir.cost import NUMBERS, B, Cost, T

ROWS = pytest.mark.parametrize("row", HARDWARE.values(), ids=lambda row: row.name)
SOME = Cost(1e9, 1e6, 1e8, 1e7, 6e7, 10)


def test_costs_are_formulas_that_add_up() -> None:
    total = Cost(matrix_flops=2 * B * T) + Cost(matrix_flops=B, launches=3)
    assert sympy.expand(total.matrix_flops - B * (2 * T + 1)) == 0 and total.launches == 3


def test_a_sum_has_the_form_of_its_left_part() -> None:
    assert (Cost(form="batched") + Cost()).form == "batched"


def test_formulas_become_numbers() -> None:
    found = Cost(matrix_flops=2 * B * T**2, launches=6, form="batched").at({"B": 3.0, "T": 5.0, "unused": 7.0})
    assert (found.matrix_flops, found.launches, found.form) == (150.0, 6.0, "batched")


def test_numbers_can_be_evaluated_again() -> None:
    assert SOME.at({}) == SOME


@ROWS
@pytest.mark.parametrize("number", NUMBERS)
def test_seconds_never_fall_when_a_number_grows(row: Hardware, number: str) -> None:
    grown = [seconds(replace(SOME, **{number: factor * getattr(SOME, number)}), row) for factor in (1, 2, 10, 1000)]
    assert grown == sorted(grown) and grown[-1] > grown[0] > 0


@ROWS
def test_nothing_takes_no_time(row: Hardware) -> None:
    assert seconds(Cost().at({}), row) == 0.0


@ROWS
def test_the_slower_of_arithmetic_and_traffic_counts(row: Hardware) -> None:
    flops, moved = Cost(matrix_flops=1e12).at({}), Cost(bytes_moved=1e12).at({})
    assert seconds(flops + moved, row) == max(seconds(flops, row), seconds(moved, row))


@ROWS
@pytest.mark.parametrize("form", ["matmul", "batched", "gram", "unfolded", "grouped convolution", "convolution weight gradient"])
def test_every_form_of_matrix_work_has_an_efficiency(row: Hardware, form: str) -> None:
    assert 0 < row.efficiency[form] <= 1
    reached = 1e15 / seconds(Cost(matrix_flops=1e15, form=form).at({}), row)
    assert reached == pytest.approx(row.efficiency[form] * row.peak_flops["float32"])


@ROWS
def test_traffic_that_stays_in_the_cache_is_no_slower(row: Hardware) -> None:
    small, large = (seconds(Cost(bytes_moved=size).at({}), row) / size for size in (max(row.cache, 1.0), 2 * row.cache + 1))
    assert small <= large


@ROWS
def test_rates_are_in_plausible_ranges(row: Hardware) -> None:
    assert 1e10 < row.peak_flops["float32"] < 1e15 and row.source
    assert 1e9 < row.bandwidth < 1e14 and 1e8 < row.fresh_bandwidth <= row.bandwidth
    assert 1e9 < row.memory < 1e13 and 1e-7 < row.launch < 1e-4
    assert row.peak_flops["float64"] <= row.peak_flops["float32"] <= row.peak_flops["bfloat16"]


@ROWS
def test_ridge_points_lie_where_those_of_real_machines_do(row: Hardware) -> None:
    assert 1 < row.peak_flops["float32"] / row.bandwidth < 500  # FLOP per byte


@ROWS
def test_a_type_without_a_row_runs_at_the_rate_of_float32(row: Hardware) -> None:
    assert row.flops("int8") == row.peak_flops["float32"]


def test_names_of_rows_are_their_keys() -> None:
    assert all(name == row.name for name, row in HARDWARE.items())
