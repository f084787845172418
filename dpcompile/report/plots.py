"""The plots of the page as SVG texts: bars beside the ordinary step, the roofline, the map of strategies."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dpcompile.cost.hardware import Hardware
from dpcompile.report.kinds import KINDS
from dpcompile.report.regions import WAYS, Regions

# Okabe and Ito's colours, which people with any colour vision can tell apart.
COLOURS: Final = dict(zip(KINDS, ("#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7"), strict=True))
WAY_COLOURS: Final = dict(zip(WAYS, ("#F0E442", "#56B4E9", "#009E73", "#E69F00"), strict=True))
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def svg(figure: Figure, name: str) -> str:
    """A figure as an element for a page; names inside it are made unlike those of other figures."""
    text = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    drawn = text.getvalue()
    return (
        drawn[drawn.index("<svg") :].replace('id="', f'id="{name}-').replace('"#', f'"#{name}-').replace("url(#", f"url(#{name}-")
    )


def figure_of(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure in our style."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        return figure, figure.add_subplot()


def bars(document: dict[str, Any], field: str, title: str) -> str:
    """Two stacked bars: what the ordinary and the private step are predicted to spend."""
    rows = [document["ordinary"][field], document["private"][field]]
    unit, name = scale(max(sum(row.values()) for row in rows), "s" if field.startswith("seconds") else "B")
    figure, axes = figure_of(8, 1.9)
    left = np.zeros(2)
    for kind in KINDS:
        widths = np.array([row[kind] / unit for row in rows])
        if widths.any():
            axes.barh([1, 0], widths, left=left, color=COLOURS[kind], label=kind, height=0.62)
        left += widths
    for place, total in zip((1, 0), left, strict=True):
        axes.text(total, place, f" {total:.3g} {name}", va="center")
    axes.set_yticks([1, 0], ["ordinary", "private"])
    axes.set_xlabel(name)
    axes.set_title(title, loc="left")
    axes.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.45, -0.34), handlelength=1, columnspacing=1.2)
    return svg(figure, field)


def scale(largest: float, unit: str) -> tuple[float, str]:
    """A factor and the name of the unit for numbers up to this one."""
    prefixes = [(1e-6, "\u00b5"), (1e-3, "m"), (1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")]
    fitting = [pair for pair in prefixes if pair[0] <= max(largest, 1e-6)] if unit == "s" else [
        pair for pair in prefixes[2:] if pair[0] <= max(largest, 1.0)]  # fmt: skip
    factor, prefix = fitting[-1]
    return factor, prefix + unit


def roofline(document: dict[str, Any], row: Hardware) -> str:
    """Every site's chosen way: FLOPs per byte against predicted FLOP/s, under what the machine can do."""
    figure, axes = figure_of(8, 4.4)
    points = [point for site in document["sites"] if (point := place(site)) is not None]
    low, high = (min(p[0] for p in points) / 4, max(p[0] for p in points) * 4) if points else (0.1, 100.0)
    peak = row.flops("float32")
    low, high = min(low, peak / row.bandwidth / 8), max(high, peak / row.bandwidth * 8)
    intensities = np.geomspace(low, high, 200)
    axes.plot(intensities, np.minimum(peak, intensities * row.bandwidth), color="black", linewidth=1.2)
    if row.cache:
        cached = np.minimum(peak, intensities * row.cache_bandwidth)
        axes.plot(intensities, cached, color="black", linewidth=1, linestyle=":", label="out of the cache")
    ways = list(dict.fromkeys(f"{s['chosen']['norm']}+{s['chosen']['sum']}" for s in document["sites"]))
    for number, way in enumerate(ways):
        found = [p for s in document["sites"] if f"{s['chosen']['norm']}+{s['chosen']['sum']}" == way and (p := place(s))]
        if found:
            xs, ys = zip(*found, strict=True)
            axes.scatter(xs, ys, label=way, s=42, marker=MARKERS[number % len(MARKERS)], alpha=0.8, zorder=3)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs per byte moved", ylabel="FLOP/s")
    axes.set_title(f"roofline of {row.name}: {peak / 1e12:.3g} TFLOP/s in float32, {row.bandwidth / 1e9:.4g} GB/s", loc="left")
    axes.grid(alpha=0.25)
    if points:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return svg(figure, "roofline")


def place(site: dict[str, Any]) -> tuple[float, float] | None:
    """Intensity and predicted rate of a site; None for one that moves or computes nothing."""
    chosen = site["chosen"]
    flops = chosen["matrix_flops"] + chosen["other_flops"]
    if not (flops > 0 and chosen["bytes_moved"] > 0 and chosen["seconds"] > 0):
        return None
    return flops / chosen["bytes_moved"], flops / chosen["seconds"]


def region_map(found: Regions, document: dict[str, Any]) -> str:
    """Colours for the fastest way, the classical rule as a line, the model's linear layers as crosses."""
    figure, axes = figure_of(8, 4.4)
    names = list(WAYS)
    cells = np.array([[names.index(way) for way in row] for row in found.winners]).T
    xs, ys = np.log2(found.positions), np.log2(found.products)
    colours = ListedColormap([WAY_COLOURS[name] for name in names])
    steps = BoundaryNorm(np.arange(len(names) + 1) - 0.5, len(names))
    axes.pcolormesh(xs, ys, cells, cmap=colours, norm=steps, shading="nearest", alpha=0.75, edgecolors="white", linewidth=0.4)
    axes.plot(xs, 2 * xs + 1, color="black", linestyle="--", linewidth=1.2)
    found_layers = [s["sizes"] for s in document["sites"] if s["equation"].startswith("bti,bto->oi")]
    drawn = [(math.log2(s["T"]), math.log2(s.get("d", 1.0) * s.get("p", 1.0))) for s in found_layers]
    layers = [(x, y) for x, y in drawn if xs[0] <= x <= xs[-1] + 0.5 and ys[0] - 1 <= y <= ys[-1] + 1]
    axes.scatter([x for x, _ in layers], [y for _, y in layers], marker="x", color="black", zorder=3)
    axes.set(xlim=(xs[0] - 0.5, xs[-1] + 0.5), ylim=(ys[0] - 1, ys[-1] + 1))
    axes.set_xticks(xs[::2], [str(n) for n in found.positions[::2]])
    axes.set_yticks(ys, [short(n) for n in found.products])
    axes.set(xlabel="T: positions per example", ylabel="p\u00b7d: elements of the weight")
    size = min(document["microbatch"] or document["batch_size"], document["batch_size"])
    axes.set_title(
        f"fastest way for a square linear layer in float32, {size} examples, {document['hardware']['name']}", loc="left"
    )
    axes.legend(handles=legend(names, cells, bool(layers)), loc="center left", bbox_to_anchor=(1.0, 0.5))
    return svg(figure, "regions")


def legend(names: Sequence[str], cells: np.ndarray, has_layers: bool) -> list[Any]:
    """One patch for every way that wins somewhere, the rule's line, the layers' mark."""
    patches: list[Any] = [Patch(color=WAY_COLOURS[name], label=name) for i, name in enumerate(names) if (cells == i).any()]
    line = mpl.lines.Line2D([], [], color="black", linestyle="--", label="2T\u00b2 = p\u00b7d")
    cross = mpl.lines.Line2D([], [], color="black", marker="x", linestyle="", label="layers of this model")
    return [*patches, line, *([cross] if has_layers else [])]


def short(number: int) -> str:
    """65536 as 64k."""
    for factor, name in ((2**20, "M"), (2**10, "k")):
        if number >= factor:
            return f"{number // factor}{name}"
    return str(number)
