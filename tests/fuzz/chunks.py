"""Random models in chunks, each compiled and compared in a process of its own: a long run can be cut off anywhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context

import torch
from fuzz.check import WAYS, Outcome, outcome
from fuzz.coverage import rules_asked
from fuzz.grammar import program_of
from fuzz.program import Program

CHUNK = 25
"""Models between two reports."""

RENEWED = 20
"""Chunks after which a process is replaced."""

Seen = tuple[list[tuple[Program, Outcome]], Counter[str]]
"""What one chunk saw: models with their outcomes, and the rows of the rules that were asked."""


def run(numbers: range, steps: int, every: bool) -> Seen:
    """The models with these numbers; without `every`, each second one takes one more way besides the default, in turn."""
    torch.set_num_threads(1)
    names, seen = tuple(WAYS), list[tuple[Program, Outcome]]()
    with rules_asked() as asked:
        for number in numbers:
            program, turn = program_of(number, steps), number % (2 * len(names))
            seen.append((program, outcome(program, names if every else names[turn : turn + 1])))
    return seen, asked


def chunks(numbers: range, until: float, jobs: int, steps: int, every: bool) -> Iterator[Seen]:
    """Chunk after chunk, `jobs` at a time in processes of their own, which are replaced now and then: they grow."""
    waiting, running = [numbers[n : n + CHUNK] for n in range(0, len(numbers), CHUNK)], set[Future[Seen]]()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=RENEWED) as pool:
        while waiting or running:
            while waiting and len(running) < jobs and time.monotonic() < until:
                running.add(pool.submit(run, waiting.pop(0), steps, every))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
