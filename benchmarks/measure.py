"""Time and memory of steps, measured so that the numbers can be compared.

Time: every method runs in every round, so a busy moment of the machine hits all alike; the median over the rounds
counts, and each round has an order of its own. The timed step follows an untimed one of the same method, as in
training: a step that finds the memory another method has just released was 14 % off. Short steps are timed several
times in their turn (0.03 s together), each by itself, behind as many untimed ones: behind a method that had filled
caches and heap the first ten steps of 1.4 ms took 11 % longer. Steps of more than a second are timed in three rounds
only, and of more than three seconds without the untimed one. A step is timed from the call until its gradients exist;
giving its result back to the allocator is not timed.

Memory on a CPU: the peak of what torch's allocator hands out during one warm step, from the profiler's memory
events, plus the tensors that a method keeps between steps. These are exact bytes and repeat from run to run.
The high-water mark of the process (ru_maxrss) was considered and refused: the warm-up sets it, the C heap
keeps freed memory in a way that depends on the order of calls, and imported compiler code counts as memory of
the step. The profiler does not see the scratch pads inside oneDNN and MKL, which every method uses.
Memory on CUDA: torch.cuda.max_memory_allocated above what was allocated before the method was made.
"""

from __future__ import annotations

import gc
import json
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Step = Callable[[], Mapping[str, Tensor]]

TURN_SECONDS, MOST_REPEATS = 0.03, 25
LONG_SECONDS, FEW_ROUNDS, FEW_ABOVE_SECONDS = 3.0, 3, 1.0


def seconds_of(step: Step, threads: int, device: str) -> float:
    """Wall-clock seconds of one step with this many threads."""
    torch.set_num_threads(threads)
    synchronize(device)
    start = time.perf_counter()
    gradients = step()
    synchronize(device)
    seconds = time.perf_counter() - start
    del gradients  # after the clock has stopped
    return seconds


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def interleaved(steps: Mapping[str, tuple[Step, int]], rounds: int, device: str,
                failed: dict[str, Exception] | None = None, first: int = 0) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of every step in every round; steps: {name: (step, threads)}. first: the number of the first round, which settles
    the orders.

    Into `failed`, where it is given, goes what a step raises beside the others (less memory is left than for it alone); it is not
    called again and has no seconds.
    """
    samples: dict[str, list[float]] = {name: [] for name in steps}
    before = torch.get_num_threads()
    for number in range(rounds):
        for name in random.Random(first + number).sample(list(steps), len(steps)):
            if name in (failed or ()) or (number >= FEW_ROUNDS and min(samples[name]) > FEW_ABOVE_SECONDS):
                continue
            try:
                samples[name] += turn(*steps[name], device)
            except Exception as failure:
                if failed is None:
                    raise
                failed[name] = failure
    torch.set_num_threads(before)
    return {name: found for name, found in samples.items() if name not in (failed or ())}


def turn(step: Step, threads: int, device: str) -> list[float]:
    """Seconds of a step in its turn."""
    first = seconds_of(step, threads, device)  # untimed: caches and the allocator as this method's own steps leave them
    if first > LONG_SECONDS:
        return [first]
    count = repeats(first)
    return [seconds_of(step, threads, device) for _ in range(2 * count if count > 1 else 1)][-count:]


def repeats(seconds: float) -> int:
    """How often a step is timed in its turn: one of a millisecond so often that a passing disturbance is outvoted."""
    return max(1, min(MOST_REPEATS, round(TURN_SECONDS / max(seconds, 1e-9))))


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds."""
    low, middle, high = statistics.quantiles(samples, n=4) if len(samples) > 1 else [samples[0]] * 3
    return {"median_ms": middle * 1e3, "low_ms": low * 1e3, "high_ms": high * 1e3}


def peak_bytes(make: Callable[[], Step], device: str) -> int:
    """Peak memory of one warm step beyond model and batch, with what the method keeps between steps."""
    gc.collect()
    before = allocated_bytes(device)
    step = make()
    for _ in range(2):
        step()
    gc.collect()
    kept = allocated_bytes(device) - before
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        gradients = step()
        torch.cuda.synchronize()
        del gradients
        return torch.cuda.max_memory_allocated() - before
    return kept + peak_of_events(step)


def allocated_bytes(device: str) -> int:
    """Bytes of all live tensors."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    tensors = [value for value in gc.get_objects() if type(value) in (Tensor, torch.nn.Parameter)]
    return sum(dict(map(storage_of, tensors)).values())


def storage_of(tensor: Tensor) -> tuple[int, int]:
    """Address and bytes of a tensor's memory; wrappers of functorch own none."""
    try:
        storage = tensor.untyped_storage()
    except NotImplementedError:
        return 0, 0
    return storage.data_ptr(), storage.nbytes()


def peak_of_events(step: Step) -> int:
    """The highest sum of allocations minus releases while a step runs, from the profiler's memory events."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.11 says that events of another cycle are gone; there is one cycle
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            gradients = step()
    del gradients
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        profile.export_chrome_trace(path)
        with open(path, encoding="utf-8") as file:
            events = json.load(file)["traceEvents"]
    memory = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    peak = total = 0
    for _, change in memory:
        total += int(change)
        peak = max(peak, total)
    return peak
