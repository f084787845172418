"""Model families: each is exact against the loop over single examples in float64, or refused for a true reason."""

from __future__ import annotations

import re

import pytest
from families import FAMILIES
from family_case import Family
from family_run import Outcome, examine

TOLERANCE, NARROW_TOLERANCE = 1e-9, 1e-4  # the second for models that compute parts in float32


def outcome_of(family: Family) -> Outcome:
    """The row of a family; a class that this release of transformers does not have is the reason to skip."""
    if family.missing():
        pytest.skip(family.missing())
    return examine(family)


@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.refused], ids=str)
def test_a_family_is_exact(family: Family) -> None:
    outcome = outcome_of(family)
    assert not outcome.refusal, outcome.refusal
    assert outcome.error is not None and outcome.error < (TOLERANCE if outcome.double else NARROW_TOLERANCE), outcome
    assert outcome.sites > 0


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.refused], ids=str)
def test_a_family_is_refused_for_the_stated_reason(family: Family) -> None:
    assert re.search(family.refused, outcome_of(family).refusal, re.IGNORECASE)
