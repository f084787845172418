"""Curves of the sweep: a panel for each measure, lines for the rates of dropping, error bars over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.dropping.results import accuracy, cost, ordinary_ms
from benchmarks.dropping.sweep import DROP, PRUNE, WAYS, Setting
from benchmarks.dropping.tasks import TASKS

COLORS = dict(zip(DROP, ("tab:blue", "tab:green", "tab:orange", "tab:red"), strict=True))


def accuracies(document: Mapping[str, Any], task: str, stem: str) -> str:
    """A panel for each way to prune: held-out accuracy against the rate of pruning."""
    figure, axes = plt.subplots(1, len(WAYS), figsize=(14, 3.6), layout="constrained", sharey=True)
    for axis, (criterion, granularity) in zip(axes, WAYS, strict=True):
        for drop in DROP:
            pairs = [accuracy(document, Setting(task, criterion, granularity, prune, drop)) for prune in PRUNE]
            known = [(prune, pair) for prune, pair in zip(PRUNE, pairs, strict=True) if pair is not None]
            if known:
                means, spreads = [value[0] for _, value in known], [value[1] for _, value in known]
                axis.errorbar([p for p, _ in known], means, yerr=spreads, color=COLORS[drop], marker="o", markersize=3,
                              capsize=2, label=f"{drop:.0%} dropped")  # fmt: skip
        axis.set_title(f"{granularity} pruned by {criterion}", fontsize=9)
        axis.set_xlabel("share pruned", fontsize=8)
        axis.grid(True, alpha=0.3)
    axes[0].set_ylabel("held-out accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    figure.suptitle(
        f"{task}: accuracy at epsilon {TASKS[task].target_epsilon:g}, mean and standard deviation over seeds", fontsize=10
    )
    figure.savefig(f"{stem}-{task}-accuracy.svg")
    plt.close(figure)
    return f"{stem}-{task}-accuracy.svg"


def costs(document: Mapping[str, Any], task: str, stem: str) -> str:
    """Time, memory and noise against the share pruned, for rows (lines) and single weights (dashes)."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    panels = (("step_ms", "ms per step"), ("megabytes", "peak MB"), ("noise", "noise energy, share"))
    for axis, (measure, label) in zip(axes, panels, strict=True):
        for granularity, style in (("rows", "-"), ("weights", "--")):
            for drop in DROP:
                values = [cost(document, Setting(task, "magnitude", granularity, prune, drop), measure) for prune in PRUNE]
                known = [(prune, value) for prune, value in zip(PRUNE, values, strict=True) if value is not None]
                axis.plot([p for p, _ in known], [value for _, value in known], style, color=COLORS[drop], marker="o",
                          markersize=3, label=f"{granularity}, {drop:.0%} dropped")  # fmt: skip
        axis.set_xlabel("share pruned", fontsize=8)
        axis.set_ylabel(label, fontsize=8)
        axis.set_ylim(bottom=0)
        axis.grid(True, alpha=0.3)
    ordinary = ordinary_ms(document, task)
    if ordinary is not None:
        axes[0].axhline(ordinary, color="0.5", linestyle=":", label="ordinary training")
    axes[0].legend(fontsize=6)
    figure.suptitle(f"{task}: what a step costs; rows are cut out of its operands, single weights are zeroed", fontsize=10)
    figure.savefig(f"{stem}-{task}-cost.svg")
    plt.close(figure)
    return f"{stem}-{task}-cost.svg"
