"""Speed-ups over one example at a time: a bar for each network at B=128, and how they grow with the batch size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.experiments.table import medians

SHOWN = {"reweight": "tab:blue", "ghost": "tab:brown", "bookkeep": "tab:purple", "auto": "tab:green"}
BATCH = 128


def draw(document: dict[str, Any], stem: str) -> list[str]:
    """Write the plot of what has been measured; returns its name."""
    found, machine = medians(document), document["machine"]
    where = f"{machine['accelerator'] or machine['cpu']}, torch {machine['versions']['torch']}"
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    bars(left, {name.split(" B")[0]: row for name, row in found.items() if name.endswith(f" B{BATCH}")})
    growth(right, found)
    figure.suptitle(f"times faster than one example at a time ({document['size']} size, {where})", fontsize=10)
    figure.savefig(f"{stem}.svg")
    plt.close("all")
    return [f"{stem}.svg"]


def one_at_a_time(row: Mapping[str, float]) -> float:
    """Milliseconds of the faster loop; not a number where none is measured."""
    return min((row[name] for name in ("loop of single examples", "naive") if name in row), default=math.nan)


def bars(axis: Any, found: Mapping[str, Mapping[str, float]]) -> None:
    """One group of bars for each network."""
    for place, (method, color) in enumerate(SHOWN.items()):
        heights = [one_at_a_time(row) / row[method] if method in row else 0 for row in found.values()]
        axis.bar([i + 0.2 * place - 0.3 for i in range(len(found))], heights, 0.2, color=color, label=method)
    axis.set_xticks(range(len(found)), list(found), fontsize=8, rotation=20)
    axis.set_title(f"B = {BATCH}", fontsize=9)
    axis.grid(True, axis="y", alpha=0.3)
    axis.legend(fontsize=8)


def growth(axis: Any, found: Mapping[str, Mapping[str, float]]) -> None:
    """Speed-up of auto (lines) and reweight (dashes) against the batch size."""
    for name, color in {"MLP": "tab:red", "CNN": "tab:orange", "LSTM": "tab:cyan"}.items():
        for method, style in {"auto": "-", "reweight": "--"}.items():
            rows = {int(key.split(" B")[1]): row for key, row in found.items() if key.startswith(f"{name} B") and method in row}
            ratios = [one_at_a_time(rows[size]) / rows[size][method] for size in sorted(rows)]
            axis.plot(sorted(rows), ratios, style, color=color, marker="o", markersize=3, label=f"{name}, {method}")
    axis.set_xscale("log", base=2)
    axis.set_xlabel("batch size")
    axis.grid(True, alpha=0.3)
    axis.legend(fontsize=8)
