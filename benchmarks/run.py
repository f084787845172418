"""`make bench`: time and memory of one private step, side by side with ordinary training and with the peers.

The unit is the faster of the ordinary step in eager mode and compiled by inductor, on the same machine in the
same run. Every method computes the same clipped sum, is checked against a float64 loop over single examples
before it is timed, and is taken at its better thread count. Results are printed, and written beside this file
as results/<machine>.json and .md; a run of some workloads keeps the others of the same machine and versions.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.cases import CASES
from benchmarks.methods import ALL_METHODS, METHODS
from benchmarks.table import markdown, notes, overview, rich_table, rows_of
from benchmarks.worker import Options, as_json

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(
    workload: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(CASES)}; repeatable.")] = None,
    method: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(ALL_METHODS)}; repeatable.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; published numbers take 15 or more.")] = 15,
    memory: Annotated[bool, typer.Option(help="Measure peak memory too.")] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda; cuda if there is one.")] = "",
    limit_seconds: Annotated[int, typer.Option(help="Give a method up that is not ready after this long.")] = 600,
    output: Annotated[Path | None, typer.Option(help="The JSON file; results/<machine>.json by default.")] = None,
) -> None:
    """Measure, print the tables, and write JSON and Markdown."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    threads = (1,) if device == "cuda" or CORES == 1 else (1, CORES)
    names = chosen(method, ALL_METHODS if method else METHODS, always=["ordinary eager"])
    options = Options("", tuple(names), rounds, threads, device, limit_seconds)
    machine = describe_machine(device)
    console = Console(width=120)
    target = output or RESULTS / f"{machine['name']}.json"
    results = earlier(target, machine, rounds)
    for name in chosen(workload, CASES):
        console.rule(CASES[name].title)
        results[name] = {**measure(name, options, memory), "measured_on": datetime.date.today().isoformat()}
        rows = rows_of(results[name]["methods"])
        console.print(rich_table(CASES[name], rows))
        for line in notes(rows):
            console.print(line, style="dim", soft_wrap=True)
        write(target, machine, rounds, results)  # after every workload: an interrupted run keeps what it has
    console.print(f"written to {target} and {target.with_suffix('.md')}", soft_wrap=True)


def chosen(wanted: list[str] | None, known: Any, always: list[str] | None = None) -> list[str]:
    """The names asked for in the table's order; all by default."""
    unknown = set(wanted or ()) - set(known)
    if unknown:
        raise typer.BadParameter(f"{sorted(unknown)} not in {list(known)}")
    return [name for name in known if not wanted or name in wanted or name in (always or ())]


def measure(case: str, options: Options, memory: bool) -> dict[str, Any]:
    """Times of all methods in one process, then memory of each in a process of its own."""
    result = in_process(case, options)
    for name in options.methods if memory else ():
        if "median_ms" in result["methods"][name]:
            result["methods"][name] |= in_process(case, replace(options, memory_of=name))
    return result


def in_process(case: str, options: Options) -> dict[str, Any]:
    """Run the worker.

    Passive waiting for all methods alike: on few cores, threads that spin make everybody's next step slower.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        arguments = as_json(replace(options, output=str(path)))
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "KINETO_LOG_LEVEL": "9"}
        command = [sys.executable, "-m", "benchmarks.worker", case, arguments]
        finished = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        if finished.returncode == 0:
            loaded: dict[str, Any] = json.loads(path.read_text(encoding="ascii"))
            return loaded
        if options.memory_of is None:
            raise typer.Exit(finished.returncode)
        return {}  # a method that could be timed but not measured for memory keeps its time


def describe_machine(device: str) -> dict[str, Any]:
    """What the numbers depend on."""
    cpu = cpu_name()
    accelerator = torch.cuda.get_device_name() if device == "cuda" else None
    versions = {name: importlib.metadata.version(name) for name in ("torch", "opacus", "numpy")}
    name = re.sub(r"[^a-z0-9]+", "-", (accelerator or f"{cpu} {CORES} cores").lower()).strip("-")
    return {"name": name, "cpu": cpu, "cores": CORES, "accelerator": accelerator,
            "python": platform.python_version(), "versions": versions}  # fmt: skip


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def earlier(target: Path, machine: dict[str, Any], rounds: int) -> dict[str, Any]:
    """What the file holds for other workloads, if it comes from the same machine, versions and number of rounds."""
    if not target.exists():
        return {}
    document = json.loads(target.read_text(encoding="ascii"))
    same = document["machine"] == machine and document["rounds"] == rounds
    return dict(document["workloads"]) if same else {}


def write(target: Path, machine: dict[str, Any], rounds: int, results: dict[str, Any]) -> None:
    """JSON for comparisons and Markdown for people."""
    document = {"machine": machine, "rounds": rounds, "workloads": results}
    where = machine["accelerator"] or f"{machine['cpu']}, {machine['cores']} cores"
    title = f"## {where}, torch {machine['versions']['torch']}, medians of {rounds} interleaved rounds\n\n"
    names = [name for name in CASES if name in results]
    sections = [overview(results), *(markdown(CASES[name], rows_of(results[name]["methods"])) for name in names)]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="ascii")
    target.with_suffix(".md").write_text(title + "\n".join(sections), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
