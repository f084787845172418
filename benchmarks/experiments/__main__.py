"""`python -m benchmarks.experiments NAME`: measure, and write JSON, table and plots to benchmarks/results."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.experiments.beltran import EXPERIMENT as BELTRAN
from benchmarks.experiments.experiment import SIZES
from benchmarks.experiments.lee_kifer import EXPERIMENT as LEE_KIFER
from benchmarks.experiments.rochette import EXPERIMENT as ROCHETTE
from benchmarks.experiments.run import run

EXPERIMENTS = {experiment.name: experiment for experiment in (ROCHETTE, LEE_KIFER, BELTRAN)}


def main(
    name: Annotated[str, typer.Argument(help=f"Whose experiments: {', '.join(EXPERIMENTS)}.")],
    size: Annotated[str, typer.Option(help="small fits two CPU cores, full is the paper's own, for a GPU.")] = "small",
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds of a point.")] = 7,
    only: Annotated[str, typer.Option(help="Points whose names hold this text.")] = "",
    memory: Annotated[bool, typer.Option(help="Measure peak memory too.")] = True,
    limit_seconds: Annotated[int, typer.Option(help="Give a method up that is not ready after this long.")] = 300,
) -> None:
    """Measure what is missing, and write JSON, table and plots."""
    if name not in EXPERIMENTS:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(EXPERIMENTS)}")
    if size not in SIZES:
        raise typer.BadParameter(f"--size {size!r} is not one of {', '.join(SIZES)}")
    run(EXPERIMENTS[name], size, rounds, only, memory, limit_seconds)


if __name__ == "__main__":
    typer.run(main)
