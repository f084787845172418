"""Results of an experiment as a table, with the claims of its paper beside what came out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from benchmarks.cases import OURS
from benchmarks.experiments.experiment import Experiment, Medians
from benchmarks.experiments.quiet import disturbed

OWN = {"dpcompile eager": "auto", "careful loop": "loop of single examples"}
"""How the experiments call what `make bench` names otherwise."""
WITHIN = 1.05
"""auto is to be at most this many times the fastest method of a point, and so is what autotune measures to be best."""


def medians(document: dict[str, Any]) -> dict[str, Medians]:
    """{point: {method: ms}} of what could be timed."""
    return {
        name: {shown(method): row["median_ms"] for method, row in point["methods"].items() if "median_ms" in row}
        for name, point in document["points"].items()
    }


def shown(method: str) -> str:
    """A method's name in these tables: all but the peers and the ordinary steps are graphs of this compiler."""
    return OWN.get(method, method.removesuffix(OURS))


def judged(experiment: Experiment, document: dict[str, Any]) -> list[dict[str, Any]]:
    """Every claim whose points are measured: whether it holds here, and on which numbers; the bar of auto is one of them."""
    found, rows = medians(document), []
    for claim in experiment.claims:
        try:
            holds, numbers = claim.holds(found)
        except (KeyError, ValueError, ZeroDivisionError):
            continue  # a point or a method that it needs is not measured
        rows.append({"claim": claim.name, "holds": holds, "numbers": numbers})
    for extra in experiment.extras:
        if extra.name in document["extras"]:
            rows += extra.claims(document["extras"][extra.name])
    return [*rows, *bar("auto", found), *bar("auto", found, aside="autotune"), *bar("autotune", found)]


def bar(choice: str, found: Mapping[str, Medians], aside: str = "") -> list[dict[str, Any]]:
    """How the compiler's own choice, predicted or measured, compares with the fastest method of every point, one set aside."""
    behind = {name: row[choice] / fastest(row, aside) for name, row in found.items() if choice in row}
    if not behind or (aside and not any(aside in row for row in found.values())):
        return []
    misses = [f"{name} {value:.2f}" for name, value in behind.items() if value > WITHIN]
    met = f"{len(behind) - len(misses)} of {len(behind)} points"
    numbers = f"{met}; not at {', '.join(misses)}" if misses else f"{met}; at worst {max(behind.values()):.2f}"
    others = "the fastest method" + (f" but {aside}" if aside else "")
    return [{"claim": f"{choice} takes at most {WITHIN} times {others}", "holds": not misses, "numbers": numbers}]


def fastest(row: Medians, aside: str = "") -> float:
    """Milliseconds of the fastest private method that is not set aside; infinite if there is none."""
    private = (value for method, value in row.items() if not method.startswith("ordinary") and method != aside)
    return min(private, default=math.inf)


def markdown(experiment: Experiment, document: dict[str, Any]) -> str:
    """The table in milliseconds, a line per point; what a method could not do stands below."""
    machine, methods = document["machine"], list(map(shown, document["methods"]))
    where = machine["accelerator"] or f"{machine['cpu']}, {machine['cores']} cores"
    lines = [
        f"## {experiment.paper}, {document['size']} size", "",
        f"{where}, torch {machine['versions']['torch']}; medians of {document['rounds']} interleaved rounds in ms; every "
        "method at its better thread count, checked against a float64 loop before it is timed.", *contest(document), "",
        "| point | " + " | ".join(methods) + " | auto / fastest |", "|---" * (len(methods) + 2) + "|",
    ]  # fmt: skip
    lines += [point_row(name, row, methods) for name, row in medians(document).items()]
    lines += ["", "| the paper's claim | here | numbers |", "|---|---|---|"]
    lines += [
        f"| {row['claim']} | {'holds' if row['holds'] else '**does not**'} | {row['numbers']} |" for row in document["claims"]
    ]
    lines += ["", *memory(document, methods), *failures(document), *disturbed(document["points"])]
    for extra in experiment.extras:
        if extra.name in document["extras"]:
            lines += ["", *extra.lines(document["extras"][extra.name])]
    return "\n".join(lines) + "\n"


def contest(document: dict[str, Any]) -> list[str]:
    """How the fastest methods were told apart."""
    if "contest" not in document:
        return []
    within, seconds = document["contest"]["within"], document["contest"]["seconds"]
    return [
        f"Methods within {within} times the fastest of a point ran on beside each other and beside the ordinary step, for up to "
        f"about {seconds:.0f} s more."
    ]


def point_row(name: str, row: Medians, methods: list[str]) -> str:
    """One point, the fastest private method in bold."""
    best = fastest(row)
    cells = [f"**{row[m]:.1f}**" if m in row and row[m] == best else f"{row[m]:.1f}" if m in row else "n/a" for m in methods]
    behind = f"{row['auto'] / best:.2f}" if "auto" in row else ""
    return f"| {name} | " + " | ".join(cells) + f" | {behind} |"


def memory(document: dict[str, Any], methods: list[str]) -> list[str]:
    """Peak bytes of one step with one thread, beyond model and batch, where they were measured."""
    found = {
        name: {shown(method): row["bytes"] / 1e6 for method, row in point["methods"].items() if "bytes" in row}
        for name, point in document["points"].items()
    }
    if not any(found.values()):
        return []
    rows = [f"| {name} | " + " | ".join(f"{row[m]:.1f}" if m in row else "n/a" for m in methods) + " |"
            for name, row in found.items() if row]  # fmt: skip
    head = ["| peak MB of a step | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    return [*head, *rows, ""]


def failures(document: dict[str, Any]) -> list[str]:
    """Why a method could not be timed, each reason once with the points it holds for."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, point in document["points"].items():
        for method, row in point["methods"].items():
            if "failure" in row:
                reasons.setdefault((method, row["failure"]), []).append(name)
    return [f"- {shown(method)} at {', '.join(names)}: {why}" for (method, why), names in reasons.items()]


def summary(documents: list[dict[str, Any]]) -> str:
    """What the papers say and what came out, one line per claim, for all experiments that were run."""
    lines = ["| experiment | machine | claim | here | numbers |", "|---|---|---|---|---|"]
    for document in documents:
        where = document["machine"]["accelerator"] or f"{document['machine']['cpu']}, {document['machine']['cores']} cores"
        head = f"| {document['experiment']}, {document['size']} size | {where}"
        lines += [
            f"{head} | {r['claim']} | {'holds' if r['holds'] else '**does not**'} | {r['numbers']} |" for r in document["claims"]
        ]
    return "\n".join(lines)
