"""The paper's figures again: runtime against channel rate for L = 2, 3, 4 and k = 3, 5, ours above and the paper's own numbers
below, and runtime against batch size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.experiments.table import medians
from benchmarks.region_map import PUBLISHED, RATES

STYLES = {
    "ordinary eager": ("0.6", ":"), "naive": ("tab:red", "-"), "multi": ("tab:orange", "-"), "crb": ("tab:blue", "-"),
    "crb-nd": ("tab:cyan", "--"), "crb-unfold": ("tab:purple", "--"), "ghost": ("tab:brown", "--"), "auto": ("tab:green", "-"),
}  # fmt: skip
SWEEP = {3: (4.53, 3.75, 5.55), 5: (6.72, 6.18, 9.17), 7: (6.84, 8.59, 12.74), 9: (8.14, 11.05, 16.37), 12: (9.60, 14.65, 21.73),
         15: (11.55, 18.29, 27.15)}  # fmt: skip
"""Published seconds of twenty batches by batch size: crb, multi, naive (k = 5)."""
Columns = Mapping[str, Mapping[float, float]]


def draw(document: dict[str, Any], stem: str) -> list[str]:
    """Write the plots of what has been measured; returns their names."""
    found = medians(document)
    machine = document["machine"]
    where = f"{machine['accelerator'] or machine['cpu']}, torch {machine['versions']['torch']}"
    names = []
    for kernel in (3, 5):
        if any(name.startswith(f"k{kernel} L") for name in found):
            names.append(rates_figure(found, kernel, where, f"{stem}-k{kernel}.svg"))
    if any(" B" in name for name in found):
        names.append(batches_figure(found, where, f"{stem}-batch.svg"))
    plt.close("all")
    return names


def rates_figure(found: Mapping[str, Mapping[str, float]], kernel: int, where: str, path: str) -> str:
    """One kernel size: three panels of ours above three of the paper's."""
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    for column, (layers, rates) in enumerate(RATES.items()):
        ours = columns({rate: found.get(f"k{kernel} L{layers} f{rate:g}", {}) for rate in rates})
        lines(axes[0, column], ours, f"L = {layers}, here", "ms per batch")
        pairs = PUBLISHED[layers, kernel]
        theirs = {name: dict(zip(rates, times, strict=True)) for name, times in zip(("crb", "multi"), pairs, strict=True)}
        lines(axes[1, column], theirs, f"L = {layers}, published (P100)", "s per 20 batches")
        axes[1, column].set_xlabel("channel rate f")
    legend(axes[0, 0])
    figure.suptitle(f"Net(L, 25, f, k={kernel}), B=8: above {where}; below the paper's own numbers", fontsize=10)
    figure.savefig(path)
    return path


def batches_figure(found: Mapping[str, Mapping[str, float]], where: str, path: str) -> str:
    """Runtime against batch size: ours for both kernels, and the paper's."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    for axis, kernel in zip(axes, (3, 5), strict=False):
        begin = f"k{kernel} B"
        ours = columns({int(name.removeprefix(begin)): row for name, row in found.items() if name.startswith(begin)})
        lines(axis, ours, f"k = {kernel}, here", "ms per batch")
    theirs: dict[str, dict[float, float]] = {
        name: {size: row[i] for size, row in SWEEP.items()} for i, name in enumerate(("crb", "multi", "naive"))
    }
    lines(axes[2], theirs, "k = 5, published (P100)", "s per 20 batches")
    for axis in axes:
        axis.set_xlabel("batch size")
    legend(axes[0])
    figure.suptitle(f"Net(3, n, 1, k) against batch size: {where}, and the paper's own numbers", fontsize=10)
    figure.savefig(path)
    return path


def columns(rows: Mapping[float, Mapping[str, float]]) -> dict[str, dict[float, float]]:
    """{method: {x: ms}} of {x: {method: ms}}."""
    return {method: {x: row[method] for x, row in rows.items() if method in row} for method in STYLES}


def lines(axis: Any, curves: Columns, title: str, unit: str) -> None:
    """One panel."""
    for method, points in curves.items():
        if points:
            color, style = STYLES[method]
            axis.plot(
                sorted(points), [points[x] for x in sorted(points)], style, color=color, marker="o", markersize=3, label=method
            )
    axis.set_title(title, fontsize=9)
    axis.set_ylabel(unit, fontsize=8)
    axis.set_yscale("log")
    axis.grid(True, which="both", alpha=0.2)


def legend(axis: Any) -> None:
    """Of the lines that there are."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)
