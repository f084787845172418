"""Costs add up and turn into numbers; seconds grow with every number; hardware rows are plausible."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sympy

from dpcompile.cost.hardware import CPU_EFFICIENCY, GPU_EFFICIENCY, HARDWARE, Hardware
from dpcompile.cost.roofline import seconds, work_seconds
from dpcompile.ir.cost import NUMBERS, B, Cost, S, T, Work

ROWS = pytest.mark.parametrize("row", HARDWARE.values(), ids=lambda row: row.name)
SOME = Work("contract", 1e9, 1e6, 1e8, 1e7, 10.0)


def test_costs_are_formulas_that_add_up() -> None:
    total = Cost((Work("a", matrix_flops=2 * B * T),), 3 * B, 5 * B) + Cost((Work("b", matrix_flops=B, launches=3),), B, 7 * T)
    assert sympy.expand(total.total("matrix_flops") - B * (2 * T + 1)) == 0 and total.total("launches") == 4
    assert total.resident_bytes == 4 * B and total.workspace_bytes == sympy.Max(5 * B, 7 * T)


def test_formulas_become_numbers_with_the_sizes_of_their_own_contraction() -> None:
    work = Work("a", matrix_flops=2 * B * T**2, launches=6, product=(B, T), features=(T,))
    found = Cost((work, work.of(1))).at([{"B": 3.0, "T": 5.0, "unused": 7.0}, {"B": 3.0, "T": 2.0}])
    assert [part.matrix_flops for part in found.work] == [150.0, 24.0]
    assert found.work[1].product == (3.0, 2.0) and found.work[1].features == (2.0,) and found.total("launches") == 12.0


def test_work_on_two_contractions_sees_the_positions_of_both() -> None:
    sizes = [{"B": 3.0, "T": 5.0, "w": 1.0}, {"B": 3.0, "T": 7.0, "w": 11.0}]
    assert Cost((Work("a", other_flops=B * T * S).of(0, 1),)).at(sizes).total("other_flops") == 105.0


def test_numbers_can_be_evaluated_again() -> None:
    assert SOME.at({}) == SOME


@ROWS
@pytest.mark.parametrize("number", NUMBERS)
def test_seconds_never_fall_when_a_number_grows(row: Hardware, number: str) -> None:
    grown = [work_seconds(replace(SOME, **{number: factor * getattr(SOME, number)}), row) for factor in (1, 2, 10, 1e6)]
    free = number == "fresh_bytes" and row.fresh_bandwidth == float("inf")
    assert grown == sorted(grown) and (grown[-1] > grown[0] > 0 or free)


@ROWS
def test_nothing_takes_no_time(row: Hardware) -> None:
    assert seconds(Cost(), row) == 0.0 and work_seconds(Work("contract", launches=0.0), row) == 0.0


@ROWS
def test_the_slower_of_arithmetic_and_traffic_counts(row: Hardware) -> None:
    flops, moved, both = (
        work_seconds(Work("contract", launches=0.0, matrix_flops=matrix_flops, bytes_moved=bytes_moved), row)
        for matrix_flops, bytes_moved in ((1e12, 0.0), (0.0, 1e12), (1e12, 1e12))
    )
    assert both == max(flops, moved)


@ROWS
@pytest.mark.parametrize("form", CPU_EFFICIENCY)
def test_every_form_of_matrix_work_has_an_efficiency(row: Hardware, form: str) -> None:
    assert 0 < row.efficiency[form] <= 1 and CPU_EFFICIENCY.keys() == GPU_EFFICIENCY.keys()
    large = Work(form, matrix_flops=1e21, launches=0.0, product=(1e3, 1e6, 1e6, 1e6))
    assert 1e21 / work_seconds(large, row) == pytest.approx(row.efficiency[form] * row.peak_flops["float32"], rel=1e-3)


def test_small_and_skinny_products_are_slower_on_a_gpu() -> None:
    row = HARDWARE["h200"]
    shapes = [(1, 8192, 8192, 8192), (1, 8192, 8192, 16), (1, 16, 16, 8192), (1, 16, 16, 16)]
    rates = []
    for product in shapes:
        flops = 2.0 * product[0] * product[1] * product[2] * product[3]
        rates.append(flops / work_seconds(Work("contract", matrix_flops=flops, launches=0.0, product=product), row))
    assert rates == sorted(rates, reverse=True) and rates[0] > 100 * rates[-1]


@ROWS
def test_traffic_that_stays_in_the_cache_is_no_slower(row: Hardware) -> None:
    sizes = (max(row.cache, 1.0), 2 * row.cache + 1)
    small, large = (work_seconds(Work("norm", bytes_moved=size, launches=0.0), row) / size for size in sizes)
    assert small <= large


@ROWS
def test_rates_are_in_plausible_ranges(row: Hardware) -> None:
    assert 1e10 < row.peak_flops["float32"] < 1e15 and row.source
    assert 1e9 < row.bandwidth < 1e14 and row.fresh_bandwidth > 1e8
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
