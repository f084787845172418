"""What an experiment is: points (a workload each), the methods that are timed on them, and what its paper claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.cases import Case
from benchmarks.worker import Options

SIZES = ("small", "full")
"""small: fits two CPU cores in about half an hour. full: the paper's own sizes, for one GPU."""

PEERS = ("Opacus hooks", "Opacus functorch", "Opacus ghost", "BackPACK", "ExpandedWeights")
"""Published implementations, each checked before it is timed."""

Medians = Mapping[str, float]
"""Milliseconds of each method at one point."""


@dataclass(frozen=True)
class Claim:
    """An ordering that the paper states. holds(medians of all points) -> (whether it holds here, the numbers it rests on).

    Raises KeyError where a point or a method that it needs is not measured.
    """

    name: str
    holds: Callable[[Mapping[str, Medians]], tuple[bool, str]]


@dataclass(frozen=True)
class Extra:
    """A measurement beside the times. measure(size, options) -> JSON; lines(that) -> Markdown; claims(that) -> verdicts."""

    name: str
    measure: Callable[[str, Options], dict[str, Any]]
    lines: Callable[[Mapping[str, Any]], list[str]]
    claims: Callable[[Mapping[str, Any]], list[dict[str, Any]]]


@dataclass(frozen=True)
class Experiment:
    """One paper's measurements.

    points(size): {name: workload}. methods: names of `benchmarks.methods.METHODS`. draw(document, folder, stem): writes plots and
    returns their names.
    """

    name: str
    paper: str
    points: Callable[[str], dict[str, Case]]
    methods: tuple[str, ...]
    claims: tuple[Claim, ...]
    draw: Callable[[dict[str, Any], str], Any]
    extras: tuple[Extra, ...] = ()


def measured(rows: dict[str, float]) -> dict[str, float]:
    """The same; KeyError where there is none, so that nothing is claimed of nothing."""
    if not rows:
        raise KeyError("no point of the claim is measured")
    return rows
