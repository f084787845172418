"""`make bench-cost`: predicted against measured time of every strategy, and what a wrong choice costs.

Three parts: layers drawn at random, the convolutions of the founding papers' networks, whole models.

The machine is calibrated in the same run. Every option of a site is timed in every round, the first one twice: how far its
two medians are apart is the noise, and a regret counts only beyond it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from scipy.stats import spearmanr

from benchmarks.cost_grid import Layer, grid
from benchmarks.cost_models import Model, measure_models
from benchmarks.cost_table import scatter, write
from benchmarks.paper_convolutions import paper_convolutions
from benchmarks.run import RESULTS, describe_machine
from benchmarks.site_sizes import positions_of
from dpcompile.analysis.example_axis import example_axis
from dpcompile.analysis.sites import find_sites
from dpcompile.batch import flatten_batch
from dpcompile.capture import capture
from dpcompile.cost.hardware import HARDWARE, Hardware
from dpcompile.losses import make_program
from dpcompile.measure.calibrate import calibrate
from dpcompile.measure.extract import extract
from dpcompile.measure.tune import seconds_of
from dpcompile.plan.select import options_of


class Part(StrEnum):
    """What is measured."""

    LAYERS = "layers"
    PAPERS = "papers"
    MODELS = "models"
    ALL = "all"


CPU = torch.device("cpu")


@dataclass(frozen=True)
class Measured:
    """One site: predicted and measured seconds by option, its noise, and what was chosen."""

    name: str
    batch_size: int
    predicted: dict[str, float]
    seconds: dict[str, float]
    noise: float
    chosen: str
    positions: float
    parameters: float

    def regret(self, option: str | None = None) -> float:
        """How much slower than the best an option is, beyond the noise."""
        best = min(self.seconds.values())
        regret = self.seconds[option or self.chosen] / best - 1
        return regret if regret > self.noise else 0.0


def squares(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A loss per example for any layer."""
    return model(x).flatten(1).square().sum(1)


def measure(layer: Layer, hardware: Hardware, rounds: int) -> Measured:
    """All options of one layer, interleaved."""
    program, batch = make_program(layer.make, squares), flatten_batch((layer.batch(2),), {}, 0)
    joint = capture(program, batch)
    (site,), _ = find_sites(joint, example_axis(joint))
    options, _ = options_of(site, hardware, layer.batch_size)
    programs = {f"{o.norm}+{o.sum}": extract(joint, site, o.norm, o.sum) for o in options}
    first = next(iter(programs.values()))
    *measured, second = seconds_of([*programs.values(), first], layer.batch_size, CPU, rounds)
    medians = dict(zip(programs, measured, strict=True))
    noise = abs(math.log(second / measured[0]))
    best = min(options, key=lambda option: option.seconds)
    predicted = {f"{o.norm}+{o.sum}": o.seconds for o in options}
    sizes = positions_of(site)
    return Measured(layer.name, layer.batch_size, predicted, medians, noise, f"{best.norm}+{best.sum}", *sizes)


RULES = ("2T^2 <= pd", "always Gram", "always materialise")


def by_rule(site: Measured, rule: str) -> str:
    """What a classical rule takes, with the better one of its sums; where Gram cannot be applied, what remains."""
    gram = rule == "always Gram" or (rule == "2T^2 <= pd" and 2 * site.positions**2 <= site.parameters)
    names = [n for n in site.seconds if n.startswith("gram+" if gram else "materialize+")] or list(site.seconds)
    if not any(n.startswith("gram+") for n in site.seconds) and any(n.startswith("rows+") for n in site.seconds):
        names = [n for n in site.seconds if n.startswith("rows+" if gram else "materialize+")]
    return min(names, key=site.seconds.__getitem__)


