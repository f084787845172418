"""A plan: for every site a way to the norm and a way to the sum, with prices, the reason and what was rejected.

A plan is data: it prints, compares, can be edited and passed back. Passes carry it out and never choose.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dpcompile.ir.cost import Cost
from dpcompile.ir.site import Cut, Site
from dpcompile.plan.saved import SavedChoice, SavedPlan


@dataclass(frozen=True)
class Option:
    """One way for one site: strategies, cost in numbers, seconds that are predicted or were measured."""

    norm: str
    sum: str
    cost: Cost
    seconds: float
    measured: bool = False


@dataclass(frozen=True)
class Choice:
    """The option taken for a site, why, the other options, and why the rest was not possible."""

    site: Site
    option: Option
    why: str
    others: tuple[Option, ...]
    declined: tuple[tuple[str, str], ...]

    @property
    def runner_up(self) -> Option | None:
        """The best option that was not taken."""
        return min(self.others, key=lambda option: option.seconds, default=None)


@dataclass(frozen=True)
class Plan:
    """All choices, the schedule, and what they were made for.

    microbatch: chunk size m; None takes the whole batch at once. cut: where backward is run a second time from, for the
    parameters whose sum is "reweight"; None keeps books for all of them. copies: the step runs with one copy of the parameters
    for every example, and the choices are made for what comes back.
    """

    choices: tuple[Choice, ...]
    hardware: str
    batch_size: int
    microbatch: int | None = None
    cut: Cut | None = None
    copies: bool = False

    def at_a_time(self, batch_size: int) -> int:
        """How many examples of a batch of this size are taken at once."""
        return min(self.microbatch or batch_size, batch_size)

    @property
    def is_chunked(self) -> bool:
        """Whether the batch that the plan was made for is taken in more than one chunk."""
        return self.microbatch is not None and self.microbatch < self.batch_size

    @property
    def seconds(self) -> float:
        """Predicted time of the private part: norms and clipped sums."""
        return sum(choice.option.seconds for choice in self.choices)

    @property
    def resident_bytes(self) -> float:
        """Memory that the choices keep until the clipped sums."""
        return float(sum(choice.option.cost.resident_bytes for choice in self.choices))

    def strategies(self) -> dict[str, tuple[str, str]]:
        """{parameter: (norm, sum)}: what can be edited and passed back as `strategy=`."""
        return {choice.site.parameter: (choice.option.norm, choice.option.sum) for choice in self.choices}

    def saved(self) -> SavedPlan:
        """The choices without their prices."""
        rows = (SavedChoice(c.site.parameter, c.site.equation, c.site.shape, c.option.norm, c.option.sum) for c in self.choices)
        return SavedPlan(tuple(rows), self.hardware, self.batch_size, self.microbatch, self.copies)

    def save(self, path: str | Path) -> None:
        """Write the choices as JSON, to be edited or passed back as `plan=`."""
        self.saved().save(path)
