"""Which rows of the rules were asked while programs were compiled."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from unittest import mock

from dpcompile.analysis import example_axis
from dpcompile.rules import OPS, PYTHON
from dpcompile.rules.rule import Result, Use


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
