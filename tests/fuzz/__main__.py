"""The fuzzing command: `python -m fuzz --models 5000 --seed 1 --minutes 30`, with tests/ on the path."""

from __future__ import annotations

import textwrap
import time
from collections import Counter
from dataclasses import dataclass, field

import hypothesis
import torch
import typer
from fuzz.check import WAYS, Outcome, outcome, shrunk
from fuzz.coverage import rows, rules_asked
from fuzz.grammar import programs
from fuzz.program import Program
from hypothesis import HealthCheck, Phase, given, settings

CHUNK = 50
"""Models for one run of hypothesis, which likes to stay near what it has drawn before."""


@dataclass
class Tally:
    """What has been seen so far."""

    known: set[str] = field(default_factory=set)
    kinds: Counter[tuple[bool, str]] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    statements: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[Program, Outcome]] = field(default_factory=list)
    samples: dict[str, Program] = field(default_factory=dict)
    noticed: Counter[str] = field(default_factory=Counter)

    def count(self, program: Program, found: Outcome) -> None:
        """Add one model."""
        self.kinds[program.mixes, found.kind] += 1
        self.ways.update(found.ways)
        self.statements.update(statement.name for statement in program.statements)
        if found.kind == "refused" and not program.mixes:
            self.reasons[found.reason] += 1
            self.samples.setdefault(found.reason, program)
        if found.kind == "refused" and program.mixes:
            self.noticed[found.refused_by] += 1
            if found.refused_by == "numbers":
                print(f"\nREFUSED BY NUMBERS ONLY: {found.detail[:300]}\n{program}\n", flush=True)
        if found.is_failure or (program.mixes and found.kind == "exact"):
            self.failures.append((program, found))
            print(f"\n{found.kind.upper()}{' (mixing)' if program.mixes else ''}: {found.detail[:500]}\n{program}\n", flush=True)

    def of(self, kind: str, mixes: bool) -> int:
        """How many models of one kind."""
        return self.kinds[mixes, kind]


def run(tally: Tally, models: int, seed: int, steps: int, every: bool) -> None:
    """One run of hypothesis; without `every`, each second model takes one more way besides the default, in turn."""
    names = tuple(WAYS)

    @hypothesis.seed(seed)
    @settings(max_examples=models, phases=[Phase.generate], database=None, deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(programs(steps=steps))
    def one(program: Program) -> None:
        text = repr(program)
        if text not in tally.known:
            turn = len(tally.known) % (2 * len(names))
            tally.known.add(text)
            tally.count(program, outcome(program, names if every else names[turn : turn + 1]))

    one()


def main(models: int = 1000, seed: int = 1, minutes: float = 30.0, steps: int = 9, every: bool = False, shrink: bool = True,
         uncovered: bool = False) -> None:  # fmt: skip
    """Compile random models and compare each with the plain loop over single examples.

    every: all strategies and schedules for each model, instead of one in turn for each second model. uncovered: list the
    rules' rows that no
    model reached.
    """
    torch.set_num_threads(1)
    started, tally, chunk = time.monotonic(), Tally(), 0
    with rules_asked() as asked:
        while len(tally.known) < models and time.monotonic() - started < 60 * minutes:
            run(tally, min(CHUNK, models - len(tally.known)), 10_000 * seed + chunk, steps, every)
            chunk += 1
    report(tally, asked, time.monotonic() - started, uncovered)
    failures = [(program, found) for program, found in tally.failures if found.is_failure]
    for program, found in failures if shrink else []:
        print(f"\n# {found.kind}: {found.detail[:200]}\n{shrunk(program)}")
    raise typer.Exit(1 if failures else 0)


def report(tally: Tally, asked: Counter[str], seconds: float, uncovered: bool) -> None:
    """Print what was seen."""
    total = sum(tally.kinds.values())
    print(f"\n{total} different models in {seconds:.0f} s ({seconds / max(total, 1):.2f} s each)")
    for mixes, title in ((False, "independent by construction"), (True, "with an operation that mixes examples")):
        kinds = ", ".join(f"{tally.of(kind, mixes)} {kind}" for kind in ("exact", "refused", "wrong", "crashed", "degenerate"))
        print(f"{title}: {kinds}")
    counted = tally.of("exact", False) + tally.of("refused", False)
    print(f"refused though independent: {100 * tally.of('refused', False) / max(counted, 1):.1f} %")
    for reason, count in tally.reasons.most_common():
        print(f"  {count:5} {reason}")
        print(textwrap.indent(tally.samples[reason].class_source(), " " * 8))
    print(f"who noticed that examples meet: {dict(tally.noticed)}")
    print(f"other ways compared: {dict(tally.ways)}")
    print(f"kinds of lines: {dict(tally.statements.most_common())}")
    reached = rows() & set(asked)
    print(f"rules: {len(reached)} of {len(rows())} rows reached, and {len(set(asked) - rows())} operations that need no row")
    if uncovered:
        print("not reached: " + ", ".join(sorted(rows() - reached)))


if __name__ == "__main__":
    typer.run(main)
