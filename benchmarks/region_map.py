"""`make bench-regions`: which of Rochette et al.'s methods wins where, from prices alone (no GPU is needed).

Rochette, Manoel, Tramel 2020 (arXiv:1912.06015) time two ways to per-example gradients on one P100: `crb`, one backward
pass with every convolution's weight gradient as a convolution whose groups are the examples, and `multi`, one copy of the
model for every example. Their thirty networks Net(L, n=25, f, k) take images of 3 x 256 x 256, eight at a time. What
both do alike (noise, optimizer, data) is left out: it cannot change the winner.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import typer
from rich.console import Console
from rich.table import Table

from dpcompile.cost.hardware import HARDWARE, Hardware
from dpcompile.cost.roofline import work_seconds
from dpcompile.ir.cost import Work
from dpcompile.predict.nodes import product
from dpcompile.strategies import materialize

BATCH, SIDE, WIDTH, CLASSES = 8, 256, 25, 10
RATES = {2: (1, 2, 4, 8, 16), 3: (1, 2, 3, 4, 5), 4: (1, 1.75, 2.5, 3.25, 4)}
# Seconds for twenty batches, read from the vector graphics of the paper's figures: (crb, multi) by layers and kernel.
PUBLISHED = {
    (2, 3): ((1.45, 1.78, 2.47, 3.96, 6.85), (1.20, 1.87, 3.23, 6.21, 11.89)),
    (3, 3): ((1.60, 2.59, 4.21, 6.69, 9.48), (1.27, 3.28, 7.02, 12.00, 18.02)),
    (4, 3): ((1.57, 2.36, 4.58, 9.65, 20.29), (0.90, 1.96, 4.41, 9.96, 19.13)),
    (2, 5): ((1.54, 2.12, 3.00, 5.28, 9.66), (1.58, 2.31, 3.71, 7.10, 13.39)),
    (3, 5): ((1.70, 3.10, 5.34, 8.04, 12.70), (1.74, 3.93, 8.11, 13.95, 25.22)),
    (4, 5): ((1.72, 3.55, 7.67, 18.11, 59.66), (1.48, 3.97, 11.74, 28.08, 51.96)),
}


@dataclass(frozen=True)
class Point:
    """One network: what was published, and the predicted seconds of one batch."""

    layers: int
    kernel: int
    rate: float
    published: tuple[float, float]
    predicted: tuple[float, float]

    @property
    def agrees(self) -> bool:
        """Whether the prediction names the published winner."""
        return (self.published[0] < self.published[1]) == (self.predicted[0] < self.predicted[1])


@dataclass(frozen=True)
class Layer:
    """One convolution: channels, image sides before and after, and whether pooling follows."""

    fan_in: int
    fan_out: int
    side: int
    after: int
    pooled: bool


def layers(count: int, kernel: int, rate: float) -> list[Layer]:
    """The convolutions of Net(count, 25, rate, kernel); padding is 2 whatever the kernel, as in the published code."""
    found, side = [], SIDE
    for index in range(count):
        fan_in = 3 if index == 0 else int(WIDTH * rate ** (index - 1))
        after, pooled = side + 4 - kernel + 1, index % 2 == 1
        found.append(Layer(fan_in, int(WIDTH * rate**index), side, after, pooled))
        side = after // 2 if pooled else after
    return found


def crb(net: list[Layer], kernel: int) -> Iterator[Work]:
    """Forward, backward without weight gradients, and materialised weight gradients, eight examples at a time."""
    yield from ordinary(net, kernel, BATCH)
    for layer in net:
        T, T_in, K = layer.after**2, layer.side**2, kernel**2
        sizes = {"B": BATCH, "G": 1, "T": T, "T_in": T_in, "d": layer.fan_in * K, "p": layer.fan_out, "K": K,
                 "P": layer.fan_in * K * layer.fan_out, "s": 4}  # fmt: skip
        yield materialize.GROUPED.at({name: float(size) for name, size in sizes.items()})
    yield product(BATCH, CLASSES, features(net), 1)


def multi(net: list[Layer], kernel: int) -> Iterator[Work]:
    """Everything eight times with one example, and the copies' gradients put together."""
    for _ in range(BATCH):
        yield from ordinary(net, kernel, 1)
        for layer in net:
            rows, inner = layer.after**2, layer.fan_in * kernel**2
            yield product(1, layer.fan_out, inner, rows, "convolution weight gradient")
        yield product(1, CLASSES, features(net), 1)
    parameters = sum(layer.fan_in * layer.fan_out * kernel**2 for layer in net) + features(net) * CLASSES
    yield Work("elementwise", bytes_moved=8.0 * BATCH * parameters, launches=1.0)


