"""A fixed part of the fuzzing: the same random models every time, so that a red run is this change's doing."""

from __future__ import annotations

import pytest
from fuzz.check import WAYS, outcome
from fuzz.grammar import program_of

MODELS = 28


@pytest.mark.parametrize("number", range(MODELS))
def test_a_random_model_is_exact_or_refused(number: int) -> None:
    program, ways = program_of(number, steps=5), tuple(WAYS)
    turn = number % (2 * len(ways))  # each second model is compiled a second time, in one of the other ways
    found = outcome(program, ways[turn : turn + 1])
    assert not found.is_failure, f"{found.detail}\n{program}"
