"""The table of model families for the README: `make families` examines every row of tests/families.py and prints it.

The rows live beside the tests, which hold each of them to the same verdict; here they are run once more for their times.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from families import FAMILIES
from family_case import Family
from family_run import examine
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results" / "families.json"

LIBRARIES = ("torch", "transformers", "peft")
COLUMNS = ("family", "kind", "parameters", "sites", "verdict", "CPU seconds")


def versions() -> dict[str, str]:
    """The versions that the table depends on."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES if importlib.util.find_spec(name)}


def measure(pattern: str = "") -> dict[str, Any]:
    """Examine the families whose names or kinds contain the pattern; the other rows stay as they were."""
    torch.set_num_threads(1)
    chosen = [f for f in FAMILIES if pattern.lower() in f"{f.name} {f.kind}".lower()]
    known = {row["name"]: row for row in earlier()} if pattern else {}
    for family in tqdm(chosen):
        known[family.name] = row_of(family)
    return {"versions": versions(), "rows": [known[f.name] for f in FAMILIES if f.name in known]}


def earlier() -> list[dict[str, Any]]:
    """The rows of the last run."""
    return json.loads(RESULTS.read_text(encoding="ascii"))["rows"] if RESULTS.exists() else []


def row_of(family: Family) -> dict[str, Any]:
    """The row of one family, or why it cannot be run here."""
    if family.missing():
        return {"name": family.name, "kind": family.kind, "missing": family.missing()}
    row = asdict(examine(family))
    places = [
        text for text in row["refusal"].splitlines() if not text.startswith("  at: ")
    ]  # files differ from machine to machine
    return row | {"refusal": "\n".join(places)}


def verdict(row: dict[str, Any]) -> str:
    """One cell: exact with the error, refused with the first line and the reason, or why it was not run."""
    if "missing" in row:
        return f"not run: {row['missing']}"
    if not row["refusal"]:
        return f"exact, {row['error']:.0e}" + ("" if row["double"] else " (float32 inside)")
    lines = row["refusal"].splitlines()
    reasons = [line.strip().removeprefix("why: ") for line in lines if line.strip().startswith("why: ")]
    return "refused: " + ": ".join([lines[0], *reasons]).replace("|", "\\|")


def markdown(found: dict[str, Any]) -> str:
    """The table with a sentence before it."""
    return "\n".join([summary(found), "", *header(), *(line(row) for row in found["rows"])])


def header() -> list[str]:
    """The first two lines of the table."""
    return ["| " + " | ".join(COLUMNS) + " |", "|---|---|---:|---:|---|---:|"]


def line(row: dict[str, Any]) -> str:
    """One line of the table."""
    if "missing" in row:
        return f"| {row['name']} | {row['kind']} |  |  | {verdict(row)} |  |"
    seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
    cells = [row["name"], row["kind"], f"{row['parameters']:,}", str(row["sites"] or ""), verdict(row), seconds]
    return "| " + " | ".join(cells) + " |"


def summary(found: dict[str, Any]) -> str:
    """How many rows there are of each verdict, and what made them."""
    rows = [row for row in found["rows"] if "missing" not in row]
    refused = sum(bool(row["refusal"]) for row in rows)
    names = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    counts = f"{len(rows)} families: {len(rows) - refused} exact, {refused} refused"
    return f"{counts}; {names}, one thread; CPU seconds are those of the compilation."


def main(
    only: Annotated[str, typer.Option(help="Part of the names or kinds of the families to examine.")] = "",
    output: Annotated[Path, typer.Option(help="Where the rows are kept.")] = RESULTS,
) -> None:
    """Examine, print, and keep the rows, from which the README's table is made."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    found = measure(only)
    print(markdown(found))
    output.write_text(json.dumps(found, indent=1) + "\n", encoding="ascii")


if __name__ == "__main__":
    typer.run(main)
