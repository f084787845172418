"""The table of model families for the README: `make families` examines every row of tests/families.py and prints it.

The rows live beside the tests, which hold each of them to the same verdict; here they are run once more for their times.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from families import FAMILIES
from family_run import examine
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results" / "families.json"

LIBRARIES = ("torch", "transformers", "peft")
COLUMNS = ("family", "kind", "parameters", "sites", "verdict", "seconds")


def versions() -> dict[str, str]:
    """The versions that the table depends on."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES if importlib.util.find_spec(name)}


def measure(pattern: str = "") -> dict[str, Any]:
    """Examine the families whose names contain the pattern."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for family in tqdm([family for family in FAMILIES if pattern.lower() in family.name.lower()]):
        if family.missing():
            rows.append({"name": family.name, "kind": family.kind, "missing": family.missing()})
        else:
            rows.append(asdict(examine(family)))
    return {"versions": versions(), "rows": rows}


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
    cells = [row["name"], row["kind"], f"{row['parameters']:,}", str(row["sites"] or ""), verdict(row), f"{row['seconds']:.1f}"]
    return "| " + " | ".join(cells) + " |"


def summary(found: dict[str, Any]) -> str:
    """How many rows there are of each verdict, and what made them."""
    rows = [row for row in found["rows"] if "missing" not in row]
    refused = sum(bool(row["refusal"]) for row in rows)
    names = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"{len(rows)} families: {len(rows) - refused} exact, {refused} refused; {names}, one thread."


def main(only: Annotated[str, typer.Option(help="Part of the names of the families to examine.")] = "") -> None:
    """Examine, print, and write results/families.json when all were examined."""
    warnings.simplefilter("ignore")
    found = measure(only)
    print(markdown(found))
    if not only:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="ascii")


if __name__ == "__main__":
    typer.run(main)
