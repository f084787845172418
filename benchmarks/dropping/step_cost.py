"""What a selection saves of a step: time and memory at every rate, and of the part that privacy costs when rows are pruned.

Interleaved in one run on one thread; medians. A step is that of training: gradients, norms, clipped sums, noise, update, and
choosing anew where gradients are dropped. The private part of training some weights is what a step with them takes longer
than the same step with them frozen (requires_grad=False): the network, its activations and their gradients are in both.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.cases import CASES, MAX_GRAD_NORM, Case
from benchmarks.dropping.sweep import DROP, PRUNE, Setting, compiled, session
from benchmarks.dropping.tasks import TASKS, Task
from benchmarks.measure import Step, interleaved, peak_bytes
from benchmarks.methods import ordinary_eager
from dpcompile import PrePruning, dpcompile
from dpcompile.plan.select import matches

CUTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "mlp": ("the weights of every layer", ("*.weight",)),
    "gpt-untied": ("the weights of the feed-forward blocks", ("*mlp.*.weight",)),
}
"""{workload: (what rows are taken of, its parameters)}."""


def step_costs(task: str, rounds: int) -> dict[str, dict[str, float]]:
    """{"ordinary" or a setting's key: {"step_ms", "bytes"}} for rows and single weights by magnitude at all rates.

    A step of the mean over an epoch: all methods draw the same batches. bytes: peak of a warm step's gradients on the expected
    batch, beyond model and batch.
    """
    settings = [Setting(task, "magnitude", kind, prune, drop) for kind in ("rows", "weights") for prune in PRUNE for drop in DROP]
    epochs = {"ordinary": (ordinary_epoch(TASKS[task]), 1), **{one.key: (private_epoch(one), 1) for one in settings}}
    for epoch, _ in epochs.values():
        epoch()
    steps = round(TASKS[task].train / TASKS[task].batch_size)
    found = {key: {"step_ms": value / steps} for key, value in medians(epochs, rounds).items()}
    for setting in settings:
        found[setting.key]["bytes"] = float(peak_bytes(partial(one_step, setting), "cpu"))
    return found


def medians(steps: Mapping[str, tuple[Step, int]], rounds: int) -> dict[str, float]:
    """Milliseconds."""
    return {name: 1e3 * statistics.median(samples) for name, samples in interleaved(steps, rounds, "cpu").items()}


def private_epoch(setting: Setting) -> Step:
    """An epoch of private steps; the batches are drawn from the same seed by every setting."""
    _, train = session(setting, 0)

    def epoch() -> dict[str, torch.Tensor]:
        train()
        return {}

    return epoch


def ordinary_epoch(task: Task) -> Step:
    """An epoch of torch's own training on batches of the expected size."""
    model = task.make()
    optimizer = torch.optim.SGD(model.parameters(), lr=task.learning_rate, momentum=0.9)
    loader = DataLoader(TensorDataset(*task.parts()[0]), batch_size=task.batch_size, shuffle=True, drop_last=True)

    def epoch() -> dict[str, torch.Tensor]:
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return {}

    return epoch


def one_step(setting: Setting) -> Step:
    """The gradients of the expected batch."""
    task = TASKS[setting.task]
    private, batch = compiled(setting, 0), tuple(tensor[: task.batch_size].clone() for tensor in task.parts()[0])
    return lambda: private(*batch).grads


def private_part(name: str, rounds: int) -> dict[str, float]:
    """{"ordinary", "frozen", "whole", "pruned"}: milliseconds of a step; "times": how many times cheaper the private part of the
    weights in CUTS becomes when half of their rows are pruned, (whole - frozen) / (pruned - frozen), which lies between "times
    from" and "times to" in 90 % of samples drawn from these rounds (bootstrap); "... bytes": peak memory."""
    case, weights = CASES[name], CUTS[name][1]
    half = PrePruning(0.5, granularity="rows", parameters=weights)
    variants: dict[str, Callable[[], Step]] = {
        "ordinary": lambda: ordinary_eager(case, case.model("cpu"), *case.batch("cpu")),
        "frozen": lambda: step_of(frozen(case, weights)),
        "whole": lambda: step_of(case),
        "pruned": lambda: step_of(case, half),
    }
    steps = {variant: (make(), 1) for variant, make in variants.items()}
    for step, _ in steps.values():
        step()
    samples = interleaved(steps, rounds, "cpu")
    peaks = {f"{variant} bytes": float(peak_bytes(make, "cpu")) for variant, make in variants.items()}
    found = {variant: 1e3 * statistics.median(seconds) for variant, seconds in samples.items()}
    return {**found, **times_cheaper(samples["frozen"], samples["whole"], samples["pruned"]), **peaks}


def times_cheaper(frozen: list[float], whole: list[float], pruned: list[float]) -> dict[str, float]:
    """The ratio of `private_part` and its interval, from the seconds of frozen, whole and pruned steps."""

    def times(*samples: Any, axis: int = -1) -> Any:
        rest, all_rows, half = (np.median(seconds, axis=axis) for seconds in samples)
        return (all_rows - rest) / (half - rest)

    samples = (frozen, whole, pruned)
    drawn = bootstrap(samples, times, confidence_level=0.9, method="percentile", rng=0).confidence_interval
    return {"times": float(times(*samples)), "times from": float(drawn.low), "times to": float(drawn.high)}


def step_of(case: Case, *passes: PrePruning) -> Step:
    """The private step of a workload."""
    private, batch = dpcompile(case.model("cpu"), loss=case.losses, max_grad_norm=MAX_GRAD_NORM, passes=passes), case.batch("cpu")
    return lambda: private(*batch).grads


def frozen(case: Case, patterns: tuple[str, ...]) -> Case:
    """The workload with these parameters frozen."""

    def make() -> Any:
        model = case.make()
        for name, parameter in model.named_parameters():
            if any(matches(name, pattern) for pattern in patterns):
                parameter.requires_grad_(False)
        return model

    return replace(case, make=make)
