"""Operation by operation: what compiles equals the loop over single examples, what does not is refused with its reason."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from operations import Row, around, norms
from operations_functions import FUNCTIONS
from operations_layers import MODULES
from operations_seldom import SELDOM
from oracle import per_example_gradients, relative_error

from dpcompile import DPCompileError, dpcompile

UNTRACEABLE = ("quantile along positions and features", "extremes along positions and features")
"""What torch 2.11 cannot trace: quantile asks for a number of elements, aminmax has no derivative."""
ROWS = tuple(
    replace(case, refused="could not trace") if case.name in UNTRACEABLE and torch.__version__.startswith("2.11") else case
    for case in FUNCTIONS + MODULES + SELDOM
)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_no_two_rows_have_one_name() -> None:
    assert len({case.name for case in ROWS}) == len(ROWS)


@pytest.mark.parametrize("case", [case for case in ROWS if not case.refused], ids=str)
def test_per_example_gradients_of_an_operation_equal_those_of_the_loop(case: Row) -> None:
    model, batch = around(case, 3)
    found = dpcompile(model, loss=norms).per_example_gradients(*batch)
    _, expected = per_example_gradients(model, norms, batch)
    largest = max(float(g.abs().max()) for g in expected.values())
    assert largest > 0
    for name, gradient in expected.items():
        actual, wanted = (torch.view_as_real(g) if g.is_complex() else g for g in (found[name], gradient.to(found[name].dtype)))
        assert relative_error(actual, wanted, largest) < 1e-9, name


@pytest.mark.parametrize("case", [case for case in ROWS if case.refused], ids=str)
def test_an_operation_is_refused_with_its_reason(case: Row) -> None:
    model, batch = around(case, 3)
    with pytest.raises(DPCompileError) as caught:
        dpcompile(model, loss=norms)(*batch)
    assert re.search(case.refused, str(caught.value), re.IGNORECASE), caught.value
