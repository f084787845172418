"""The results of `make bench-cost` as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.cost_models import Model
from dpcompile.report.plots import MARKERS, STYLE

if TYPE_CHECKING:
    from benchmarks.cost import Measured

RULES = ("dpcompile", "2T^2 <= pd", "always Gram", "always materialise")
WAYS = ("gram", "fused", "materialize", "2T^2 <= pd", "two-pass", "half batches")


TITLES = {
    "layers": "single layers that calibration has not seen",
    "papers": "convolutions of the founding papers' networks",
}


def write(path: Path, document: dict[str, Any]) -> None:
    """A table for each part that was measured, with the machine."""
    machine = document["machine"]
    lines = [
        f"torch {machine['versions']['torch']}, {machine['cpu']}, {machine['cores']} cores, eager; each part calibrated in "
        "its own run. Regret is counted beyond each layer's noise.",
        "",
    ]
    for name, title in TITLES.items():
        lines += site_lines(document[name], title) if name in document else []
    if "models" in document:
        found = document["models"]
        whole = [Model.read(facts) for facts in found["models"]]
        lines += [f"Whole models (ms; the fastest way of all is bold), {about(found)}:", "", *model_lines(whole)]
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def about(found: Mapping[str, Any]) -> str:
    """The calibration of a part."""
    own = found["calibration"]
    return f"{own['measurements']} measurements of calibration with a spread of {own['spread']:.1%}"


def site_lines(found: Mapping[str, Any], title: str) -> list[str]:
    """Regrets of our choice and of the classical rules at single layers."""
    figures = found["figures"]
    return [
        f"{figures['sites']} {title}, median noise {figures['noise']:.1%}, {about(found)}:",
        "",
        "| rule | median regret | 95th percentile | mean |",
        "|---|---:|---:|---:|",
        *(f"| {name} | " + " | ".join(f"{figures[name][k]:.1%}" for k in ("median", "95 %", "mean")) + " |" for name in RULES),
        "",
        f"All chosen ways together take {figures['lost']:.1%} longer than the best ones. Rank correlation of predicted and "
        f"measured times of all ways: {figures['rank correlation']:.3f}; the median error of a single prediction is "
        f"{figures['median error']:.0%}.",
        "",
    ]


def model_lines(whole: Sequence[Model]) -> list[str]:
    """One row per model."""
    head = ["model", "ordinary", "predicted / measured", "dpcompile", "predicted / measured", *WAYS, "regret", "noise"]
    rows = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for model in whole:
        best = min(model.seconds.values())
        predicted, ordinary = model.ordinary
        ours = cell(model.seconds["auto"], best), f"{model.predicted / model.seconds['auto']:.2f}"
        forced = [cell(model.seconds.get(name), best) for name in WAYS]
        cells = [model.title, f"{ordinary * 1e3:.1f}", f"{predicted / ordinary:.2f}", *ours, *forced]
        rows.append("| " + " | ".join([*cells, f"{model.regret():.1%}", f"{model.noise:.1%}"]) + " |")
    return rows


def cell(seconds: float | None, best: float) -> str:
    """Milliseconds, bold where nothing is faster."""
    if seconds is None:
        return "n/a"
    return f"**{seconds * 1e3:.1f}**" if seconds == best else f"{seconds * 1e3:.1f}"


def scatter(path: Path, sites: Sequence[Measured]) -> None:
    """Predicted against measured milliseconds of every way at every site."""
    with rc_context({**STYLE, "svg.hashsalt": "cost"}):
        figure = Figure(figsize=(7, 5.2))
        axes = figure.add_subplot()
        ways = sorted({way.split("+")[0] for site in sites for way in site.seconds})
        for number, norm in enumerate(ways):
            pairs = [(s.seconds[w] * 1e3, s.predicted[w] * 1e3) for s in sites for w in s.seconds if w.split("+")[0] == norm]
            marker = MARKERS[number % len(MARKERS)]
            xs, ys = zip(*pairs, strict=True)
            axes.scatter(xs, ys, s=11, marker=marker, alpha=0.6, label=norm, linewidths=0)
        low, high = axes.get_xlim()[0], max(s for site in sites for s in site.seconds.values()) * 1e3
        axes.plot([1e-2, high], [1e-2, high], color="black", linewidth=1)
        axes.fill_between([1e-2, high], [0.8e-2, 0.8 * high], [1.25e-2, 1.25 * high], color="black", alpha=0.08, linewidth=0)
        axes.set(xscale="log", yscale="log", xlabel="measured ms", ylabel="predicted ms", xlim=(max(low, 1e-2), None))
        axes.set_title("every way at every layer; the band is \u00b125 %", loc="left")
        axes.legend(markerscale=2)
        figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