def ordinary(net: list[Layer], kernel: int, batch: int) -> Iterator[Work]:
    """Forward and input gradients: convolutions, activations and pooling, the last layer."""
    for index, layer in enumerate(net):
        rows, inner, elements = batch * layer.after**2, layer.fan_in * kernel**2, batch * layer.fan_out * layer.after**2
        passes = 1 if index == 0 else 2
        yield from passes * [product(1, rows, layer.fan_out, inner, "convolution")]
        yield from 2 * [Work("elementwise", bytes_moved=12.0 * elements, launches=1.0)]
        if layer.pooled:
            yield from 2 * [Work("elementwise", bytes_moved=6.0 * elements, launches=1.0)]
    yield product(1, batch, CLASSES, features(net))
    yield product(1, batch, features(net), CLASSES)


def features(net: list[Layer]) -> int:
    """Inputs of the last layer."""
    last = net[-1]
    return last.fan_out * (last.after // 2 if last.pooled else last.after) ** 2


def points(row: Hardware) -> list[Point]:
    """All thirty networks."""
    found = []
    for (count, kernel), (first, second) in PUBLISHED.items():
        for rate, *published in zip(RATES[count], first, second, strict=True):
            net = layers(count, kernel, rate)
            predicted = [sum(work_seconds(work, row) for work in method(net, kernel)) for method in (crb, multi)]
            found.append(Point(count, kernel, rate, (published[0], published[1]), (predicted[0], predicted[1])))
    return found


def markdown(found: list[Point]) -> str:
    """The map for the README: crb / multi, published and predicted, one row per layers and kernel; disagreements are bold."""
    lines = ["| layers, kernel | crb / multi at each rate: published -> predicted |", "|---|---|"]
    for count, kernel in PUBLISHED:
        row = [p for p in found if (p.layers, p.kernel) == (count, kernel)]
        cells = [f"{p.rate:g}: {p.published[0] / p.published[1]:.2f} -> {p.predicted[0] / p.predicted[1]:.2f}" for p in row]
        marked = [cell if p.agrees else f"**{cell}**" for cell, p in zip(cells, row, strict=True)]
        lines.append(f"| {count}, {kernel} | {', '.join(marked)} |")
    return "\n".join([*lines, "", summary(found)])


def summary(found: list[Point]) -> str:
    """How many winners are named, and how many by naming one method everywhere."""
    first = sum(p.published[0] < p.published[1] for p in found)
    constant = max(first, len(found) - first)
    return (
        f"{sum(p.agrees for p in found)} of {len(found)} winners are named (ratios below 1: crb); naming one method everywhere "
        f"would be right on {constant}."
    )


def main(hardware: str = "p100") -> None:
    """Print the map."""
    console, found = Console(), points(HARDWARE[hardware])
    table = Table(title=f"crb / multi: published on a P100, predicted for {hardware}")
    for name in ("layers", "kernel", "rate", "published", "predicted", "winner", "named"):
        table.add_column(name, justify="right")
    for p in found:
        ratios = [f"{a / b:.2f}" for a, b in (p.published, p.predicted)]
        winner = "crb" if p.published[0] < p.published[1] else "multi"
        table.add_row(str(p.layers), str(p.kernel), f"{p.rate:g}", *ratios, winner, "yes" if p.agrees else "no")
    console.print(table)
    console.print(summary(found))


if __name__ == "__main__":
    typer.run(main)
