"""Runs an experiment point by point and writes results/<experiment>-<size>-<machine>.json, .md and the plots.

A run that was interrupted goes on where it was. A point is measured anew if it lacks the memory that is asked for, if a method
that was given up gets more time now, or if the machine was not quiet (then the ordinary step, timed under two names, differs from
itself) in fewer than three attempts. Results with other versions, rounds or methods are moved aside, to <file>.1 and so on.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import typer
from rich.console import Console

from benchmarks.cases import Case
from benchmarks.contest import CLOSE
from benchmarks.experiments.experiment import Experiment
from benchmarks.experiments.quiet import QUIET, quietest_of, unrest
from benchmarks.experiments.table import judged, markdown
from benchmarks.measure import peak_bytes
from benchmarks.methods import ALL_METHODS
from benchmarks.protocol import products_in
from benchmarks.run import CORES, RESULTS, describe_machine
from benchmarks.worker import Options, at_most, measure_time, on_threads, text_of
from dpcompile.measure.cache import VARIABLE, load, path_for
from dpcompile.measure.show import run_calibration

CALIBRATION_SECONDS = 180.0
CONTEST_SECONDS = 15.0
"""For how much longer the fastest methods of a point are timed beside each other."""
ATTEMPTS = 3
"""How often a point is measured until the machine was quiet."""


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
        "contest": {"within": CLOSE, "seconds": CONTEST_SECONDS},
        "methods": list(experiment.methods),
    }
    cases = {name: case for name, case in experiment.points(size).items() if only in name}
    known = (*experiment.points(size), *(extra.name for extra in experiment.extras))
    if not any(only in name for name in known):
        raise typer.BadParameter(f"--only {only!r} is in no point's name; they are {', '.join(known)}")
    document = earlier(target, head)
    console = Console()
    threads = (1,) if device == "cuda" or CORES == 1 else (1, CORES)
    calibrated(threads, device)
    options = Options("", experiment.methods, rounds, threads, device, limit_seconds, contest_seconds=CONTEST_SECONDS)
    for name, case in cases.items():
        known_point = document["points"].get(name)
        if is_complete(known_point, memory and not case.as_published, limit_seconds):
            continue
        console.rule(f"{experiment.name}: {name}")
        with products_in(case.precision):
            found = {**quietest(case, options, known_point), "limit_seconds": limit_seconds}
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


def calibrated(threads: tuple[int, ...], device: str) -> None:
    """Measure the machine once for each number of threads, as a user is told to; kept in the environment's own folder.

    Ends the run where threads did not have their cores: plans would be made for a slower machine than what is timed.
    """
    os.environ.setdefault(VARIABLE, str(Path(sys.prefix) / "calibrated"))
    for count in threads:
        with on_threads(count):
            if load(torch.device(device))[0] is None and not run_calibration(CALIBRATION_SECONDS, device).has_its_cores:
                path_for(torch.device(device)).unlink()
                raise SystemExit("nothing is timed on a machine like that; run again when other programs have ended")


def quietest(case: Case, options: Options, earlier: dict[str, Any] | None = None) -> dict[str, Any]:
    """Times of all methods, measured again while the best attempt was not quiet; an earlier one that was not counts too."""
    is_noisy = earlier is not None and unrest(earlier["methods"]) > QUIET
    attempts = [earlier] if earlier is not None and is_noisy else []
    made = sum(attempt.get("attempts", 1) for attempt in attempts)
    while not attempts or (made < ATTEMPTS and unrest(quietest_of(attempts)["methods"]) > QUIET):
        attempts.append(in_fresh_compiler(case, options))
        made += 1
    return with_memory_of(earlier, {**quietest_of(attempts), "attempts": made})


def with_memory_of(earlier: dict[str, Any] | None, found: dict[str, Any]) -> dict[str, Any]:
    """The new times with the peak memory that was measured before, which other processes do not change."""
    before = earlier["methods"] if earlier is not None else {}
    kept = {name: {key: row[key] for key in ("bytes", "memory_failure") if key in row} for name, row in before.items()}
    return {**found, "methods": {name: {**kept.get(name, {}), **row} for name, row in found["methods"].items()}}


def in_fresh_compiler(case: Case, options: Options) -> dict[str, Any]:
    """Times of all methods with nothing compiled yet: torch.compile falls back to eager, silently, once it has compiled one
    piece of code, such as the ordinary step, for too many models. Here that fails."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        return measure_time(case, options)


def is_complete(point: dict[str, Any] | None, memory: bool, limit_seconds: int) -> bool:
    """Whether a point needs no other measurement."""
    if point is None:
        return False
    rows = [row for name, row in point["methods"].items() if name in ALL_METHODS]
    is_given_up = (
        any("TimeoutError" in row.get("failure", "") for row in rows)
        and point.get("limit_seconds", limit_seconds) < limit_seconds
    )
    lacks_memory = memory and any("median_ms" in row and not row.keys() & {"bytes", "memory_failure"} for row in rows)
    is_settled = point.get("attempts", 1) >= ATTEMPTS or unrest(point["methods"]) <= QUIET
    return not is_given_up and not lacks_memory and is_settled


def add_memory(methods: dict[str, dict[str, Any]], case: Case, options: Options) -> None:
    """Peak bytes of every method that was timed; one that cannot be measured keeps its time."""
    for name, row in methods.items():
        if "median_ms" in row and name in ALL_METHODS:
            model, batch = case.model(options.device), case.batch(options.device)
            make = partial(ALL_METHODS[name].make, case, model, *batch)
            try:
                with on_threads(1), at_most(options.limit_seconds):
                    row["bytes"] = peak_bytes(make, options.device)
            except Exception as failure:  # no memory left, or no time: whatever a method raises is its result
                row["memory_failure"] = text_of(failure)


def earlier(target: Path, head: dict[str, Any]) -> dict[str, Any]:
    """What a run of the same kind has measured so far; results of another kind stay beside."""
    if target.exists():
        document: dict[str, Any] = json.loads(target.read_text(encoding="ascii"))
        if {key: document.get(key) for key in head} == head:
            return {"extras": {}, **document}
        places = (target.with_name(f"{target.name}.{number}") for number in itertools.count(1))
        target.rename(next(place for place in places if not place.exists()))
    return {**head, "points": {}, "extras": {}}


def write(target: Path, experiment: Experiment, document: dict[str, Any]) -> None:
    """JSON, Markdown and plots."""
    target.parent.mkdir(parents=True, exist_ok=True)
    order = list(experiment.points(document["size"]))  # whatever was measured last
    document["points"] = {name: document["points"][name] for name in order if name in document["points"]}
    document["claims"] = judged(experiment, document)
    target.write_text(json.dumps(document, indent=1) + "\n", encoding="ascii")
    target.with_suffix(".md").write_text(markdown(experiment, document), encoding="utf-8")
    if document["points"]:
        experiment.draw(document, str(target.with_suffix("")))
