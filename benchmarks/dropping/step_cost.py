"""What structured pruning saves of a step: half of the rows of an MLP, and of the feed-forward blocks of a GPT.

The part that privacy costs is the private step less the ordinary one. Interleaved in one run; medians.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from benchmarks.cases import CASES, MAX_GRAD_NORM
from benchmarks.measure import interleaved, peak_bytes
from benchmarks.methods import ordinary_eager
from dpcompile import PrePruning, dpcompile

CUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp": ("half of the rows of every layer", {}),
    "gpt-untied": ("half of the rows of the feed-forward blocks", {"parameters": ["*mlp.*.weight"]}),
}


def measured(name: str, rounds: int, threads: int) -> dict[str, float]:
    """{"ordinary", "whole", "pruned"}: medians in ms; "times": how many times cheaper the private part has become."""
    case = CASES[name]
    x, y = case.batch("cpu")
    half = PrePruning(0.5, granularity="rows", **CUTS[name][1])
    whole = dpcompile(case.model("cpu"), loss=case.losses, max_grad_norm=MAX_GRAD_NORM)
    pruned = dpcompile(case.model("cpu"), loss=case.losses, max_grad_norm=MAX_GRAD_NORM, passes=[half])
    steps = {
        "ordinary": (ordinary_eager(case, case.model("cpu"), x, y), threads),
        "whole": (lambda: whole(x, y).grads, threads),
        "pruned": (lambda: pruned(x, y).grads, threads),
    }
    for step, _ in steps.values():
        step()
    found = {key: 1e3 * statistics.median(values) for key, values in interleaved(steps, rounds, "cpu").items()}
    peaks = {f"{key} bytes": float(peak_bytes(lambda step=step: step, "cpu")) for key, (step, _) in steps.items()}  # type: ignore[misc]
    ratio = (found["whole"] - found["ordinary"]) / max(found["pruned"] - found["ordinary"], 1e-9)
    return {**found, **peaks, "times": ratio}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for workload in CUTS:
        print(workload, CUTS[workload][0], measured(workload, 15, 1))
