"""Which rows of the rules were asked while programs were compiled."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator
from unittest import mock

from operations import around, norms
from operations_functions import FUNCTIONS
from operations_layers import MODULES

from dpcompile import DPCompileError, dpcompile
from dpcompile.analysis import example_axis
from dpcompile.rules import OPS, PYTHON
from dpcompile.rules.rule import Result, Use

UNREACHABLE: dict[str, str] = {}
"""Rows that no model on a CPU reaches, and why."""


@contextlib.contextmanager
def rules_asked() -> Iterator[Counter[str]]:
    """Counts the operations whose rule is asked, until the context ends."""
    asked: Counter[str] = Counter()
    real = example_axis.state_of

    def counting(use: Use) -> Result:
        if any(not example_axis.is_shared(use.states[n]) for n in use.node.all_input_nodes) or not use.node.all_input_nodes:
            asked[str(use.node.target)] += 1
        return real(use)

    with mock.patch.object(example_axis, "state_of", counting):
        yield asked


def rows() -> set[str]:
    """The operations that have a row of their own."""
    return {str(op) for op in set(OPS) - set(PYTHON)}


def reached_by_operations() -> set[str]:
    """The rows that the table of operations reaches; takes minutes."""
    with rules_asked() as asked, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in FUNCTIONS + MODULES:
            model, batch = around(case, 3)
            with contextlib.suppress(DPCompileError):
                dpcompile(model, loss=norms, check_examples=False).per_example_gradients(*batch)
    return rows() & set(asked)


def print_uncovered(reached: set[str]) -> None:
    """The rows that no model reached: those that the table of operations reaches, those that neither can, and the rest."""
    missing = rows() - reached
    unreachable = {name: reason for name, reason in UNREACHABLE.items() if name in missing}
    elsewhere = (missing & reached_by_operations()) - set(unreachable)
    print(f"not reached, but by the table of operations ({len(elsewhere)}): {', '.join(sorted(elsewhere))}")
    print(f"out of reach ({len(unreachable)}):")
    for name, reason in sorted(unreachable.items(), key=lambda pair: pair[::-1]):
        print(f"  {name}: {reason}")
    rest = missing - elsewhere - set(unreachable)
    print(f"not reached by either ({len(rest)}): {', '.join(sorted(rest))}")