def figures(sites: Sequence[Measured]) -> dict[str, Any]:
    """Median and 95th percentile of the regret, ours and the rules', and the rank correlation over all options.

    lost: what the chosen ways of all sites take longer together than the best ones, as a share; noise is not taken off.
    """
    ours = [site.regret() for site in sites]
    result: dict[str, Any] = {"dpcompile": quantiles(ours)}
    for rule in RULES:
        result[rule] = quantiles([site.regret(by_rule(site, rule)) for site in sites])
    pairs = [(site.predicted[n], site.seconds[n]) for site in sites for n in site.seconds]
    result["rank correlation"] = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    errors = [abs(math.log(predicted / seconds)) for predicted, seconds in pairs]
    result["median error"] = float(np.median(errors))
    result["noise"] = float(np.median([site.noise for site in sites]))
    result["sites"] = len(sites)
    result["lost"] = sum(site.seconds[site.chosen] for site in sites) / sum(min(site.seconds.values()) for site in sites) - 1
    return result


def quantiles(regrets: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile, mean."""
    return {"median": float(np.median(regrets)), "95 %": float(np.quantile(regrets, 0.95)), "mean": float(np.mean(regrets))}


def main(
    rounds: Annotated[int, typer.Option(min=3)] = 9,
    seconds: Annotated[float, typer.Option(help="Time for calibration.")] = 180.0,
    only: Annotated[str, typer.Option(help="Sites whose name contains this; results are then not written.")] = "",
    part: Annotated[Part, typer.Option(help="What is measured; the other parts of the results are kept.")] = Part.ALL,
    output: Annotated[Path, typer.Option(help="Folder for results.")] = RESULTS,
) -> None:
    """Calibrate, measure the sites and the models, print the figures, write results/<machine>-cost.{json,md,svg}."""
    console = Console(width=140)
    console.print(f"calibrating for {seconds:.0f} s", style="dim")
    done = calibrate(HARDWARE["cpu"], CPU, seconds)
    console.print(f"{done.measurements} measurements in {done.seconds:.0f} s, spread {done.spread:.1%}")
    document: dict[str, Any] = {}
    for name, make in ((Part.LAYERS, grid), (Part.PAPERS, paper_convolutions)):
        if part in (name, Part.ALL):
            layers = [layer for layer in make() if only in layer.name]
            sites = [measure(layer, done.hardware, rounds) for layer in track(layers, str(name), console=console)]
            document[name] = {"figures": figures(sites), "sites": [asdict(site) for site in sites]}
            print_sites(console, document[name]["figures"], sites)
    if part in (Part.MODELS, Part.ALL):
        whole = measure_models(done, rounds, lambda name: console.print(name, style="dim"))
        document[Part.MODELS] = {"models": [asdict(model) for model in whole]}
        print_models(console, whole)
    calibration = {"spread": done.spread, "measurements": done.measurements}
    if not only:
        publish(output, {name: {"calibration": calibration, **found} for name, found in document.items()})


def publish(folder: Path, measured: dict[str, Any]) -> None:
    """Write the results; a part that was not measured stays what it was on this machine."""
    machine = describe_machine("cpu")
    path = folder / f"{machine['name']}-cost.json"
    before = json.loads(path.read_text("ascii")) if path.exists() else {}
    document = {**before, "machine": machine, **measured}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="ascii")
    write(path.with_suffix(".md"), document)
    if Part.LAYERS in document:
        scatter(path.with_suffix(".svg"), [Measured(**facts) for facts in document[Part.LAYERS]["sites"]])


def print_sites(console: Console, found: dict[str, Any], sites: Sequence[Measured]) -> None:
    """The figures, and the sites with the largest regrets."""
    console.print(found)
    for site in sorted(sites, key=lambda s: -s.regret())[:15]:
        best = min(site.seconds, key=site.seconds.__getitem__)
        console.print(f"{site.regret():.0%} {site.name} B={site.batch_size}: {site.chosen} "
                      f"{site.predicted[site.chosen] * 1e3:.2f}/{site.seconds[site.chosen] * 1e3:.2f} ms, best {best} "
                      f"{site.predicted[best] * 1e3:.2f}/{site.seconds[best] * 1e3:.2f} ms", highlight=False)  # fmt: skip


def print_models(console: Console, whole: Sequence[Model]) -> None:
    """One line per model."""
    for model in whole:
        ways = ", ".join(f"{name} {spent * 1e3:.1f}" for name, spent in model.seconds.items())
        console.print(f"{model.title}: predicted {model.predicted * 1e3:.1f} ms; {ways}; regret {model.regret():.1%}, "
                      f"noise {model.noise:.1%}", highlight=False)  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
