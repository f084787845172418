"""`make bench-peaks`: predicted against measured peak memory of the private step, on the workloads of `make bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.cases import CASES, Case
from benchmarks.measure import peak_bytes
from benchmarks.methods import ordinary_eager
from benchmarks.run import RESULTS, describe_machine
from dpcompile import PrivateModule, dpcompile

COLUMNS = ("workload", "measured MB", "predicted MB", "predicted / measured", "ordinary MB", "x ordinary")


def row(case: Case) -> tuple[str, ...]:
    """One workload, with the table's hardware row, so that the plan is the same on every machine."""
    model, (x, y) = case.model("cpu"), case.batch("cpu")
    made: list[PrivateModule] = []

    def private() -> dict[str, Tensor]:
        return made[0](x, y).grads

    def make() -> object:
        made.append(dpcompile(model, loss=case.losses, hardware="cpu"))
        return private

    measured = peak_bytes(make, "cpu")  # type: ignore[arg-type]  # `private` is a step
    predicted = made[0].report().forecast.peak_bytes
    plain = peak_bytes(lambda: ordinary_eager(case, model, x, y), "cpu")
    ratio = predicted / measured
    numbers = f"{measured / 1e6:.1f}", f"{predicted / 1e6:.1f}", f"{ratio:.3f}", f"{plain / 1e6:.1f}", f"{measured / plain:.2f}"
    return (case.title, *numbers)


def main(workload: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(CASES)}; repeatable.")] = None) -> None:
    """Measure, print, and write results/<machine>-peaks.md."""
    table, lines = Table(title="peak memory of the step in eager, beyond model and batch"), []
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if number else "left")
    for name, case in CASES.items():
        if not workload or name in workload:
            cells = row(case)
            table.add_row(*cells)
            lines.append("| " + " | ".join(cells) + " |")
    Console(width=140).print(table)
    machine = describe_machine("cpu")
    head = ["| " + " | ".join(COLUMNS) + " |", "|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
    text = f"Peak memory of one step in eager, torch {machine['versions']['torch']}, {machine['cpu']}\n\n"
    path: Path = RESULTS / f"{machine['name']}-peaks.md"
    if not workload:
        path.write_text(text + "\n".join([*head, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
