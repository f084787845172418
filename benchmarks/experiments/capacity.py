"""The largest physical batch of each method within a budget of memory, by measured peaks.

On a GPU the budget is most of its memory; on a CPU it is small, so that the search takes minutes: what counts is the ratio to
training without privacy, which hardly depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.cases import OURS, Case
from benchmarks.experiments.experiment import Extra
from benchmarks.measure import peak_bytes
from benchmarks.methods import ALL_METHODS
from benchmarks.worker import Options, at_most, say, text_of

METHODS = ("ordinary eager", "dpcompile eager", "bookkeep" + OURS, "ghost" + OURS, "Opacus hooks", "Opacus ghost")
CPU_BUDGET, GPU_SHARE = 2**29, 0.9
FIRST, MOST, RESOLUTION = 4, 2**15, 0.03
SMALL = ("ViT-Tiny", "BiT-R50x1")
"""Networks of the small size; every step that the search takes is a few seconds on two cores."""
NEAR = 0.5
"""Of the batch that training without privacy can take: what the better of our steps is to reach."""


def largest(peak: Callable[[int], float], budget: float) -> int:
    """The largest batch whose peak is within the budget, to RESOLUTION; 0 if not even one fits. peak(batch) must not fall.

    No batch is tried that a line through what is known puts far beyond the budget: it would take the machine's memory.
    """
    fits, too_large = {0: 0.0}, MOST + 1
    guess = FIRST
    while too_large - max(fits) > grain(max(fits)):
        guess = min(max(guess, max(fits) + 1), too_large - 1)
        found = peak(guess)
        if found <= budget:
            fits[guess] = found
        else:
            too_large = guess
        guess = aimed(fits, too_large, budget)
    return max(fits)


def grain(batch: int) -> int:
    """How much larger a batch must be to be another one."""
    return max(1, int(RESOLUTION * batch))


def aimed(fits: Mapping[int, float], too_large: int, budget: float) -> int:
    """Where a line through the two largest batches that fit meets the budget, and at least a little further; the middle where
    that is known to be too large."""
    *_, below, best = [0, *sorted(fits)]
    slope = (fits[best] - fits[below]) / (best - below) if best > below else 0.0
    guess = int(best + (budget - fits[best]) / slope) if slope > 0 else best
    guess = min(max(guess, best + grain(best)), 4 * best + FIRST)
    return guess if guess < too_large else (best + too_large) // 2


def peak_of(case: Case, method: str, options: Options, batch: int) -> float:
    """Peak bytes of one warm step, beyond model and batch; infinite where the memory does not suffice."""
    sized = replace(case, batch_size=batch)
    model, data = sized.model(options.device), sized.batch(options.device)
    try:
        with at_most(options.limit_seconds):
            return peak_bytes(partial(ALL_METHODS[method].make, sized, model, *data), options.device)
    except torch.cuda.OutOfMemoryError:
        return float("inf")


def measured(points: Callable[[str], dict[str, Case]], size: str, options: Options) -> dict[str, Any]:
    """{"budget": bytes, "largest": {network: {method: batch, or why not}}} of the points in float32."""
    memory = torch.cuda.get_device_properties(0).total_memory if options.device == "cuda" else 0
    budget = GPU_SHARE * memory if memory else CPU_BUDGET
    found: dict[str, dict[str, Any]] = {}
    for name, case in points(size).items():
        if name.endswith("float32") and (size == "full" or name.removesuffix(" float32") in SMALL):
            say(f"largest physical batch: {name}")
            found[name] = {method: tried(case, method, options, budget) for method in METHODS}
    return {"budget": budget, "largest": found}


def tried(case: Case, method: str, options: Options, budget: float) -> Any:
    """The largest batch, or why there is none."""
    try:
        return largest(partial(peak_of, case, method, options), budget)
    except Exception as failure:  # whatever a peer raises is its result
        return text_of(failure)


def ratio(row: Mapping[str, Any], method: str) -> float:
    """A method's largest batch in units of ordinary training's."""
    return float(row[method]) / max(row["ordinary eager"], 1)


def lines(found: Mapping[str, Any]) -> list[str]:
    """A table: networks by methods."""
    names = [method.removesuffix(OURS).replace("dpcompile eager", "auto") for method in METHODS]
    rows = [
        f"| {name} | " + " | ".join(str(row[m]) if isinstance(row[m], int) else "n/a" for m in METHODS) + " |"
        for name, row in found["largest"].items()
    ]
    head = f"Largest physical batch within {found['budget'] / 2**20:.0f} MiB beyond model and batch, by measured peaks:"
    return [head, "", "| network | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|", *rows]


def claims(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The paper's finding, and our aim; nothing is claimed of networks for which the batches are not known."""
    rows = {name: row for name, row in found["largest"].items() if isinstance(row["ordinary eager"], int)}
    known = {name: [ratio(row, m) for m in METHODS[1:3] if isinstance(row[m], int)] for name, row in rows.items()}
    ours = {name: max(ratios) for name, ratios in known.items() if ratios}
    hooks = {name: ratio(row, "Opacus hooks") for name, row in rows.items() if isinstance(row["Opacus hooks"], int)}
    verdicts = [
        (f"dpcompile's largest physical batch is at least {NEAR} of ordinary training's (our aim)",
         lambda ratio: ratio >= NEAR, ours),
        ("per-example gradients by hooks shrink the largest physical batch several times", lambda ratio: ratio < 0.5, hooks),
    ]  # fmt: skip
    return [
        {"claim": claim, "holds": all(map(holds, shares.values())),
         "numbers": ", ".join(f"{name} {value:.2f}" for name, value in shares.items())}
        for claim, holds, shares in verdicts if shares
    ]  # fmt: skip


def capacity(points: Callable[[str], dict[str, Case]]) -> Extra:
    """The measurement for an experiment's points."""
    return Extra("largest physical batch", partial(measured, points), lines, claims)
