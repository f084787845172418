"""How much privacy the steps so far have spent; the arithmetic is dp-accounting's.

The ledger counts releases; epsilon is computed from it when it is asked for. "pld" composes privacy loss distributions (tight, up
to a stated discretisation that only rounds up), "rdp" Renyi divergences (Mironov 2017; an upper bound, faster).
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any, Protocol

from dp_accounting import ComposedDpEvent, DpEvent, NeighboringRelation, PrivacyAccountant, SelfComposedDpEvent, pld, rdp

from dpcompile.ir.errors import InvalidInput
from dpcompile.training.release import Pass, Poisson, Release, Sampling, TruncatedPoisson

ORDERS = [1 + x / 10 for x in range(1, 100)] + list(range(11, 64)) + [128, 256, 512, 1024]
"""Renyi orders; those that Opacus uses, and a few large ones for much noise."""
KINDS = ("pld", "rdp")
ADD_OR_REMOVE = NeighboringRelation.ADD_OR_REMOVE_ONE


class OtherAccountant(Protocol):
    """What an accountant of another library must offer (Opacus' IAccountant does)."""

    def step(self, *, noise_multiplier: float, sample_rate: float) -> None: ...
    def get_epsilon(self, delta: float) -> float: ...


class Ledger:
    """The releases so far, in order; equal neighbours are counted."""

    def __init__(self) -> None:
        self.entries: list[tuple[Release, int]] = []

    def add(self, release: Release) -> None:
        """Count one more step; the steps of one pass are one release, with the least noise among them."""
        last, count = self.entries[-1] if self.entries else (None, 0)
        if last is not None and isinstance(release.sampling, Pass) and last.sampling == release.sampling:
            self.entries[-1] = min(last, release, key=lambda r: r.noise_multiplier), 1
        elif last == release:
            self.entries[-1] = release, count + 1
        else:
            self.entries.append((release, 1))

    def event(self) -> DpEvent:
        """All releases composed."""
        return ComposedDpEvent([SelfComposedDpEvent(release.event, count) for release, count in self.entries])

    def to_json(self) -> list[Any]:
        """Plain data."""
        return [[release.to_json(), count] for release, count in self.entries]

    def load_json(self, data: list[Any]) -> None:
        """Take the place of what is there by what `to_json` wrote."""
        self.entries = [(Release.from_json(release), count) for release, count in data]

    def __len__(self) -> int:
        return sum(count for _, count in self.entries)


class Accountant:
    """The ledger of a training run and the epsilon that it amounts to. kind: "pld" or "rdp"."""

    def __init__(self, kind: str = "pld", other: OtherAccountant | None = None) -> None:
        if kind not in KINDS:
            raise InvalidInput(
                f'accountant={kind!r} does not exist; use "pld" or "rdp", or give an accountant with step() and get_epsilon(). '
                "(Central-limit accounting, gdp, is left out: it can under-estimate epsilon)"
            )
        self.kind, self.other = kind, other
        self.ledger = Ledger()
        self.released = 0
        """Steps that were counted here, and not taken over from a checkpoint."""

    def add(self, release: Release) -> None:
        """Count one step, before its result is used."""
        if self.other is not None:
            self.tell(release)
        self.ledger.add(release)
        self.released += 1

    def restore(self, data: list[Any]) -> None:
        """Take over a saved ledger, for the accountant of another library step by step."""
        if self.other is not None and len(self.ledger):
            raise InvalidInput(
                "another library's accountant has counted steps already; make a new one, and a new engine, to load"
            )
        self.ledger.load_json(data)
        for release, count in self.ledger.entries:
            for _ in range(count if self.other is not None else 0):
                self.tell(release)

    def tell(self, release: Release) -> None:
        """Count a step with the accountant of another library."""
        assert self.other is not None
        if not isinstance(release.sampling, Poisson):
            raise InvalidInput(f"{type(self.other).__name__} accounts Poisson sampling only; this run has {release.sampling}")
        self.other.step(noise_multiplier=release.noise_multiplier, sample_rate=release.sampling.rate)

    def countable(self, sampling: Sampling) -> Sampling:
        """The same; refuses what this accountant knows nothing of, before anything is released."""
        if self.other is not None and not isinstance(sampling, Poisson):
            raise InvalidInput(f"{type(self.other).__name__} accounts Poisson sampling only; this run has {sampling}")
        if self.other is None and self.kind == "rdp" and isinstance(sampling, TruncatedPoisson):
            raise InvalidInput('truncated sampling is accounted by accountant="pld" only')
        return sampling

    def get_epsilon(self, delta: float) -> float:
        """Epsilon of all steps so far at this delta; infinite where a step had no noise, 0 before the first."""
        check_delta(delta)
        if self.other is not None:
            return float(self.other.get_epsilon(delta))
        return epsilon_of(self.ledger.event(), delta, self.kind) if self.ledger.entries else 0.0

    def epsilon_with(self, data: list[Any], coming: Iterable[Release], delta: float) -> float:
        """Epsilon of a saved ledger and of steps to come behind it; changes nothing."""
        ledger = Ledger()
        ledger.load_json(data)
        for release in coming:
            ledger.add(release)
        return epsilon_of(ledger.event(), delta, self.kind)

    def statement(self, delta: float) -> str:
        """What may be said of the trained model, with everything that it rests on."""
        kinds: dict[str, tuple[Sampling, int]] = {}
        for release, count in self.ledger.entries:
            kinds[str(release.sampling)] = release.sampling, count + kinds.get(str(release.sampling), (None, 0))[1]
        noises = sorted({release.noise_multiplier for release, _ in self.ledger.entries})
        noise = f"{noises[0]:.6g}" if len(noises) == 1 else f"{noises[0]:.6g} to {noises[-1]:.6g}" if noises else "none"
        name = (
            type(self.other).__name__
            if self.other is not None
            else f"{self.kind.upper()}, dp-accounting {version('dp-accounting')}"
        )
        relation = "zeroing out" if any(isinstance(r.sampling, Pass) for r, _ in self.ledger.entries) else "adding or removing"
        releases = " and ".join(sampling.told(count) for sampling, count in kinds.values()) or "0 steps"
        return (
            f"({rounded_up(self.get_epsilon(delta)):g}, {delta:g})-differentially private under {relation} one example: "
            f"{releases}, noise multiplier {noise} ({name}). It covers "
            "the parameters after every step; choices made by looking at the data (settings, early stopping, learning rates that "
            "follow a loss) are not counted"
        )


def rounded_up(epsilon: float) -> float:
    """Epsilon with four digits behind the point, never less than it is."""
    return math.ceil(epsilon * 1e4) / 1e4 if math.isfinite(epsilon) else epsilon


def epsilon_of(event: DpEvent, delta: float, kind: str) -> float:
    """Epsilon of an event."""
    accountant = new_accountant(kind, event)
    with quiet():
        accountant.compose(event)
        return max(0.0, float(accountant.get_epsilon(delta)))


def new_accountant(kind: str, event: DpEvent | None = None) -> PrivacyAccountant:
    """A fresh accountant of dp-accounting for the relation that our sensitivity holds for."""
    if kind == "pld":
        return pld.PLDAccountant(ADD_OR_REMOVE)
    return rdp.RdpAccountant(ORDERS, ADD_OR_REMOVE)


def check_delta(delta: Any) -> None:
    """A delta strictly between 0 and 1."""
    if isinstance(delta, bool) or not isinstance(delta, (int, float)) or not 0 < delta < 1:
        raise InvalidInput(f"delta must be between 0 and 1, got {delta!r}; it is usually below 1 / number of examples")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the accountant's warnings of Renyi orders that it leaves out, which only makes its bound larger."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
