"""Models whose examples see each other are refused, with the place, the reason and a way out."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch
from zoo_refused import BATCH_MIXING, REFUSED, Refused

from dpcompile import DPCompileError, dpcompile


@cache
def refusal_of(case: Refused, size: int, schedule: str = "auto") -> str:
    """The message of the refusal that compiling and running a case ends with; found once for all tests."""
    with pytest.raises(DPCompileError) as caught:
        dpcompile(case.make(), loss=case.loss, schedule=schedule)(*case.batch(size, torch.float32))
    return str(caught.value)


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_refusal_names_the_culprit(case: Refused) -> None:
    assert re.search(case.word, refusal_of(case, 4), re.IGNORECASE)


@pytest.mark.parametrize("case", [case for case in REFUSED if case.located], ids=str)
def test_refusal_names_the_line_and_a_way_out(case: Refused) -> None:
    message = refusal_of(case, 4)
    assert re.search(r"\w+\.py:\d+", message), message
    assert "what to do:" in message


@pytest.mark.parametrize("case", BATCH_MIXING, ids=str)
def test_refused_even_when_the_first_batch_is_one_example(case: Refused) -> None:
    refusal_of(case, 1)


@pytest.mark.parametrize("case", BATCH_MIXING[:7], ids=str)
def test_running_one_example_at_a_time_is_no_way_around(case: Refused) -> None:
    refusal_of(case, 4, schedule="microbatch")


def test_refusal_names_the_module() -> None:
    case = next(case for case in BATCH_MIXING if case.name == "batch norm")
    assert re.search(r"\bnorm\b", refusal_of(case, 4))
