"""The results as a table for the terminal and as Markdown for the README; the same rows in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from benchmarks.cases import AGAIN, CASES, OURS, Case

Methods = Mapping[str, Mapping[str, Any]]
COLUMNS = ("method", "threads", "ms", "x unit", "MB", "x memory", "largest error")


@dataclass(frozen=True)
class Row:
    """One method of one workload. ratio, memory: time and peak memory in units of the ordinary step's.

    note: why there is no time.
    """

    name: str
    ratio: float | None
    cells: tuple[str, ...]
    memory: float | None = None
    note: str = ""


def unit_of(methods: Methods) -> str:
    """The faster of the ordinary steps, which everything is measured in."""
    ordinary = {n: m["median_ms"] for n, m in methods.items() if n.startswith("ordinary") and "median_ms" in m}
    return min((name for name in ordinary if not name.endswith(AGAIN)), key=lambda name: ordinary[name])


def rows_of(methods: Methods) -> list[Row]:
    """One row per method, the noise of the unit against itself among them."""
    unit = unit_of(methods)
    skipped = {name for name in methods if name.endswith(AGAIN) and name != unit + AGAIN}
    memory = methods["ordinary eager"].get("bytes") if "ordinary eager" in methods else None
    return [row_of(name, m, methods[unit]["median_ms"], memory) for name, m in methods.items() if name not in skipped]


def row_of(name: str, method: Mapping[str, Any], unit_ms: float, unit_bytes: int | None) -> Row:
    """The cells of one method; memory in units of the ordinary eager step's."""
    if "failure" in method:
        note = method["failure"]
        verdict = "WRONG" if "WRONG" in note else "n/a"
        return Row(name, None, (name, "", verdict, "", "", "", ""), note=note)
    ratio = method["median_ms"] / unit_ms
    used = method.get("bytes")
    memory = used / unit_bytes if used is not None and unit_bytes else None
    cells = (
        name,
        str(method.get("threads", "")),
        f"{method['median_ms']:.1f}",
        f"{ratio:.2f}",
        f"{used / 1e6:.1f}" if used is not None else "",
        f"{memory:.2f}" if memory is not None else "",
        f"{method['error']:.0e}" if "error" in method else "",
    )
    return Row(name, ratio, cells, memory)


def best(rows: list[Row], is_ours: bool) -> Row | None:
    """The fastest variant of dpcompile, or the fastest correct peer."""
    rivals = [
        row
        for row in rows
        if row.ratio is not None
        and not row.name.startswith("ordinary")
        and not row.name.endswith(OURS)
        and row.name.startswith("dpcompile") == is_ours
    ]
    return min(rivals, key=lambda row: row.ratio or 0.0, default=None)


def verdict(case: Case, rows: list[Row]) -> str:
    """One line: where dpcompile stands against its bar and the fastest correct peer."""
    ours, peer = best(rows, True), best(rows, False)
    mine = f"{ours.ratio:.2f} ({ours.name})" if ours and ours.ratio is not None else "n/a"
    other = f"{peer.ratio:.2f} ({peer.name})" if peer and peer.ratio is not None else "none measured"
    missed = "" if ours and ours.ratio is not None and ours.ratio <= case.bar else ", MISSED"
    line = f"dpcompile {mine}; bar {case.bar:.2f}{missed}; fastest correct peer {other}"
    if case.memory_bar is None or ours is None or ours.memory is None:
        return line
    above = "" if ours.memory <= case.memory_bar else ", MISSED"
    return f"{line}; memory {ours.memory:.2f}, bar {case.memory_bar:.2f}{above}"


def rich_table(case: Case, rows: list[Row]) -> Table:
    """One workload for the terminal."""
    table = Table(title=case.title, caption=verdict(case, rows))
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        table.add_row(*row.cells)
    return table


def notes(rows: list[Row]) -> list[str]:
    """Why methods have no time, one line each."""
    return [f"{row.name}: {row.note}" for row in rows if row.note]


def markdown(case: Case, rows: list[Row]) -> str:
    """One workload as a Markdown section."""
    lines = [
        f"### {case.title}",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---" + "|---:" * (len(COLUMNS) - 1) + "|",
    ]
    lines += ["| " + " | ".join(row.cells) + " |" for row in rows]
    lines += ["", verdict(case, rows) + ".", *(f"- {note}" for note in notes(rows))]
    return "\n".join(lines) + "\n"


def overview(workloads: Mapping[str, Mapping[str, Any]]) -> str:
    """All workloads, one line each: milliseconds of the unit, ratios to it, and peak memory in units of the ordinary
    eager step's. A missed bar is bold; n/a: the method cannot run it or is wrong; a dash: not measured."""
    measured = dict.fromkeys(name for w in workloads.values() for name in w["methods"] if not name.startswith("ordinary"))
    methods = sorted(measured, key=lambda name: not name.startswith("dpcompile"))
    ours = [name for name in methods if name.startswith("dpcompile")]
    columns = ["workload", "unit ms", "A/A", "bar", *methods, "memory bar", *(f"memory {name}" for name in ours)]
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    for name in sorted(workloads, key=list(CASES).index):
        cells = overview_cells(CASES[name], workloads[name]["methods"], methods, ours)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def overview_cells(case: Case, measured: Methods, methods: Sequence[str], ours: Sequence[str]) -> list[str]:
    """One line of the overview."""
    rows, unit = {row.name: row for row in rows_of(measured)}, unit_of(measured)
    bar = f"{case.memory_bar:.2f}" if case.memory_bar else ""
    return [
        case.title,
        f"{measured[unit]['median_ms']:.1f}",
        ratio_cell(rows.get(unit + AGAIN), None),
        f"{case.bar:.2f}",
        *(ratio_cell(rows.get(name), case.bar if name in ours else None) for name in methods),
        bar,
        *(cell(rows[name].memory if name in rows else None, case.memory_bar) for name in ours),
    ]


def ratio_cell(row: Row | None, bar: float | None) -> str:
    """A time in units of the ordinary step's."""
    return "n/a" if row is not None and row.note else cell(row.ratio if row is not None else None, bar)


def cell(value: float | None, bar: float | None) -> str:
    """A ratio, bold above its bar."""
    text = f"{value:.2f}" if value is not None else "-"
    return f"**{text}**" if value is not None and bar is not None and round(value, 2) > bar else text
