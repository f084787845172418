"""The fastest private methods of a point, timed beside each other and beside the ordinary step in more rounds.

A few rounds tell a method that takes half as long again. Of eight methods that take alike one has the luckiest median, and an
equal choice beside it looks several percent behind: steps of 12 ms differed by 8 % from themselves between quartiles. So whatever
came within `CLOSE` of the fastest in any round runs on, and its median is that of all its rounds. `CLOSE` is wide, for whoever
stays behind keeps the few rounds of one stretch of time: with 1.15 an equal choice was left there by a busy moment, 28 % behind.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from benchmarks.measure import TURN_SECONDS, Step, interleaved

CLOSE: Final = 1.4
"""How far behind the fastest a method may be to run on."""
MOST_ROUNDS: Final = 60


def prolonged(
    samples: Mapping[str, list[float]],
    steps: Mapping[str, tuple[Step, int]],
    private: Collection[str],
    seconds: float,
    device: str,
) -> dict[str, list[float]]:
    """The samples with those of up to about `seconds` more of the private methods that are close to the fastest one, and of all
    that are not private, which ratios are of. What fails there keeps the samples that it has."""
    close = contenders({name: found for name, found in samples.items() if name in private})
    running = [name for name in samples if name in close or (close and name not in private)]
    rounds = rounds_in(seconds, [statistics.median(samples[name]) for name in running])
    longest = max(map(len, samples.values()), default=0)  # no fewer than there were rounds: these have orders of their own
    more = interleaved({name: steps[name] for name in running}, rounds, device, {}, first=longest)
    return {name: found + more.get(name, []) for name, found in samples.items()}


def contenders(samples: Mapping[str, Sequence[float]]) -> set[str]:
    """The names of those whose fastest sample is close to the smallest median; none if there is nobody beside it.

    A busy moment only ever adds to a sample: of the same plan's few rounds one median was 1.9 times the other's, and the fastest
    1.2 times.
    """
    limit = CLOSE * min(map(statistics.median, samples.values()), default=0)
    close = {name for name, found in samples.items() if min(found) <= limit}
    return close if len(close) > 1 else set()


def rounds_in(seconds: float, medians: Sequence[float]) -> int:
    """How many rounds fit; a turn is a timed step behind an untimed one, or as many short ones as fill it, twice."""
    whole = sum(2 * max(median, TURN_SECONDS) for median in medians)
    return min(MOST_ROUNDS, int(seconds / whole)) if whole else 0
