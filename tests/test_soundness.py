"""No function that mixes examples is accepted, and no look-alike is refused: two tables of functions side by side."""

from __future__ import annotations

import re

import pytest
import torch
from lookalikes import LOOKALIKES
from mixing_case import Mixing
from mixing_order import ORDER
from mixing_programs import PROGRAMS
from mixing_statistics import STATISTICS
from oracle import errors, expect
from zoo_case import Case

from dpcompile import DPCompileError, dpcompile

MIXING = ORDER + STATISTICS + PROGRAMS
OTHERWISE = "could not trace the model|became a fixed number|takes another path"
"""torch 2.11 fails to trace a few of them before any rule is asked."""
UNLOCATED = (
    "negative step by flip of a slice", "every second example", "split in two", "halves exchanged", "windows over the batch",
    "as_strided across examples", "take_along_dim over the batch", "cumprod", "qr of the batch", "mean kept in an attribute",
)  # fmt: skip
"""Found in backward, at the shape of the losses, or where two runs are compared, so that there is no line of forward to name."""


def refusal_of(case: Mixing, size: int) -> str:
    """The message of the refusal that the first step ends with."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        private = dpcompile(case.make(), loss=case.loss, batch_dim=case.batch_dim)
        with pytest.raises(DPCompileError) as caught:
            private(*case.batch(size, torch.float32))
    return str(caught.value)


def without_source(message: str) -> str:
    """The message without the user's line, which says anything."""
    return "\n".join(line for line in message.splitlines() if not line.startswith("  at: "))


def test_tables_are_long_and_names_unique() -> None:
    assert len(MIXING) >= 100 and len(LOOKALIKES) >= 100
    for names in ([case.name for case in MIXING], [case.name for case in LOOKALIKES]):
        assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})


@pytest.mark.parametrize("case", MIXING, ids=str)
def test_mixing_is_refused_with_culprit_and_reason(case: Mixing) -> None:
    message = refusal_of(case, 4)
    if torch.__version__.startswith("2.11") and re.search(OTHERWISE, message):
        return
    assert re.search(case.why, without_source(message), re.IGNORECASE), message
    lines = case.named_lines()
    assert not lines or case.name in UNLOCATED or any(line in message for line in lines), message


@pytest.mark.parametrize("case", MIXING[::5], ids=str)
def test_mixing_is_refused_when_the_first_batch_is_one_example(case: Mixing) -> None:
    refusal_of(case, 1)


@pytest.mark.parametrize("case", LOOKALIKES, ids=str)
def test_lookalike_is_exact(case: Case) -> None:
    model, loss = case.build(torch.float64)
    batch, kwargs = case.batch(3, torch.float64), case.kwargs(3, torch.float64)
    expected = expect(model, loss, batch, kwargs, case.batch_dim)
    private = dpcompile(model, loss=loss, batch_dim=case.batch_dim, max_grad_norm=expected.max_grad_norm)
    found = errors(private(*batch, **kwargs), expected)
    assert max(found.values()) < 1e-9, found
