"""One workload in a process of its own: `python -m benchmarks.worker CASE OPTIONS-AS-JSON`, result as JSON.

A fresh process per workload, and per method for memory, keeps compiler caches and recompilation limits of one
from reaching the next. The parent sets OMP_WAIT_POLICY before this process loads torch.
"""

from __future__ import annotations

import json
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.config as dynamo_config
import torch._inductor.config as inductor_config

from benchmarks.cases import AGAIN, CASES, Case
from benchmarks.contest import prolonged
from benchmarks.measure import Step, interleaved, peak_bytes, seconds_of, summary
from benchmarks.methods import ALL_METHODS
from benchmarks.protocol import as_published, products_in
from benchmarks.reference import Reference, largest_error, make_reference
from benchmarks.threads import fastest

ENOUGH_SECONDS = 15.0
"""A step that takes longer with all threads is not tried with one (a loop over 512 examples took 4 s with two, 0.5 with one)."""


@dataclass(frozen=True)
class Options:
    """What the parent asks for. memory_of: measure this method's peak memory and nothing else. contest_seconds: for how much
    longer the fastest private methods run beside each other."""

    output: str
    methods: tuple[str, ...]
    rounds: int
    threads: tuple[int, ...]
    device: str
    limit_seconds: int
    memory_of: str | None = None
    contest_seconds: float = 0.0


def main() -> None:
    """Measure and write the result where the parent wants it."""
    case, options = CASES[sys.argv[1]], Options(**json.loads(sys.argv[2]))
    warnings.simplefilter("ignore")  # peers warn about hooks and deprecations on every call
    dynamo_config.fail_on_recompile_limit_hit = True  # never time a silent fall-back to eager
    with products_in(case.precision):
        result = measure_memory(case, options) if options.memory_of else measure_time(case, options)
    Path(options.output).write_text(json.dumps(result), encoding="ascii")


def measure_memory(case: Case, options: Options) -> dict[str, Any]:
    """{"bytes": peak} of one method, at one thread."""
    method = ALL_METHODS[str(options.memory_of)]
    model, batch = case.model(options.device), case.batch(options.device)
    with on_threads(1), at_most(options.limit_seconds):
        return {"bytes": peak_bytes(lambda: method.make(case, model, *batch), options.device)}


def measure_time(case: Case, options: Options) -> dict[str, Any]:
    """Every method: correct or not, its better thread count, median step time."""
    reference = make_reference(case)
    results: dict[str, dict[str, Any]] = {name: {} for name in options.methods}
    steps: dict[str, tuple[Step, int]] = {}
    for name in options.methods:
        try:
            steps[name] = prepare(case, name, reference, options, results[name])
            say(f"  {name}: error {results[name]['error']:.0e}, threads {steps[name][1]}")
        except Exception as failure:  # whatever a peer raises is its result, not ours
            results[name]["failure"] = text_of(failure)
            say(f"  {name}: n/a, {results[name]['failure']}")
    again = {name + AGAIN: steps[name] for name in steps if not ALL_METHODS[name].is_private}
    failed: dict[str, Exception] = {}
    private, steps = [name for name in steps if ALL_METHODS[name].is_private], steps | again
    samples = interleaved(steps, options.rounds, options.device, failed)
    for name, found in prolonged(samples, steps, private, options.contest_seconds, options.device).items():
        results.setdefault(name, {"threads": steps[name][1]}).update(summary(found), samples=len(found))
    for name, why in failed.items():
        results.setdefault(name, {})["failure"] = text_of(why)
    return {"methods": results, "share_clipped": reference.share_clipped}


def text_of(failure: Exception) -> str:
    """A failure as results hold it: its type and first line."""
    first, *_ = str(failure).strip().splitlines() or [""]
    return f"{type(failure).__name__}: {first}"[:200]


def prepare(case: Case, name: str, reference: Reference, options: Options, result: dict[str, Any]) -> tuple[Step, int]:
    """Make and check a step per thread count and keep the faster; generated code fixes its thread count."""
    tried: dict[str, tuple[Step, int]] = {}
    method = ALL_METHODS[name]
    for threads in sorted(options.threads, reverse=True):
        with on_threads(threads), at_most(options.limit_seconds):
            model, (x, y) = case.model(options.device), case.batch(options.device)
            step = method.make(case, model, x, y)
            error = checked(step, method.is_private, reference)
            result["error"] = max(error, result.get("error", 0.0))
            if not error <= case.tolerance:
                raise ArithmeticError(f"WRONG: off by {error:.0e} from the per-example loop")
            if case.as_published:
                step = as_published(step, case, model, x, y, method.is_private)
            tried[str(threads)] = step, threads
            if seconds_of(step, threads, options.device) > ENOUGH_SECONDS:
                break
    best, result["threads"] = tried[fastest(tried, options.device)]
    return best, result["threads"]


def checked(step: Step, is_private: bool, reference: Reference) -> float:
    """The step's largest error against the per-example loop."""
    if is_private:
        return largest_error(step(), reference.clipped, reference.clipped_size)
    return largest_error(step(), reference.ordinary, reference.ordinary_size)


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Run and generate code for this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with inductor_config.patch({"cpp.threads": count}):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Give up after this long: some methods take an hour to compile."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"not ready after {seconds} s (--limit-seconds)")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def say(text: str) -> None:
    """Tell the person who waits."""
    print(text, file=sys.stderr, flush=True)


def as_json(options: Options) -> str:
    """How the parent hands options over."""
    return json.dumps(asdict(options))


if __name__ == "__main__":
    main()
