"""The fuzzing command: `python -m fuzz --models 5000 --seed 1 --minutes 30`, with tests/ on the path."""

from __future__ import annotations

import time
from pathlib import Path

import typer
from fuzz.check import shrunk
from fuzz.chunks import chunks
from fuzz.coverage import print_uncovered
from fuzz.tally import Tally

MOST = 1_000_000
"""Models of one seed: their numbers start at seed * MOST."""


def main(models: int = 1000, seed: int = 1, minutes: float = 30.0, steps: int = 9, every: bool = False, shrink: bool = True,
         uncovered: bool = False, jobs: int = 1, output: Path | None = None) -> None:  # fmt: skip
    """Compile random models and compare each with the plain loop over single examples.

    every: all strategies and schedules for each model, instead of one in turn for each second model. uncovered: list the
    rules' rows that no model reached, and which of them the table of operations reaches. jobs: processes. output: a file
    for the counts as JSON, written anew after every chunk.
    """
    started, tally = time.monotonic(), Tally(seed)
    numbers = range(MOST * seed, MOST * seed + models)
    for seen, asked in chunks(numbers, started + 60 * minutes, jobs, steps, every):
        for program, found in seen:
            tally.count(program, found)
        tally.asked += asked
        tally.seconds = time.monotonic() - started
        tally.save(output)
        print(f"{len(tally.known)} models, {100 * tally.refused_share:.1f} % refused, {tally.seconds:.0f} s", flush=True)
    tally.report()
    if uncovered:
        print_uncovered(tally.reached)
    failures = [(program, found) for program, found in tally.failures if found.is_failure]
    for program, found in failures if shrink else []:
        print(f"\n# {found.kind}: {found.detail[:200]}\n{shrunk(program)}")
    raise typer.Exit(1 if failures else 0)


if __name__ == "__main__":
    typer.run(main)
