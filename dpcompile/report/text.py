"""The report: as a table to read, as JSON, as a page; identical layers folded."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dpcompile.clip.rule import FLAT
from dpcompile.cost.hardware import Hardware
from dpcompile.forecast.forecast import Forecast, Outlook
from dpcompile.ir.errors import InvalidInput
from dpcompile.plan.plan import Plan
from dpcompile.report.document import Facts, document
from dpcompile.report.fold import folded
from dpcompile.report.formula import formula
from dpcompile.report.kinds import NORMS, SUMS
from dpcompile.report.shares import ordinary_shares, private_shares


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
        size = self.plan.batch_size if batch_size is None else batch_size
        return self.outlook.what_if(size, hardware, memory_budget)

    def max_batch_size(self, memory_budget: str | float) -> int:
        """The largest batch that, taken at once, has its predicted peak memory within a budget (bytes, or "2 GB"); in chunks
        (`microbatch=`) any number of examples fits where as many as one chunk do."""
        return self.outlook.max_batch_size(memory_budget)

    @cached_property
    def facts(self) -> Facts:
        """Everything that the JSON document and the page are made from."""
        ordinary, private = ordinary_shares(self.outlook, self.plan.batch_size), private_shares(self.outlook, self.plan)
        return Facts(self.plan, self.outlook, self.backend, self.max_grad_norm, self.notes, self.unused, ordinary, private)

    def json(self) -> str:
        """The report as JSON; its fields and their version are described in dpcompile.report.document."""
        return json.dumps(document(self.facts), indent=1) + "\n"

    def html(self) -> str:
        """The report as one self-contained page with plots and the rewritten graph."""
        from dpcompile.report.page import page  # noqa: PLC0415  (matplotlib takes half a second to load)

        return page(self.facts)

    def save(self, path: str | Path) -> None:
        """Write the report as its ending says: .html, .json, or .txt."""
        forms = {".html": self.html, ".json": self.json, ".txt": self.__str__}
        made = forms.get(Path(path).suffix.lower())
        if made is None:
            raise InvalidInput(f"a report is saved as {', '.join(forms)}, not as {str(path)!r}")
        if not Path(path).absolute().parent.is_dir():
            raise InvalidInput(f"there is no folder {str(Path(path).parent)!r} to save the report in")
        Path(path).write_text(made(), encoding="utf-8")

    def __str__(self) -> str:
        text = io.StringIO()
        console = Console(file=text, width=150, force_terminal=False)
        console.print(self.table())
        for line in self.footer():
            console.print(line, highlight=False, soft_wrap=True, markup=False, emoji=False)
        return text.getvalue()

    def __rich__(self) -> Table:
        return self.table()

    def table(self) -> Table:
        """The rows as a rich table."""
        chunk = f", chunks of {self.plan.microbatch}" if self.plan.is_chunked else ""
        title = f"strategies for {self.plan.hardware}, B={self.plan.batch_size}{chunk}, backend {self.backend}"
        table = Table(title=Text(title))
        for name in ("parameter", "equation", "shape", "norm", "sum", "us", "kept MB", "why"):
            table.add_column(name, justify="right" if name in ("us", "kept MB") else "left", overflow="fold")
        for names, (choice, *_) in folded(self.plan.choices):
            option = choice.option
            shape = "x".join(map(str, choice.site.shape)) or "scalar"
            numbers = f"{option.seconds * 1e6:.0f}", f"{option.cost.resident_bytes / 1e6:.2f}"
            table.add_row(Text(names), choice.site.equation, shape, option.norm, option.sum, *numbers, choice.why)
        return table

    @property
    def private_seconds(self) -> float:
        """Predicted seconds of norms and clipped sums in the rewritten graph, where those of small parameters are one."""
        found = self.facts.private.seconds
        return found[NORMS] + found[SUMS]

    @property
    def kept_bytes(self) -> float:
        """Memory that is kept until sums: all parameters' at once, or that of the largest group, since groups come in turn."""
        kept = {choice.site.parameter: choice.option.cost.resident_bytes for choice in self.plan.choices}
        groups = self.outlook.source.rule.parts(list(kept))
        return max(float(sum(kept.get(name, 0.0) for name in group.parameters)) for group in groups)

    def second_backward(self) -> list[str]:
        """Where backward runs a second time from."""
        cut = self.plan.cut
        return (
            []
            if cut is None
            else [f"backward runs a second time from {cut.frontier.node} on, for {len(cut.parameters)} parameters"]
        )

    def clipping(self) -> list[str]:
        """How gradients are clipped, where it is not the ordinary way."""
        rule = self.outlook.source.rule
        return [] if rule == FLAT else [f"clipping: {rule}"]

    def footer(self) -> list[str]:
        """Totals, sensitivity, and what the user should know."""
        lines = [
            f"predicted: {self.private_seconds * 1e3:.2f} ms for norms and clipped sums, {self.kept_bytes / 1e6:.1f} MB kept",
            f"predicted step: {self.forecast}",
            *self.second_backward(),
            *self.clipping(),
            f"sensitivity of grads (add or remove one example): {self.max_grad_norm:g}; "
            "losses, norms and factors are not private",
        ]
        lines += [f"note: {name} has no gradient path; its gradient is zero" for name in self.unused]
        return lines + [f"note: {note}" for note in self.notes]
