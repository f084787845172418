"""Which examples are in which step, as the accountant assumes it.

Poisson sampling: the size is drawn from Binomial(n, rate), then that many examples without replacement, which is the same as
drawing every example independently. The draw of step t is a function of a key and of t alone (numpy's Philox, a counter-based
generator), so that batches that workers fetch ahead change nothing, and a seeded run resumes in the middle of an epoch.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from dpcompile.training.release import Pass, Poisson, Sampling, TruncatedPoisson
from dpcompile.training.session import Physical

Drawn = np.ndarray


class Draws:
    """The examples of every step. seed: for tests and repeatable runs; by default the key is the operating system's entropy."""

    def __init__(self, count: int, sampling: Sampling, expected: int, seed: int | None = None) -> None:
        self.count, self.sampling, self.expected = count, sampling, expected
        self.earlier: dict[str, int] = {}
        """Runs that this one goes on from, and how many of their steps are in its ledger."""
        self.renew()
        if seed is not None:
            self.key = seed

    def renew(self) -> None:
        """A key of its own, and a name that no other run has, under which its passes are counted."""
        self.key, self.run = int.from_bytes(os.urandom(16)), os.urandom(8).hex()

    def __len__(self) -> int:
        """Steps of an epoch: how many it takes to see as many examples as there are, on average."""
        if isinstance(self.sampling, Pass):
            return math.ceil(self.count / self.expected)
        return max(1, round(1 / self.sampling.rate))

    def generator(self, stream: int, number: int) -> np.random.Generator:
        """A generator of its own for each step, or pass."""
        seeds = np.random.SeedSequence(self.key, spawn_key=(stream, number))
        return np.random.Generator(np.random.Philox(seeds))

    def examples(self, number: int) -> Drawn:
        """i64[L]: the examples of step `number`, in random order."""
        if isinstance(self.sampling, Pass):
            turn, place = divmod(number, len(self))
            order = self.generator(1, turn).permutation(self.count)
            return order[place * self.expected : (place + 1) * self.expected]
        generator = self.generator(0, number)
        size = int(generator.binomial(self.count, self.sampling.rate))
        drawn = generator.choice(self.count, size, replace=False, shuffle=True)
        return drawn[: self.sampling.limit] if isinstance(self.sampling, TruncatedPoisson) else drawn

    def sampling_of(self, number: int) -> Sampling:
        """What a step is accounted as."""
        return Pass(number // len(self), self.run) if isinstance(self.sampling, Pass) else self.sampling


def parts(drawn: Drawn, number: int, limit: int | None, is_padded: bool) -> Iterator[tuple[list[int], Physical]]:
    """A draw in physical batches of at most `limit` rows; of exactly that many, if padded.

    The rows are those that the dataset is asked for; the loader fills a batch up behind the collate function. An empty draw is
    one batch with a row that only fills it, so that noise is released for it too.
    """
    size = limit or max(1, len(drawn))
    starts = range(0, max(1, len(drawn)), size)
    for start in starts:
        rows = drawn[start : start + size].tolist()
        filling = size - len(rows) if is_padded else max(0, 1 - len(rows))
        yield rows or [0], Physical(number, len(rows), filling, start == 0, start == starts[-1])


class PhysicalBatches(Sampler[list[int]]):
    """The batch sampler of one loader: rows of each physical batch; what they are waits in `queue` in the same order."""

    def __init__(self, draws: Draws, limit: int | None, is_padded: bool) -> None:
        self.draws, self.limit, self.is_padded = draws, limit, is_padded
        self.start, self.stop = 0, 0
        self.queue: deque[Physical] = deque()

    def __iter__(self) -> Iterator[list[int]]:
        queue = self.queue  # of the iteration that has just begun; a later one has another
        for number in range(self.start, self.stop):
            for rows, physical in parts(self.draws.examples(number), number, self.limit, self.is_padded):
                queue.append(physical)
                yield rows

    def __len__(self) -> int:
        """Logical steps of an epoch; physical batches are as many or more."""
        return len(self.draws)


__all__ = ["Draws", "Physical", "PhysicalBatches", "Poisson", "parts"]
