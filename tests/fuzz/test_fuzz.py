"""A fixed part of the fuzzing: the same random models every time, so that a red run is this change's doing; and a few that
hypothesis draws, which shrinks what fails."""

from __future__ import annotations

import random

import pytest
from fuzz.builder import Unfit
from fuzz.check import WAYS, outcome
from fuzz.grammar import grown, program_of
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

MODELS = 28
DRAWN = 8


@pytest.mark.parametrize("number", range(MODELS))
def test_a_random_model_is_exact_or_refused(number: int) -> None:
    program, ways = program_of(number, steps=5), tuple(WAYS)
    turn = number % (2 * len(ways))  # each second model is compiled a second time, in one of the other ways
    found = outcome(program, ways[turn : turn + 1])
    assert not found.is_failure, f"{found.detail}\n{program}"


@settings(max_examples=DRAWN, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.sampled_from(sorted(WAYS)))
def test_a_drawn_model_is_exact_or_refused(chance: random.Random, way: str) -> None:
    try:
        program = grown(chance, steps=5, mixing=4)
    except Unfit:
        assume(False)
    found = outcome(program, (way,))
    assert not found.is_failure, f"{found.detail}\n{program}"
