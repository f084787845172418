"""Whether the machine was quiet while a point was measured: the ordinary step is timed under two names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks.cases import AGAIN

QUIET: Final = 1.1
"""How far the same step may differ from itself."""


def unrest(methods: Mapping[str, Mapping[str, Any]]) -> float:
    """How far steps that are timed under two names differ, as a ratio of at least 1."""
    twice = [name for name in methods if "median_ms" in methods[name] and "median_ms" in methods.get(name + AGAIN, {})]
    ratios = [methods[name]["median_ms"] / methods[name + AGAIN]["median_ms"] for name in twice]
    return max((max(ratio, 1 / ratio) for ratio in ratios), default=1.0)


def timed(methods: Mapping[str, Mapping[str, Any]]) -> int:
    """How many methods have a time."""
    return sum("median_ms" in row for row in methods.values())


def quietest_of(attempts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of attempts that time as many methods, the quietest; whatever times more comes first."""
    return min(attempts, key=lambda attempt: (-timed(attempt["methods"]), unrest(attempt["methods"])))


def disturbed(points: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line that names the points at which no attempt was quiet."""
    found = {name: unrest(point["methods"]) for name, point in points.items()}
    names = ", ".join(f"{name} ({ratio:.2f})" for name, ratio in found.items() if ratio > QUIET)
    return [f"- The ordinary step differed from itself by more than {QUIET} times at: {names}"] if names else []
