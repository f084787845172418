"""A fixed part of the fuzzing: the same random models every time, so that a red run is this change's doing."""

from __future__ import annotations

import hypothesis
from fuzz.check import WAYS, outcome
from fuzz.grammar import programs
from fuzz.program import Program
from hypothesis import HealthCheck, given, settings

MODELS = 60


@settings(max_examples=MODELS, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=programs(steps=5))
def test_a_random_model_is_exact_or_refused(program: Program) -> None:
    ways = tuple(WAYS)
    turn = len(repr(program)) % (2 * len(ways))  # each second model is compiled a second time, in one of the other ways
    found = outcome(program, ways[turn : turn + 1])
    hypothesis.note(repr(program))
    assert not found.is_failure, found.detail
