"""`python -m benchmarks.dropping`: the sweep of pruning and dropping; writes results/dropping-<machine>.json, .md and plots.

A run that was interrupted goes on where it was. Times come first, one process alone; then the trainings, several at once.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from tqdm import tqdm

from benchmarks.dropping.plot import accuracies, costs
from benchmarks.dropping.step_cost import CUTS, private_part, step_costs
from benchmarks.dropping.sweep import DROP, PRUNE, WAYS, Setting, seeds_of
from benchmarks.dropping.table import markdown
from benchmarks.dropping.tasks import TASKS
from benchmarks.experiments.run import calibrated, earlier
from benchmarks.run import CORES, RESULTS, describe_machine


def settings(task: str) -> Iterator[Setting]:
    """The points of one task: single weights by every criterion, rows by magnitude."""
    for prune in PRUNE:
        for drop in DROP:
            yield from (Setting(task, *way, prune, drop) for way in WAYS)


def main(
    task: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(TASKS)}; repeatable.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of every point.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds of the steps' costs.")] = 7,
    processes: Annotated[int, typer.Option(min=1, help="Trainings at once; they are not timed.")] = CORES,
) -> None:
    """Measure what is missing, and write everything."""
    torch.set_num_threads(1)  # steps of a few milliseconds; two threads would wait for each other
    machine = describe_machine("cpu")
    target = RESULTS / f"dropping-{machine['name']}.json"
    document = earlier(target, {"machine": machine, "seeds": seeds})
    names = [name for name in TASKS if not task or name in task]
    unknown = sorted(set(task or ()) - set(TASKS))
    if unknown:
        raise typer.BadParameter(f"--task {unknown[0]!r} is none of {', '.join(TASKS)}")
    calibrated((1,), "cpu")
    measure_costs(document, target, names, rounds)
    train(document, target, names, seeds, processes)
    stem = str(target.with_suffix(""))
    for name in names:
        accuracies(document, name, stem)
        costs(document, name, stem)
    Console().print(f"written to {target}", soft_wrap=True)


def measure_costs(document: dict[str, Any], target: Path, names: list[str], rounds: int) -> None:
    """Times and memory of steps, and of the private part of a larger network's."""
    jobs = {f"steps {name}": (step_costs, name) for name in names} | {f"part {name}": (private_part, name) for name in CUTS}
    for key, (measure, name) in jobs.items():
        if key not in document["extras"]:
            # A difference of steps scatters more than a step: seven, eleven and 21 rounds gave 1.23, 1.66 and 1.48 for one ratio.
            document["extras"][key] = measure(name, rounds if measure is step_costs else 7 * rounds)
            write(target, document)


def train(document: dict[str, Any], target: Path, names: list[str], seeds: int, processes: int) -> None:
    """Every point that is missing, all its seeds."""
    missing = [one for name in names for one in settings(name) if one.key not in document["points"]]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(seeds_of, setting, seeds): setting for setting in missing}
        for done in tqdm(as_completed(running), total=len(running)):
            document["points"][running[done].key] = done.result()
            write(target, document)


def write(target: Path, document: dict[str, Any]) -> None:
    """JSON and Markdown."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(document, indent=1) + "\n", encoding="ascii")
    target.with_suffix(".md").write_text(markdown(document), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
