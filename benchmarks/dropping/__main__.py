"""`python -m benchmarks.dropping`: the sweep of pruning and dropping; writes results/dropping-<machine>.json, .md and plots."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from tqdm import tqdm

from benchmarks.dropping.plot import accuracies, costs, key
from benchmarks.dropping.step_cost import CUTS, measured
from benchmarks.dropping.sweep import CRITERIA, DROP, PRUNE, Setting, memory, trained
from benchmarks.dropping.tasks import TASKS
from benchmarks.experiments.run import earlier
from benchmarks.run import RESULTS, describe_machine

MEASURES = ("accuracy", "step_ms", "kept")


def settings(task: str) -> Iterator[Setting]:
    """The points of one task: single weights by every criterion for the accuracies, rows by magnitude for the costs."""
    for prune in PRUNE:
        for drop in DROP:
            yield from (Setting(task, criterion, "weights", prune, drop) for criterion in CRITERIA)
            yield Setting(task, "magnitude", "rows", prune, drop)


def measure(setting: Setting, seeds: int) -> dict[str, Any]:
    """{measure: (mean, standard deviation)} over the seeds."""
    rows = [trained(setting, seed) for seed in range(seeds)]
    found: dict[str, Any] = {m: spread([row[m] for row in rows]) for m in MEASURES}
    if setting.criterion == "magnitude":
        found["bytes"] = spread([float(memory(setting))])
    return found


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def main(
    task: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(TASKS)}; repeatable.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of every point.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds of the steps' costs.")] = 15,
) -> None:
    """Measure what is missing, and write everything."""
    torch.set_num_threads(1)  # of steps of a few milliseconds; two would wait for each other
    machine = describe_machine("cpu")
    target = RESULTS / f"dropping-{machine['name']}.json"
    head = {"machine": machine, "seeds": seeds}
    document = earlier(target, head)
    names = [name for name in TASKS if not task or name in task]
    for setting in tqdm([s for name in names for s in settings(name)]):
        name = key(setting.task, setting.criterion, setting.granularity, setting.prune, setting.drop)
        if name not in document["points"]:
            document["points"][name] = measure(setting, seeds)
            write(target, document)
    document["extras"] |= {name: measured(name, rounds, 1) for name in CUTS if name not in document["extras"]}
    write(target, document)
    stem = str(target.with_suffix(""))
    for name in names:
        accuracies(document, name, stem)
        costs(document, name, stem)
    Console().print(f"written to {target}", soft_wrap=True)


def write(target: Path, document: dict[str, Any]) -> None:
    """JSON."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(document, indent=1) + "\n", encoding="ascii")


if __name__ == "__main__":
    typer.run(main)
