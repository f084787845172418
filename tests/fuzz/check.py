"""What is demanded of a compiled random model: exact against the loop over single examples, or refused."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fuzz.program import Program
from oracle import Expected, errors, expect, relative_error, whole_norm
from torch import Tensor

from dpcompile import DPCompileError, StrategyError, dpcompile

TOLERANCE = 1e-9
SLACK = 1e-5
EXAMPLES = 3
SMALLEST, LARGEST = 1e-6, 1e6
WAYS: dict[str, dict[str, Any]] = {
    "gram": {"strategy": "gram"},
    "materialize": {"strategy": "materialize"},
    "two-pass": {"schedule": "two-pass"},
    "microbatch": {"schedule": "microbatch", "microbatch": 2},
    **{method: {"strategy": method} for method in ("naive", "multi", "crb", "bookkeep")},
}


@dataclass(frozen=True)
class Outcome:
    """What became of a program.

    kind: "exact"; "refused"; "wrong" (a number differs, or examples meet unseen); "crashed" (an error that is no
    refusal); "degenerate" (the loop itself fails, or has nothing but rounding to show). detail: the refusal, or what
    differs. ways: strategies and schedules besides the default that were compared.
    """

    kind: str
    detail: str = ""
    ways: tuple[str, ...] = ()

    @property
    def is_failure(self) -> bool:
        """Whether the program is a counterexample."""
        return self.kind in ("wrong", "crashed")

    @property
    def refused_by(self) -> str:
        """Who noticed: the rules, the check of the rules on numbers, or capture."""
        if "if it is, report the operation" in self.detail:
            return "numbers"
        return "capture" if self.detail.startswith(("CaptureError", "InvalidInput")) else "rules"

    @property
    def reason(self) -> str:
        """A refusal without names of nodes and sizes, to be counted."""
        first = self.detail.splitlines()[0] if self.detail else ""
        return re.sub(r" at \w+ = ", " at ", re.sub(r"\[[^]]*\]|\(\w*\)$|_\d+\b", "", first)).strip()


def outcome(program: Program, ways: Sequence[str] = tuple(WAYS)) -> Outcome:
    """Compile a program in every way and compare it with the loop; a mixing program must be refused or be exact all the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = loop_of(program)
        if isinstance(expected, Outcome) and not program.mixes:
            return expected
        try:
            private = dpcompile(program.make(), batch_dim=program.batch_dim, max_grad_norm=limit_of(expected))
            private(*program.batch(EXAMPLES))
        except DPCompileError as refused:
            return Outcome("refused", f"{type(refused).__name__}: {refused}")
        except Exception as error:
            return Outcome("crashed", f"{type(error).__name__}: {error}")
        if isinstance(expected, Outcome):
            return Outcome("wrong", "accepted, though single examples cannot run") if "norm" not in expected.detail else expected
        return compared(program, private, expected, ways)


def limit_of(expected: Expected | Outcome) -> float:
    """The clip norm."""
    return expected.max_grad_norm if isinstance(expected, Expected) else 1.0


def loop_of(program: Program) -> Expected | Outcome:
    """The loop's step, or why it has none that could be compared."""
    try:
        expected = expect(program.make(), None, program.batch(EXAMPLES), batch_dim=program.batch_dim)
    except Exception as error:
        return Outcome("degenerate", f"single examples fail: {type(error).__name__}: {error}")
    if not bool(((expected.norms > SMALLEST) & (expected.norms < LARGEST)).all()):
        return Outcome("degenerate", f"norms of {expected.norms.tolist()}")
    return expected


def compared(program: Program, private: Any, expected: Expected, ways: Sequence[str]) -> Outcome:
    """Everything that a step promises, in the default way and in the others."""
    problems = [*problems_of(program, private, expected)]
    done: list[str] = []
    for way in ways:
        other = dpcompile(program.make(), batch_dim=program.batch_dim, max_grad_norm=expected.max_grad_norm, **WAYS[way])
        try:
            problems += step_problems(way, other(*program.batch(EXAMPLES)), expected)
        except StrategyError:
            continue
        except Exception as error:
            return Outcome("crashed", f"{way}: {type(error).__name__}: {error}", tuple(done))
        done.append(way)
    if problems and is_decided_by_rounding(program, expected):
        return Outcome("degenerate", "decided by rounding, in the loop too", tuple(done))
    return Outcome("wrong" if problems else "exact", "; ".join(problems), tuple(done))


def is_decided_by_rounding(program: Program, expected: Expected) -> bool:
    """Whether the loop itself says something else of inputs that differ in their last digits: an argmax over sums that a
    normalisation makes zero, for example."""
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        moved = [t * (1 + 1e-13 * torch.randn(t.shape, generator=generator, dtype=t.dtype)) if t.is_floating_point() else t
                 for t in program.batch(EXAMPLES)]  # fmt: skip
        again = expect(program.make(), None, tuple(moved), batch_dim=program.batch_dim)
        if not relative_error(again.norms, expected.norms, float(expected.norms.max())) < 1e-7:
            return True
    return False


def step_problems(way: str, step: Any, expected: Expected) -> list[str]:
    """What of a step differs from the loop's."""
    try:
        found = errors(step, expected)
    except AssertionError as error:
        return [f"{way}: {error}"]
    return [f"{way}: {name} off by {error:.1e}" for name, error in found.items() if not error < TOLERANCE][:3]


def problems_of(program: Program, private: Any, expected: Expected) -> list[str]:
    """The default way: the step itself, single examples, the batch in another order, and a larger batch."""
    batch = program.batch(EXAMPLES)
    problems = step_problems("auto", private(*batch), expected)
    for index in range(EXAMPLES):
        alone = private(*rows(program, batch, [index]))
        if whole_norm(alone.grads) > expected.max_grad_norm * (1 + SLACK):
            problems.append(
                f"example {index} alone contributes {whole_norm(alone.grads) / expected.max_grad_norm:.6f} clip norms"
            )
    order = [2, 0, 1]
    moved = private(*rows(program, batch, order))
    if not relative_error(moved.norms, expected.norms[order], float(expected.norms.max())) < TOLERANCE:
        problems.append("norms do not move with the examples")
    again = [0, 1, 2, 2, 1, 0, 0]
    larger = private(*rows(program, batch, again))
    if not relative_error(larger.norms, expected.norms[again], float(expected.norms.max())) < TOLERANCE:
        problems.append("norms differ in a larger batch")
    return problems


def rows(program: Program, batch: Sequence[Tensor], chosen: list[int]) -> tuple[Tensor, ...]:
    """These examples of a batch."""
    indices = torch.tensor(chosen)
    return tuple(tensor.index_select(dim, indices) for tensor, dim in zip(batch, program.batch_dim, strict=True))


def shrunk(program: Program, ways: Sequence[str] = tuple(WAYS)) -> Program:
    """A shorter program with the same kind of failure: statements are dropped while it stays one."""
    kind = outcome(program, ways).kind
    index = len(program.statements) - 2
    while index >= 0:
        shorter = program.without(index)
        if fails_alike(shorter, kind, ways):
            program, index = shorter, len(shorter.statements) - 1
        index -= 1
    return program


def fails_alike(program: Program, kind: str, ways: Sequence[str]) -> bool:
    """Whether a shorter program still runs and still fails in this way."""
    try:
        return outcome(program, ways).kind == kind
    except Exception:
        return False
