"""The fastest private methods of a point, timed beside each other in more rounds.

A few rounds tell a method that takes half as long again. Of eight methods that take alike one has the luckiest median, and an
equal choice beside it looks several percent behind: steps of 12 ms differed by 8 % from themselves between quartiles. So whatever
came within `CLOSE` of the fastest runs on, without the others, and its median is that of all its rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from benchmarks.measure import TURN_SECONDS, Step, interleaved

CLOSE: Final = 1.15
"""How far behind the fastest a method may be to run on."""
MOST_ROUNDS: Final = 60


def prolonged(
    samples: Mapping[str, list[float]],
    steps: Mapping[str, tuple[Step, int]],
    private: Collection[str],
    seconds: float,
    device: str,
    failed: dict[str, Exception],
) -> dict[str, list[float]]:
    """The samples with those of about `seconds` more of the private methods that are close to the fastest one."""
    close = contenders({name: found for name, found in samples.items() if name in private})
    more = interleaved({name: steps[name] for name in close}, rounds_in(seconds, list(close.values())), device, failed)
    return {name: found + more.get(name, []) for name, found in samples.items() if name not in failed}


def contenders(samples: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """{name: median seconds} of those close to the fastest; none if there is nobody beside it."""
    medians = {name: statistics.median(found) for name, found in samples.items()}
    close = {name: median for name, median in medians.items() if median <= CLOSE * min(medians.values())}
    return close if len(close) > 1 else {}


def rounds_in(seconds: float, medians: Sequence[float]) -> int:
    """How many rounds fit; a turn is a timed step behind an untimed one, or as many short ones as fill it, twice."""
    whole = sum(2 * max(median, TURN_SECONDS) for median in medians)
    return min(MOST_ROUNDS, int(seconds / whole)) if whole else 0
