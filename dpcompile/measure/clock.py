"""Seconds of a call: the operands change places between calls, so that they come from memory as in a step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

COLD: int = 2**26
"""Bytes of operands between two uses of the same ones: more than the second-level caches of a few cores."""


def wait(device: torch.device) -> None:
    """Until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def once(call: Callable[..., Any], operands: Sequence[Any], device: torch.device) -> float:
    """Seconds of one call; giving its result back is not timed."""
    wait(device)
    started = time.perf_counter()
    result = call(*operands)
    wait(device)
    spent = time.perf_counter() - started
    del result
    return spent


def repeated(call: Callable[..., Any], sets: Sequence[Sequence[Any]], device: torch.device, calls: int) -> list[float]:
    """Seconds of so many calls behind an untimed one, over the sets of operands in turn, each behind other operations."""
    once(call, sets[0], device)
    other, samples = OtherOperations(device), list[float]()
    for number in range(1, calls + 1):
        other.run()
        samples.append(once(call, sets[number % len(sets)], device))
    return samples


class OtherOperations:
    """What runs between two measured calls.

    In a step a kernel finds the processor's caches full of other code; called again and again a small one takes half as long.
    """

    def __init__(self, device: torch.device) -> None:
        self.blocks = torch.full((8, 64, 64), 0.5, device=device)
        self.rows = torch.full((8, 64), 0.5, device=device)

    def run(self) -> None:
        """A few small operations of different kinds."""
        total = torch.bmm(self.blocks, self.blocks).relu_().sum(1).mul(self.rows)
        torch.softmax(total, 1)[:, :32].transpose(0, 1).contiguous()


def spread(samples: Sequence[float]) -> float:
    """Half the distance of the quartiles, as a share of the median."""
    low, middle, high = statistics.quantiles(samples, n=4)
    return (high - low) / 2 / middle


def copies(bytes_of_one: int, most: int = 4) -> int:
    """How many sets of operands make each of them cold."""
    return max(1, min(most, COLD // max(bytes_of_one, 1)))


class Pace:
    """How fast the machine is at the moment: a product of known size is timed before every measurement.

    Shared machines change their pace for minutes at a time, which no number of repetitions averages away. A single reading
    scatters as much as what it is to correct, so measurements are divided by the median of the last `WINDOW`, a second or two;
    `usual` is the median of all readings so far.
    """

    SIZE: int = 512
    WINDOW: int = 51

    def __init__(self, flops: float, device: torch.device) -> None:
        self.expected = 2 * self.SIZE**3 / flops
        self.readings: list[float] = []
        self.device = device
        self.matrix = torch.full((self.SIZE, self.SIZE), 0.5, device=device)

    def read(self) -> None:
        """Time the product once more, relative to its seconds at the rate of the hardware row."""
        self.readings.append(once(torch.mm, (self.matrix, self.matrix), self.device) / self.expected)

    @property
    def now(self) -> float:
        """The median of the last readings."""
        return statistics.median(self.readings[-self.WINDOW :])

    @property
    def usual(self) -> float:
        """The median of all readings."""
        return statistics.median(self.readings)

    def corrected(self, measure: Callable[[], list[float]]) -> list[float]:
        """Samples as they would be at the rate of the hardware row."""
        self.read()
        return [sample / self.now for sample in measure()]
