"""What a user asks for: pruning before training, dropping of gradients in every step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dpcompile.criteria.scores import Criterion, criterion_named
from dpcompile.criteria.units import Granularity
from dpcompile.ir.errors import InvalidInput

SCOPES = ("layer", "global")


@dataclass(frozen=True)
class Ramp:
    """A rate that goes from `start` to `end` over `steps` steps, as end + (start - end) (1 - step / steps)^power (Zhu and Gupta,
    "To prune, or not to prune", 2018, eq. 1, with power 3)."""

    start: float
    end: float
    steps: int
    power: float = 3.0

    def __call__(self, step: int) -> float:
        """The rate at a step."""
        left = max(0.0, 1.0 - step / max(self.steps, 1))
        return self.end + (self.start - self.end) * left**self.power


@dataclass(frozen=True, eq=False)
class Choice:
    """What both passes share.

    rate: the share of units, in [0, 1), that is taken away. criterion: what keeps a unit, see dpcompile.criteria.scores.
    granularity: "weights", "rows", "channels", "columns", "layers", Blocks(dim, size), or a mapping from names or globs to these.
    scope: the rate holds in every "layer", or over all chosen parameters ("global"). parameters: names or globs; by default all
    weights with two or more dimensions, and with rows their biases. public_batch: arguments of the compiled module for the
    criteria that read public data; it must not be training data. example: inputs of the model, of which "synflow" reads the
    shape. seed: of random choices; the operating system's entropy by default.
    """

    rate: float | Ramp
    criterion: str = "magnitude"
    granularity: Granularity | Mapping[str, Granularity] = "weights"
    scope: str = "layer"
    parameters: Sequence[str] = ()
    public_batch: tuple[Any, ...] | None = field(default=None, repr=False)
    example: tuple[Any, ...] | None = field(default=None, repr=False)
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if self.scope not in SCOPES:
            raise InvalidInput(f"scope={self.scope!r} does not exist; use one of {', '.join(SCOPES)}")
        for rate in (self.rate.start, self.rate.end) if isinstance(self.rate, Ramp) else (self.rate,):
            if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
                raise InvalidInput(f"rate={rate!r} is no share of what is taken away; use a number in [0, 1)")
        if isinstance(self.parameters, str):
            raise InvalidInput(f"parameters={self.parameters!r} must be a tuple of names or globs")
        for name in ("public_batch", "example"):
            given = getattr(self, name)
            if (given is None and name == self.rule().needs) or not (given is None or isinstance(given, (tuple, list))):
                raise InvalidInput(f"criterion={self.criterion!r} needs {name}=, a tuple of tensors")

    def rule(self) -> Criterion:
        """The criterion's row."""
        return criterion_named(self.criterion)

    def rate_at(self, step: int) -> float:
        """The rate at a step."""
        return self.rate(step) if isinstance(self.rate, Ramp) else float(self.rate)

    def lowest_rate(self) -> float:
        """The smallest rate that there will be, which the compiled step must have room for."""
        return min(self.rate.start, self.rate.end) if isinstance(self.rate, Ramp) else float(self.rate)


def kept_of(rate: float, count: int) -> int:
    """How many of `count` units are left, to the nearest; one that is not left over is taken away."""
    return math.floor((1.0 - rate) * count + 0.5)


@dataclass(frozen=True, eq=False)
class PrePruning(Choice):
    """Prune the network before training: what is pruned is set to zero and never trained again.

    masks: {parameter: bool[*shape]} of your own, True where trained, in place of rate and criterion. iterations: of "synflow".
    """

    rate: float | Ramp = 0.5
    masks: Mapping[str, Tensor] | None = field(default=None, repr=False)
    iterations: int = 100

    def __post_init__(self) -> None:
        """A rate that changes is no pruning before training."""
        super().__post_init__()
        if isinstance(self.rate, Ramp):
            raise InvalidInput("PrePruning happens once, before training: give rate= as a number; Ramp is for GradientDropping")
        if self.criterion == "released gradient":
            raise InvalidInput('criterion="released gradient" has nothing to read before training; use another')
        if self.iterations < 1:
            raise InvalidInput(f"iterations={self.iterations} must be at least 1")


@dataclass(frozen=True, eq=False)
class GradientDropping(Choice):
    """Drop gradients: in each step only the chosen part of what is left is updated, with noise on that part alone.

    every: after how many steps another part is chosen.
    """

    rate: float | Ramp = 0.5
    criterion: str = "random"
    every: int = 1

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        super().__post_init__()
        if self.every < 1:
            raise InvalidInput(f"every={self.every} must be at least 1")
        if self.criterion == "synflow":
            raise InvalidInput('criterion="synflow" scores a network before training; use it in PrePruning')
