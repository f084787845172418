"""Throughput relative to training without privacy: a group of bars for each network and precision."""

from __future__ import annotations

import math
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.experiments.table import medians

SHOWN = {"dpcompile inductor": "tab:green", "auto": "tab:olive", "bookkeep": "tab:purple", "ghost": "tab:brown",
         "Opacus ghost": "tab:orange", "Opacus hooks": "tab:red"}  # fmt: skip


def draw(document: dict[str, Any], stem: str) -> list[str]:
    """Write the plot of what has been measured; returns its name."""
    found, machine = medians(document), document["machine"]
    where = f"{machine['accelerator'] or machine['cpu']}, torch {machine['versions']['torch']}"
    figure, axis = plt.subplots(figsize=(11, 4.5), layout="constrained")
    for place, (method, color) in enumerate(SHOWN.items()):
        heights = [ordinary(row) / row.get(method, math.inf) for row in found.values()]
        axis.bar([i + 0.13 * place - 0.33 for i in range(len(found))], heights, 0.13, color=color, label=method)
    axis.set_xticks(range(len(found)), list(found), fontsize=8)
    axis.axhline(1, color="0.5", linewidth=0.8)
    axis.set_ylabel("throughput / ordinary throughput")
    axis.set_title(f"{document['size']} size, {where}; no bar: the method cannot do it", fontsize=9)
    axis.legend(fontsize=8)
    figure.savefig(f"{stem}.svg")
    plt.close("all")
    return [f"{stem}.svg"]


def ordinary(row: Any) -> float:
    """Milliseconds of the better step without privacy; not a number where neither could be timed."""
    return min((row[name] for name in ("ordinary eager", "ordinary inductor") if name in row), default=math.nan)
