"""One row per operation: how it carries the example axis. Families serve most rows; a duplicate row raises."""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch

from dpcompile.rules import contract, families, index, kept_part, linalg, nn, normalise, places, pointwise, reduce, select, view
from dpcompile.rules.rule import Rule, python_rule

TABLES = (
    pointwise.RULES, view.RULES, select.RULES, reduce.RULES, contract.RULES, linalg.RULES, normalise.RULES, index.RULES,
    places.RULES, nn.RULES, kept_part.RULES,
)  # fmt: skip
PYTHON: dict[object, Rule] = dict.fromkeys(
    (
        operator.getitem,
        operator.mul,
        operator.add,
        operator.sub,
        operator.floordiv,
        operator.mod,
        operator.neg,
        operator.eq,
        operator.ge,
        operator.le,
        operator.lt,
        operator.gt,
        operator.ne,
        torch.ops.aten.sym_size.int,
        torch.ops.aten.sym_numel.default,
        torch.ops.aten.sym_stride.int,
        torch.sym_max,
        torch.sym_min,
        torch.sym_not,
    ),
    python_rule,
)


def merged(tables: Iterable[dict[object, Rule]]) -> dict[object, Rule]:
    """All rows in one table."""
    rows: dict[object, Rule] = {}
    for table in tables:
        twice = rows.keys() & table.keys()
        if twice:
            raise ValueError(f"operations with two rules: {sorted(map(str, twice))}")
        rows |= table
    return rows


OPS = merged((*TABLES, PYTHON))


def rule_of(target: object) -> Rule | None:
    """The rule of an operation, None if it has none."""
    if target in OPS:
        return OPS[target]
    return families.pointwise if pointwise.is_pointwise(target) else None
