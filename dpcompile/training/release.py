"""What one logical step publishes: how examples are drawn, how much noise is added, and what the accountant counts for it.

All three are read from one record, so that what is drawn and what is accounted cannot drift apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dp_accounting import (
    DpEvent,
    GaussianDpEvent,
    NonPrivateDpEvent,
    PoissonSampledDpEvent,
    TruncatedSubsampledGaussianDpEvent,
)

from dpcompile.ir.errors import InvalidInput


@dataclass(frozen=True)
class Poisson:
    """Every example is in a step with this probability, independently of all others and of all other steps."""

    rate: float

    def event(self, noise_multiplier: float) -> DpEvent:
        """What one step costs."""
        return PoissonSampledDpEvent(self.rate, GaussianDpEvent(noise_multiplier))

    def told(self, count: int) -> str:
        """So many steps, in words."""
        return f"{count} {'step' if count == 1 else 'steps'} of {self}"

    def __str__(self) -> str:
        return f"Poisson sampling with probability {self.rate:.6g}"


@dataclass(frozen=True)
class TruncatedPoisson:
    """Poisson sampling; of more than `limit` drawn examples a random subset of that many is taken (arXiv 2508.15089)."""

    rate: float
    dataset_size: int
    limit: int

    def event(self, noise_multiplier: float) -> DpEvent:
        """What one step costs."""
        return TruncatedSubsampledGaussianDpEvent(self.dataset_size, self.rate, self.limit, noise_multiplier)

    def told(self, count: int) -> str:
        """So many steps, in words."""
        return f"{count} {'step' if count == 1 else 'steps'} of {self}"

    def __str__(self) -> str:
        return f"Poisson sampling with probability {self.rate:.6g}, truncated at {self.limit} examples"


@dataclass(frozen=True)
class Pass:
    """A step of the `number`-th pass of a run over the data in which every example is in exactly one step: no amplification.

    A whole pass costs one Gaussian mechanism, whatever the order, when a removed example leaves its place empty
    (zero-out adjacency); all steps of a pass are counted once, with the least noise among them.
    """

    number: int
    run: str = ""

    def event(self, noise_multiplier: float) -> DpEvent:
        """What the pass costs."""
        return GaussianDpEvent(noise_multiplier)

    def told(self, count: int) -> str:
        """So many passes, in words."""
        return f"{count} {'pass' if count == 1 else 'passes'} over all examples without sampling"

    def __str__(self) -> str:
        return "passes over all examples without sampling"


Sampling = Poisson | TruncatedPoisson | Pass
KINDS = {kind.__name__: kind for kind in (Poisson, TruncatedPoisson, Pass)}


@dataclass(frozen=True)
class Release:
    """One noisy sum. noise_multiplier: standard deviation of the noise in units of the sum's sensitivity, as accounted."""

    sampling: Sampling
    noise_multiplier: float

    @property
    def event(self) -> DpEvent:
        """What the accountant counts; a step without noise has no guarantee."""
        return self.sampling.event(self.noise_multiplier) if self.noise_multiplier > 0 else NonPrivateDpEvent()

    def deviation(self, sensitivity: float) -> float:
        """Standard deviation of the noise on every entry of the sum."""
        return self.noise_multiplier * sensitivity

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        kind = type(self.sampling).__name__
        return {"sampling": kind, **vars(self.sampling), "noise_multiplier": self.noise_multiplier}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Release:
        """The record that `to_json` wrote."""
        fields = dict(data)
        noise_multiplier = fields.pop("noise_multiplier")
        return Release(KINDS[fields.pop("sampling")](**fields), noise_multiplier)


def checked_rate(rate: Any) -> float:
    """A sampling rate in (0, 1]."""
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 1:
        raise InvalidInput(
            f"the sampling rate must be above 0 and at most 1, got {rate!r}; it is expected_batch_size / number of examples, "
            "so the expected batch must not be larger than the dataset"
        )
    return float(rate)


def checked_noise(noise_multiplier: Any) -> float:
    """A noise multiplier that is a number of at least 0 (0 trains without privacy, and is accounted as that)."""
    is_number = isinstance(noise_multiplier, (int, float)) and not isinstance(noise_multiplier, bool)
    if not is_number or not math.isfinite(noise_multiplier) or noise_multiplier < 0:
        raise InvalidInput(f"noise_multiplier must be a finite number of at least 0, got {noise_multiplier!r}")
    return float(noise_multiplier)


def whole(number: Any, name: str) -> int:
    """A whole number of at least 1."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise InvalidInput(f"{name} must be a whole number of at least 1, got {number!r}")
    return number
