"""The report as data: what `report.json()` returns and what the page is drawn from.

The schema is versioned: readers check `schema` and `version`; a version changes when a field changes its meaning or goes,
not when one is added. Seconds, bytes and FLOPs are numbers without prefixes.

    schema, version        "dpcompile-report", 1
    made_with              versions of dpcompile and torch
    hardware               the row that prices come from; measured: by calibration on this machine
    batch_size, microbatch examples of a step, and at a time (null: all)
    second_backward_from   the node that backward runs a second time from (null: one backward)
    clipping               kind, formula of the factor, groups with their parameters and clip norms (one for a single factor)
    sensitivity            of the clipped sum
    ordinary, private      predicted seconds and peak bytes of both steps, whole and by kind (`report.kinds`)
    sites                  one entry per group of equal layers: parameters, equation, shape, sizes by symbol, the chosen way,
                           why, the runner-up, the other ways by time, and what is not possible and why
    notes                  what the user should know
    without_gradient       parameters that no loss depends on

A way has norm, sum, seconds (measured: by autotuning, otherwise predicted), resident_bytes, workspace_bytes, matrix_flops,
other_flops and bytes_moved, for one of the equal layers and one chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from dpcompile.cost.hardware import Hardware
from dpcompile.cost.prices import sizes_of
from dpcompile.forecast.forecast import Outlook
from dpcompile.measure.cache import own_version
from dpcompile.plan.plan import Choice, Option, Plan
from dpcompile.report.fold import folded
from dpcompile.report.shares import Shares

SCHEMA: Final = "dpcompile-report"
VERSION: Final = 1


@dataclass(frozen=True)
class Facts:
    """What a report speaks of: a plan, its machine, what was predicted of the step, and what else the user should know."""

    plan: Plan
    outlook: Outlook
    backend: str
    max_grad_norm: float
    notes: tuple[str, ...]
    unused: tuple[str, ...]
    ordinary: Shares
    private: Shares


def document(facts: Facts) -> dict[str, Any]:
    """The report as JSON holds it."""
    plan = facts.plan
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "made_with": {"dpcompile": own_version(), "torch": torch.__version__},
        "hardware": machine(facts.outlook.hardware),
        "batch_size": plan.batch_size,
        "microbatch": plan.microbatch,
        "second_backward_from": plan.cut.frontier.node.name if plan.cut is not None else None,
        "backend": facts.backend,
        "clipping": facts.outlook.source.rule.document(list(facts.outlook.source.joint.named("gradient")), facts.max_grad_norm),
        "sensitivity": {"l2": facts.max_grad_norm, "neighbours": "add or remove one example"},
        "ordinary": step(facts.ordinary),
        "private": step(facts.private),
        "sites": [site(names, group, plan) for names, group in folded(plan.choices)],
        "notes": list(facts.notes),
        "without_gradient": list(facts.unused),
    }


def machine(row: Hardware) -> dict[str, Any]:
    """The row that prices come from."""
    rates = {"peak_flops": dict(row.peak_flops), "bandwidth": row.bandwidth, "memory": row.memory, "launch": row.launch}
    return {"name": row.name, "measured": row.is_measured, "source": row.source, **rates}


def step(shares: Shares) -> dict[str, Any]:
    """Predicted time and peak memory, whole and by what they are spent on."""
    return {
        "seconds": sum(shares.seconds.values()),
        "peak_bytes": sum(shares.peak_bytes.values()),
        "seconds_by_kind": dict(shares.seconds),
        "peak_bytes_by_kind": dict(shares.peak_bytes),
    }


def site(names: str, group: Sequence[Choice], plan: Plan) -> dict[str, Any]:
    """One row: equal layers together under one name; prices are those of one of them."""
    size = plan.at_a_time(plan.batch_size)
    choice = group[0]
    best, second = choice.option, choice.runner_up
    return {
        "name": names,
        "parameters": [choice.site.parameter for choice in group],
        "equation": choice.site.equation,
        "shape": list(choice.site.shape),
        "sizes": {name: number for name, number in sizes_of(choice.site, size)[0].items() if number != 1 or name in "BT"},
        "chosen": priced(best),
        "why": choice.why,
        "runner_up": {**priced(second), "times_slower": second.seconds / max(best.seconds, 1e-12)}
        if second is not None
        else None,
        "others": [priced(option) for option in sorted(choice.others, key=lambda option: option.seconds)],
        "declined": [{"way": way, "reason": reason} for way, reason in choice.declined],
    }


def priced(option: Option) -> dict[str, Any]:
    """One way and its predicted cost."""
    cost = option.cost
    return {
        "norm": option.norm,
        "sum": option.sum,
        "seconds": option.seconds,
        "measured": option.measured,
        "resident_bytes": cost.resident_bytes,
        "workspace_bytes": cost.workspace_bytes,
        "matrix_flops": cost.total("matrix_flops"),
        "other_flops": cost.total("other_flops"),
        "bytes_moved": cost.total("bytes_moved"),
    }
