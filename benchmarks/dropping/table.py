"""The sweep as tables: accuracies, what a step costs, what the private part of a larger network's costs; all, and the ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from benchmarks.dropping.results import accuracy, cost, ordinary_ms
from benchmarks.dropping.step_cost import CUTS
from benchmarks.dropping.sweep import DROP, PRUNE, WAYS, Setting
from benchmarks.dropping.tasks import TASKS

Rates = tuple[tuple[float, float], ...]
ALL = tuple(product(PRUNE, DROP))
ENDS = ((0.0, 0.0), (0.5, 0.0), (0.9, 0.0), (0.0, 0.5), (0.0, 0.9), (0.5, 0.5), (0.9, 0.9))
"""Shares pruned and dropped that a summary shows."""
MEASURES = (("step_ms", "{:.2f}"), ("megabytes", "{:.1f}"), ("noise", "{:.0%}"))


def markdown(document: Mapping[str, Any]) -> str:
    """All that is measured so far."""
    machine, seeds = document["machine"], document["seeds"]
    lines = [f"{machine['cpu']}, one thread, torch {machine['versions']['torch']}; {seeds} seeds.", ""]
    for task in TASKS:
        lines += [*accuracy_table(document, task), *cost_table(document, task)]
    return "\n".join([*lines, *part_table(document)]) + "\n"


def summary(document: Mapping[str, Any]) -> str:
    """Few rates of what is measured so far."""
    lines = [line for task in TASKS for line in (*accuracy_table(document, task, ENDS), *cost_table(document, task, ENDS))]
    return "\n".join([*lines, *part_table(document)])


def accuracy_table(document: Mapping[str, Any], task: str, rates: Rates = ALL) -> Iterator[str]:
    """A row for each pair of rates, a column for each way to prune."""
    if not any(key.startswith(f"{task} ") for key in document["points"]):
        return
    yield f"Held-out accuracy of {task} at epsilon {TASKS[task].target_epsilon:g}, mean ± standard deviation over seeds:\n"
    yield "| pruned | dropped | " + " | ".join(f"{criterion}, {granularity}" for criterion, granularity in WAYS) + " |"
    yield "|---|---|" + "---|" * len(WAYS)
    for prune, drop in rates:
        pairs = (accuracy(document, Setting(task, *column, prune, drop)) for column in WAYS)
        shown = ("" if pair is None else f"{pair[0]:.3f} ± {pair[1]:.3f}" for pair in pairs)
        yield f"| {prune:.0%} | {drop:.0%} | " + " | ".join(shown) + " |"
    yield ""


def cost_table(document: Mapping[str, Any], task: str, rates: Rates = ALL) -> Iterator[str]:
    """Time and memory of a step, and the share of the entries that get noise."""
    ordinary = ordinary_ms(document, task)
    if ordinary is None:
        return
    yield f"A step of {task}, by magnitude; ordinary training {ordinary:.2f} ms:\n"
    yield "| pruned | dropped | rows: ms | MB | noise energy | weights: ms | MB | noise energy |"
    yield "|---|---|" + "---|" * 6
    for prune, drop in rates:
        settings = [Setting(task, "magnitude", kind, prune, drop) for kind in ("rows", "weights")]
        found = [(cost(document, setting, measure), text) for setting in settings for measure, text in MEASURES]
        cells = ("" if value is None else text.format(value) for value, text in found)
        yield f"| {prune:.0%} | {drop:.0%} | " + " | ".join(cells) + " |"
    yield ""


def part_table(document: Mapping[str, Any]) -> Iterator[str]:
    """Half of the rows of larger networks."""
    parts = {name: document["extras"][f"part {name}"] for name in CUTS if f"part {name}" in document["extras"]}
    if not parts:
        return
    yield "Half of the rows pruned, ms of a step. The private part is a step less the step with these weights frozen; in brackets"
    yield "a 90 % interval (bootstrap over the rounds):\n"
    yield "| workload | rows of | ordinary | frozen | whole | pruned | private part: times cheaper | MB whole | MB pruned |"
    yield "|---|---|" + "---:|" * 7
    for name, row in parts.items():
        times = " | ".join(f"{row[key]:.1f}" for key in ("ordinary", "frozen", "whole", "pruned"))
        peaks = " | ".join(f"{row[key] / 1e6:.1f}" for key in ("whole bytes", "pruned bytes"))
        ratio = f"{row['times']:.2f} ({row['times from']:.2f} to {row['times to']:.2f})"
        yield f"| {name} | {CUTS[name][0]} | {times} | {ratio} | {peaks} |"
    yield ""
