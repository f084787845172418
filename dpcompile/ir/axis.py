"""The example-axis lattice: how one value of the joint graph relates to the examples of the batch.

A program qualifies for per-example clipping exactly when it runs with every example on a device of
its own and communicates only in the final sums of the parameter gradients. The states below are the
placements of that one-dimensional mesh (DTensor's Replicate, Shard and Partial), with two states
for constants that merely have the size of the batch.

    Shared                       the same whatever the batch holds and however large it is
    Batched(dim, outer, inner)   size of dim = outer * B * inner: row-major [outer, B, inner] folded
    Uniform(dim, outer, inner)   as Batched, with equal values for every example (zeros, expand)
    Constant(value)              every element is this number; the size may depend on B
    Position(dim)                arange over the batch: legal only as an index into the batch itself
    BatchSize                    a number computed from B: legal only as a size, never as a value
    Summed                       a linear sum over examples: a parameter gradient
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shared:
    """The same for every batch."""

    def __str__(self) -> str:
        return "Shared"


@dataclass(frozen=True, slots=True)
class Batched:
    """Examples lie along `dim`, whose size is outer * B * inner (row-major)."""

    dim: int
    outer: int = 1
    inner: int = 1

    def __str__(self) -> str:
        folded = "" if (self.outer, self.inner) == (1, 1) else f", outer={self.outer}, inner={self.inner}"
        return f"Batched({self.dim}{folded})"


@dataclass(frozen=True, slots=True)
class Uniform:
    """Laid out like Batched, with equal values for every example."""

    dim: int
    outer: int = 1
    inner: int = 1

    def __str__(self) -> str:
        return f"Uniform({self.dim}, outer={self.outer}, inner={self.inner})"


@dataclass(frozen=True, slots=True)
class Constant:
    """Every element equals `value`; the shape may contain the batch size in any dimension."""

    value: float

    def __str__(self) -> str:
        return f"Constant({self.value:g})"


@dataclass(frozen=True, slots=True)
class Position:
    """The index of the example along `dim`."""

    dim: int

    def __str__(self) -> str:
        return f"Position({self.dim})"


@dataclass(frozen=True, slots=True)
class BatchSize:
    """An integer computed from the batch size."""

    def __str__(self) -> str:
        return "BatchSize"


@dataclass(frozen=True, slots=True)
class Summed:
    """A sum over examples of per-example values, linear in each of them."""

    def __str__(self) -> str:
        return "Summed"


State = Shared | Batched | Uniform | Constant | Position | BatchSize | Summed
SHARED, SUMMED, BATCH_SIZE = Shared(), Summed(), BatchSize()


class Mixes(Exception):
    """Raised by a rule: with these operands the operation combines different examples."""

    def __init__(self, why: str, way_out: str = "") -> None:
        super().__init__(why)
        self.why, self.way_out = why, way_out
