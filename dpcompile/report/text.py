"""The strategy table: one row per parameter, identical layers folded."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.console import Console
from rich.table import Table

from dpcompile.cost.hardware import Hardware
from dpcompile.forecast.forecast import Forecast, Outlook
from dpcompile.plan.plan import Choice, Plan
from dpcompile.report.formula import formula


@dataclass(frozen=True)
class Report:
    """What was chosen and why; `str(report)` is the table."""

    plan: Plan
    unused: tuple[str, ...]
    notes: tuple[str, ...]
    backend: str
    max_grad_norm: float
    outlook: Outlook

    @cached_property
    def forecast(self) -> Forecast:
        """Predicted time and memory of the whole step."""
        return self.outlook.of_plan(self.plan, self.outlook.hardware, self.plan.batch_size)

    def formula(self, parameter: str) -> str:
        """The prices of a parameter's options as formulas and numbers, with break-even points."""
        return formula(self.plan, self.outlook.hardware, parameter)

    def what_if(
        self,
        batch_size: int | None = None,
        hardware: str | Hardware | None = None,
        memory_budget: str | float | None = None,
    ) -> Forecast:
        """The plan and the predicted step at another batch size, on other hardware, within a budget; nothing is run."""
        return self.outlook.what_if(batch_size or self.plan.batch_size, hardware, memory_budget)

    def max_batch_size(self, memory_budget: str | float) -> int:
        """The largest batch whose predicted peak memory stays within a budget (bytes, or a text such as "2 GB")."""
        return self.outlook.max_batch_size(memory_budget)

    def __str__(self) -> str:
        text = io.StringIO()
        console = Console(file=text, width=150, force_terminal=False)
        console.print(self.table())
        for line in self.footer():
            console.print(line, highlight=False, soft_wrap=True)
        return text.getvalue()

    def __rich__(self) -> Table:
        return self.table()

    def table(self) -> Table:
        """The rows as a rich table."""
        chunk = f", chunks of {self.plan.microbatch}" if self.plan.microbatch else ""
        table = Table(title=f"strategies for {self.plan.hardware}, B={self.plan.batch_size}{chunk}, backend {self.backend}")
        for name in ("parameter", "equation", "shape", "norm", "sum", "us", "kept MB", "why"):
            table.add_column(name, justify="right" if name in ("us", "kept MB") else "left", overflow="fold")
        for names, choice in folded(self.plan.choices):
            option = choice.option
            table.add_row(names, choice.site.equation, "x".join(map(str, choice.site.shape)) or "scalar", option.norm, option.sum,
                          f"{option.seconds * 1e6:.0f}", f"{option.cost.resident_bytes / 1e6:.2f}", choice.why)  # fmt: skip
        return table

    def footer(self) -> list[str]:
        """Totals, sensitivity, and what the user should know."""
        lines = [
            f"predicted: {self.plan.seconds * 1e3:.2f} ms for norms and clipped sums, "
            f"{self.plan.resident_bytes / 1e6:.1f} MB kept",
            f"predicted step: {self.forecast}",
            f"sensitivity of grads (add or remove one example): {self.max_grad_norm:g}; "
            "losses, norms and factors are not private",
        ]
        lines += [f"note: {name} has no gradient path; its gradient is zero" for name in self.unused]
        return lines + [f"note: {note}" for note in self.notes]


def folded(choices: Sequence[Choice]) -> list[tuple[str, Choice]]:
    """Rows of equal layers merged: blocks.0.fc.weight and blocks.1.fc.weight become blocks.{0,1}.fc.weight."""
    groups: dict[tuple[object, ...], list[Choice]] = {}
    for choice in choices:
        pattern = re.sub(r"\d+", "#", choice.site.parameter)
        key = (
            pattern,
            choice.site.equation,
            choice.site.shape,
            choice.option.norm,
            choice.option.sum,
            round(choice.option.seconds * 1e9),
        )
        groups.setdefault(key, []).append(choice)
    return [(folded_name([c.site.parameter for c in group]), group[0]) for group in groups.values()]


def folded_name(names: list[str]) -> str:
    """One name for several that differ in numbers only."""
    if len(names) == 1:
        return names[0]
    columns = zip(*(re.split(r"(\d+)", name) for name in names), strict=True)
    return "".join(parts[0] if len(set(parts)) == 1 else "{" + ",".join(dict.fromkeys(parts)) + "}" for parts in columns)
