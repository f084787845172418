"""Runs an experiment point by point and writes results/<experiment>-<size>-<machine>.json, .md and the plots.

A run that was interrupted goes on where it was; a point is measured anew when machine, versions, rounds or methods differ.
"""

from __future__ import annotations

import datetime
import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.experiments.experiment import Experiment
from benchmarks.experiments.table import judged, markdown
from benchmarks.measure import peak_bytes
from benchmarks.methods import ALL_METHODS
from benchmarks.protocol import products_in
from benchmarks.run import CORES, RESULTS, describe_machine
from benchmarks.worker import Options, at_most, measure_time, on_threads


def run(experiment: Experiment, size: str, rounds: int, only: str, memory: bool, limit_seconds: int) -> Path:
    """Measure what is missing, then write everything; returns the JSON file."""
    warnings.simplefilter("ignore")  # peers warn on every call
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = describe_machine(device)
    target = RESULTS / f"{experiment.name}-{size}-{machine['name']}.json"
    head = {
        "experiment": experiment.name,
        "size": size,
        "machine": machine,
        "rounds": rounds,
        "methods": list(experiment.methods),
    }
    document = earlier(target, head)
    console = Console()
    threads = (1,) if device == "cuda" or CORES == 1 else (1, CORES)
    options = Options("", experiment.methods, rounds, threads, device, limit_seconds)
    for name, case in experiment.points(size).items():
        if (only and only not in name) or name in document["points"]:
            continue
        console.rule(f"{experiment.name}: {name}")
        with products_in(case.precision):
            found = measure_time(case, options)
            if memory and not case.as_published:
                add_memory(found["methods"], case, options)
        document["points"][name] = {**found, "measured_on": datetime.date.today().isoformat()}
        write(target, experiment, document)
    for extra in experiment.extras:
        if only in extra.name and extra.name not in document["extras"]:
            document["extras"][extra.name] = extra.measure(size, options)
            write(target, experiment, document)
    write(target, experiment, document)
    console.print(f"written to {target}", soft_wrap=True)
    return target


def add_memory(methods: dict[str, dict[str, Any]], case: Any, options: Options) -> None:
    """Peak bytes of every method that was timed."""
    for name, row in methods.items():
        if "median_ms" in row and name in ALL_METHODS:
            model, batch = case.model(options.device), case.batch(options.device)
            make = partial(ALL_METHODS[name].make, case, model, *batch)
            with on_threads(1), at_most(options.limit_seconds):
                row["bytes"] = peak_bytes(make, options.device)


def earlier(target: Path, head: dict[str, Any]) -> dict[str, Any]:
    """What a run of the same kind has measured so far."""
    if target.exists():
        document: dict[str, Any] = json.loads(target.read_text(encoding="ascii"))
        if {key: document.get(key) for key in head} == head:
            return document
    return {**head, "points": {}, "extras": {}}


def write(target: Path, experiment: Experiment, document: dict[str, Any]) -> None:
    """JSON, Markdown and plots."""
    target.parent.mkdir(parents=True, exist_ok=True)
    document["claims"] = judged(experiment, document)
    target.write_text(json.dumps(document, indent=1) + "\n", encoding="ascii")
    target.with_suffix(".md").write_text(markdown(experiment, document), encoding="utf-8")
    if document["points"]:
        experiment.draw(document, str(target.with_suffix("")))
