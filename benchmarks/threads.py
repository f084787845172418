"""Which number of threads suits a step.

On a shared machine another program can hold a core for seconds or minutes. While methods take turns all of them suffer alike, but
numbers of threads do not: two threads then look slower than one (a step of 17 ms was timed at 22.7, with one thread to the end).
So a choice is made again when threads did not have a core each behind it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Final

import torch

from benchmarks.contest import contenders, prolonged
from benchmarks.measure import Step, interleaved
from dpcompile.measure.calibrate import ALIKE, ALONE, speedup_of_threads

TURNS: Final = 3
"""Interleaved rounds that decide between numbers of threads that take alike; one decides where they do not."""
LONGER_SECONDS: Final = 1.5
"""For how much longer they run on if they take alike."""
CHOICES: Final = 4
"""How often a choice is made until threads had their cores throughout."""
SIDE: Final = 768
"""Of the matrices by which that is seen, in some 50 ms."""
PATIENCE: Final = 30.0
"""Seconds for which other programs are waited for."""


def fastest(tried: Mapping[str, tuple[Step, int]], device: str) -> str:
    """The key with the smallest median; numbers of threads that take alike run on until no single turn decides.

    tried: {key: (step, threads)}.
    """
    if len(tried) == 1:
        return next(iter(tried))
    most, samples = max(threads for _, threads in tried.values()), dict[str, list[float]]()
    for _ in range(CHOICES):
        wait_for_cores(most, device)
        samples = taking_turns(tried, device)
        if have_cores(most, device):
            break
    return min(samples, key=lambda key: statistics.median(samples[key]))


def taking_turns(tried: Mapping[str, tuple[Step, int]], device: str) -> dict[str, list[float]]:
    """Seconds of every number of threads."""
    samples = interleaved(tried, 1, device)
    if not contenders(samples):
        return samples
    more = interleaved(tried, TURNS - 1, device, first=1)
    return prolonged({key: found + more[key] for key, found in samples.items()}, tried, tried, LONGER_SECONDS, device)


def wait_for_cores(threads: int, device: str) -> None:
    """Until threads have a core each, or patience is over."""
    started = time.perf_counter()
    while not have_cores(threads, device) and time.perf_counter() - started < PATIENCE:
        time.sleep(1.0)


def have_cores(threads: int, device: str) -> bool:
    """Whether so many threads run beside each other at the moment."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return speedup_of_threads(torch.device(device), SIDE) >= ALONE * min(threads, ALIKE)
    finally:
        torch.set_num_threads(before)
