"""What a run of the fuzzer has seen: counts, in words and as JSON."""

from __future__ import annotations

import json
import platform
import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fuzz.check import Outcome
from fuzz.coverage import rows
from fuzz.program import Program

KINDS = ("exact", "refused", "wrong", "crashed", "degenerate")
TITLES = {False: "independent by construction", True: "with an operation that mixes examples"}


@dataclass
class Tally:
    """What has been seen so far."""

    seed: int = 1
    seconds: float = 0.0
    known: set[str] = field(default_factory=set)
    kinds: Counter[tuple[bool, str]] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    statements: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[Program, Outcome]] = field(default_factory=list)
    samples: dict[str, Program] = field(default_factory=dict)
    noticed: Counter[str] = field(default_factory=Counter)
    degenerate: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)

    def count(self, program: Program, found: Outcome) -> None:
        """Add one model, unless it has been seen."""
        if repr(program) in self.known:
            return
        self.known.add(repr(program))
        self.kinds[program.mixes, found.kind] += 1
        self.ways.update(found.ways)
        self.statements.update(statement.name for statement in program.statements)
        if found.kind == "degenerate":
            self.degenerate[found.detail.split("[")[0][:60]] += 1
        if found.kind == "refused":
            self.count_refused(program, found)
        if found.is_failure or (program.mixes and found.kind == "exact"):
            self.failures.append((program, found))
            print(f"\n{found.kind.upper()}{' (mixing)' if program.mixes else ''}: {found.detail[:500]}\n{program}\n", flush=True)

    def count_refused(self, program: Program, found: Outcome) -> None:
        """Add one refused model: its reason, or who noticed that examples meet."""
        if not program.mixes:
            self.reasons[found.reason] += 1
            self.samples.setdefault(found.reason, program)
            return
        self.noticed[found.refused_by] += 1
        if found.refused_by == "numbers":
            print(f"\nREFUSED BY NUMBERS ONLY: {found.detail[:300]}\n{program}\n", flush=True)

    def of(self, kind: str, mixes: bool) -> int:
        """How many models of one kind."""
        return self.kinds[mixes, kind]

    @property
    def reached(self) -> set[str]:
        """The rows of the rules that some model reached."""
        return rows() & set(self.asked)

    @property
    def refused_share(self) -> float:
        """The part refused of the independent models that were refused or exact."""
        refused = self.of("refused", False)
        return refused / max(self.of("exact", False) + refused, 1)

    def document(self) -> dict[str, Any]:
        """The counts as JSON."""
        return {
            "schema": 1,
            "seed": self.seed,
            "models": sum(self.kinds.values()),
            "seconds": round(self.seconds),
            **{
                name: {kind: self.of(kind, mixes) for kind in KINDS} for mixes, name in ((False, "independent"), (True, "mixing"))
            },
            "refused_though_independent": round(self.refused_share, 4),
            "reasons": dict(self.reasons.most_common()),
            "noticed_by": dict(self.noticed),
            "ways": dict(self.ways),
            "rows": len(rows()),
            "rows_reached": sorted(self.reached),
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
        }

    def save(self, path: Path | None) -> None:
        """Write the counts, so that they survive an interruption."""
        if path is not None:
            path.write_text(json.dumps(self.document(), indent=1) + "\n")

    def report(self) -> None:
        """Print what was seen."""
        total = sum(self.kinds.values())
        print(f"\n{total} different models in {self.seconds:.0f} s ({self.seconds / max(total, 1):.2f} s each)")
        for mixes, title in TITLES.items():
            print(f"{title}: {', '.join(f'{self.of(kind, mixes)} {kind}' for kind in KINDS)}")
        print(f"refused though independent: {100 * self.refused_share:.1f} %")
        for reason, count in self.reasons.most_common():
            print(f"  {count:5} {reason}")
            print(textwrap.indent(self.samples[reason].class_source(), " " * 8))
        print(f"degenerate: {dict(self.degenerate.most_common(8))}")
        print(f"who noticed that examples meet: {dict(self.noticed)}")
        print(f"other ways compared: {dict(self.ways)}")
        print(f"kinds of lines: {dict(self.statements.most_common())}")
        others = len(set(self.asked) - rows())
        print(f"rules: {len(self.reached)} of {len(rows())} rows reached, and {others} operations that need no row")


def markdown(found: Mapping[str, Any]) -> str:
    """The counts of a run in a table, with the reasons of what was refused though independent."""
    rows = [f"| {title} | {' | '.join(str(found[name][kind]) for kind in KINDS)} |" for name, title in NAMED.items()]
    reasons = "; ".join(f"{reason} ({count})" for reason, count in found["reasons"].items())
    share = f"{100 * found['refused_though_independent']:.1f} % of the independent ones are refused: {reasons}."
    ways = ", ".join(f"{way} {count}" for way, count in sorted(found["ways"].items()))
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return "\n".join([
        f"{found['models']:,} models of seed {found['seed']} ({versions}), {found['seconds'] / found['models']:.1f} s each:", "",
        f"| models | {' | '.join(KINDS)} |", "|---|" + "---:|" * len(KINDS), *rows, "", share,
        f"Compiled in other ways besides: {ways}. Rows of the rules reached: {len(found['rows_reached'])} of {found['rows']}.",
    ])  # fmt: skip


NAMED = {"independent": TITLES[False], "mixing": TITLES[True]}
