"""Model families: each is exact against the loop over single examples in float64, or refused for a true reason."""

from __future__ import annotations

import importlib.metadata
import json
import re

import pytest
from families import FAMILIES
from family_case import Family
from family_run import Outcome, examine

from benchmarks.families import RESULTS

TOLERANCE, NARROW_TOLERANCE = 1e-9, 1e-6  # the second for models that compute parts in float32
RECORDED = json.loads(RESULTS.read_text(encoding="ascii"))
SAME_VERSIONS = all(importlib.metadata.version(name) == RECORDED["versions"][name] for name in ("torch", "transformers"))


def outcome_of(family: Family) -> Outcome:
    """The row of a family; a class that this release of transformers does not have is the reason to skip."""
    if family.missing():
        pytest.skip(family.missing())
    outcome = examine(family)
    if SAME_VERSIONS:
        row = next(row for row in RECORDED["rows"] if row["name"] == family.name)
        said = (outcome.parameters, outcome.sites, outcome.refusal.partition("\n")[0])
        assert said == (row["parameters"], row["sites"], row["refusal"].partition("\n")[0]), "run make families"
    return outcome


@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.refused], ids=str)
def test_a_family_is_exact(family: Family) -> None:
    outcome = outcome_of(family)
    assert not outcome.refusal, outcome.refusal
    assert outcome.error is not None and outcome.error < (TOLERANCE if outcome.double else NARROW_TOLERANCE), outcome
    assert outcome.sites > 0


def test_the_recorded_table_has_every_family_once() -> None:
    assert [row["name"] for row in RECORDED["rows"]] == [family.name for family in FAMILIES]
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.refused], ids=str)
def test_a_family_is_refused_for_the_stated_reason(family: Family) -> None:
    assert re.search(family.refused, outcome_of(family).refusal, re.IGNORECASE)
