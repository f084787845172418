"""Broken rules are found: for every row, each of some typical mistakes is contradicted by at least one sample.

Not every change is a mistake. A copy does keep the state of its first operand; a rule that refuses with caution (a sum
over the batch that enters a pooling, say) may as well say what is true; and for random draws any folding is true.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from meaning import REFUSED, verdict
from mutants import MUTATIONS, fate
from samples import SAMPLES


@pytest.mark.parametrize("op", SAMPLES, ids=str)
def test_broken_rules_are_found(op: Any) -> None:
    named = {f"{kind}: {name}": mutation for kind, several in MUTATIONS.items() for name, mutation in several.items()}
    survivors = [name for name, mutation in named.items() if fate(op, mutation) == "survives"]
    assert not survivors, f"{op}: not contradicted by any sample: {', '.join(survivors)}"


def test_a_removed_row_is_found() -> None:
    samples = SAMPLES[torch.ops.aten.mm.default]
    assert any(verdict(sample, REFUSED) for sample in samples)
