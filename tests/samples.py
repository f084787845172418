"""SAMPLES[op]: calls of every operation that has a rule, with operands whose states are given.

Authors supply calls only; what is true of them is decided by running them (`meaning`). Every operation has calls
with the examples along different axes, folded with positions, and, where such a call exists, one that must be refused.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from meaning import Sample
from samples_contract import CONTRACTIONS, NORMALISATIONS
from samples_index import LOOKUPS
from samples_kept import KEPT
from samples_layers import ATTENTION, CREATION, CTC, LOSSES, RANDOM, RECURRENT, WINDOWS
from samples_linalg import LINALG
from samples_pointwise import POINTWISE
from samples_reduce import ALONG, REDUCTIONS
from samples_view import JOINS, VIEWS
from samples_within import WITHIN


def by_operation(samples: tuple[Sample, ...]) -> dict[Any, tuple[Sample, ...]]:
    """Samples grouped by what they call."""
    rows: dict[Any, list[Sample]] = defaultdict(list)
    for sample in samples:
        rows[sample.op].append(sample)
    return {op: tuple(found) for op, found in rows.items()}


SAMPLES = by_operation((
    *POINTWISE, *VIEWS, *JOINS, *REDUCTIONS, *ALONG, *CONTRACTIONS, *NORMALISATIONS, *LOOKUPS, *WINDOWS, *ATTENTION,
    *CREATION, *LINALG, *RANDOM, *LOSSES, *RECURRENT, *CTC, *WITHIN, *KEPT,
))  # fmt: skip
