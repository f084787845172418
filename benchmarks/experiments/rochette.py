"""Rochette, Manoel, Tramel, "Efficient per-example gradient computations in convolutional neural networks" (arXiv:1912.06015):
thirty networks Net(L, n=25, f, k), a sweep of the batch size, AlexNet and VGG-16.

Full size: images of 3 x 256 x 256 as in the paper. Small size: 3 x 48 x 48, a sweep 64 channels wide, AlexNet and VGG-16 on
3 x 64 x 64 with 512 hidden units instead of 4096; everything else alike. The paper's seconds are of one P100 with torch 1.1 and
hold the generation of data and the optimizer, which are outside of the clock here but for the points "as published".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from torch import nn

from benchmarks.cases import OURS, Case, floats, per_class
from benchmarks.experiments.experiment import PEERS, Claim, Experiment, Medians
from benchmarks.experiments.rochette_networks import alexnet, net, vgg16
from benchmarks.experiments.rochette_plot import draw
from benchmarks.region_map import RATES

WIDTH, BATCH = 25, 8
BATCHES = {"small": (3, 5, 7, 9, 12, 15, 32), "full": (3, 5, 7, 9, 12, 15, 32, 64, 128, 256)}
SIDES = {"small": 48, "full": 256}
SWEPT_WIDTH = {"small": 64, "full": 256}
PAPERS = ("naive", "multi", "crb", "crb-nd", "crb-unfold", "ghost")
METHODS = ("ordinary eager", "careful loop", *(name + OURS for name in PAPERS), *PEERS, "autotune" + OURS, "dpcompile eager")
PUBLISHED = ", as published"
"""Points with the paper's own protocol: drawing the batch, noise and SGD's update are inside the clock."""


def points(size: str) -> dict[str, Case]:
    """{name: workload}: "k3 L2 f4" for the grid, "k5 B12" for the sweeps, "AlexNet", "VGG-16", both also ", as published"."""
    side = SIDES[size]
    found = {
        f"k{kernel} L{layers} f{rate:g}": workload(partial(net, layers, WIDTH, rate, kernel, side), side, BATCH)
        for kernel in (3, 5)
        for layers, rates in RATES.items()
        for rate in rates
    }
    for kernel in (3, 5):
        for batch in BATCHES[size]:
            found[f"k{kernel} B{batch}"] = workload(partial(net, 3, SWEPT_WIDTH[size], 1, kernel, side), side, batch)
    large, hidden = (64, 512) if size == "small" else (256, 4096)
    found["AlexNet"] = workload(partial(alexnet, large, hidden), large, 16)
    found["VGG-16"] = workload(partial(vgg16, large, hidden), large, 8)
    return found | {name + PUBLISHED: replace(found[name], as_published=True) for name in ("AlexNet", "VGG-16")}


def workload(make: Callable[[], nn.Module], side: int, batch: int) -> Case:
    """Cross entropy on normal images."""
    return Case(f"B={batch}", make, floats(3, side, side), per_class, batch, 1.0)


def grows_linearly(found: Mapping[str, Medians], method: str) -> tuple[bool, str]:
    """Whether seconds at the sweep's points are a rising line in the batch size (R^2 > 0.99).

    Raises KeyError below four points, which show no line.
    """
    notes, is_linear = [], True
    for kernel in (3, 5):
        pairs = [(int(name.split("B")[1]), row[method]) for name, row in found.items() if name.startswith(f"k{kernel} B")
                 and method in row]  # fmt: skip
        if len(pairs) < 4:
            raise KeyError(f"k{kernel} B")
        share = straightness(pairs)
        notes.append(f"k={kernel}: R^2 {share:.4f}")
        is_linear &= share > 0.99
    return is_linear, ", ".join(notes)


def straightness(pairs: list[tuple[int, float]]) -> float:
    """R^2 of a straight line with its sign: negative for a falling one, 0 for times that do not depend on the batch size."""
    count = len(pairs)
    mean_x, mean_y = sum(x for x, _ in pairs) / count, sum(y for _, y in pairs) / count
    across = sum((x - mean_x) * (y - mean_y) for x, y in pairs)
    squares = sum((x - mean_x) ** 2 for x, _ in pairs), sum((y - mean_y) ** 2 for _, y in pairs)
    return math.copysign(across**2, across) / (squares[0] * squares[1]) if all(squares) else 0.0


def falls_with_rate(found: Mapping[str, Medians]) -> tuple[bool, str]:
    """Whether crb / multi is smaller at the largest channel rate than at the smallest, for L = 2 and 3."""
    notes, falls = [], True
    for kernel in (3, 5):
        for layers in (2, 3):
            ratios = [ratio(found[f"k{kernel} L{layers} f{rate:g}"]) for rate in (RATES[layers][0], RATES[layers][-1])]
            notes.append(f"k={kernel} L={layers}: {ratios[0]:.2f} to {ratios[1]:.2f}")
            falls &= ratios[1] < ratios[0]
    return falls, ", ".join(notes)


def ratio(row: Medians) -> float:
    """crb / multi at one point."""
    return row["crb"] / row["multi"]


def near_tie(found: Mapping[str, Medians]) -> tuple[bool, str]:
    """Whether crb and multi are within a factor of two of each other for L = 4."""
    ratios = {kernel: [ratio(found[f"k{kernel} L4 f{rate:g}"]) for rate in RATES[4]] for kernel in (3, 5)}
    text = "; ".join(f"k={kernel}: {', '.join(f'{r:.2f}' for r in row)}" for kernel, row in ratios.items())
    return all(0.5 < r < 2 for row in ratios.values() for r in row), f"crb / multi {text}"


def order_of(name: str, *methods: str) -> Callable[[Mapping[str, Medians]], tuple[bool, str]]:
    """Whether the methods stand in this order at one point."""

    def holds(found: Mapping[str, Medians]) -> tuple[bool, str]:
        times = [found[name][method] for method in methods]
        text = ", ".join(f"{method} {time:.0f} ms" for method, time in zip(methods, times, strict=True))
        return times == sorted(times), text

    return holds


CLAIMS = (
    Claim("naive is linear in the batch size", lambda found: grows_linearly(found, "naive")),
    Claim("multi is linear in the batch size", lambda found: grows_linearly(found, "multi")),
    Claim("crb / multi falls with the channel rate for L=2 and L=3", falls_with_rate),
    Claim("crb and multi are near a tie for L=4 (within a factor of two)", near_tie),
    Claim("AlexNet: crb < multi < naive", order_of("AlexNet", "crb", "multi", "naive")),
    Claim("VGG-16: multi < crb < naive", order_of("VGG-16", "multi", "crb", "naive")),
)

EXPERIMENT = Experiment("rochette", "Rochette, Manoel, Tramel (arXiv:1912.06015)", points, METHODS, CLAIMS, draw)
