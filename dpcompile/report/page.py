"""One self-contained HTML page: the report, its plots, and the rewritten graph as a drawing that can be zoomed."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment

from dpcompile.report.document import Facts, document
from dpcompile.report.drawing import drawing, measures
from dpcompile.report.plots import COLOURS, bars, region_map, roofline, scale
from dpcompile.report.regions import regions


def page(facts: Facts) -> str:
    """The page; it loads nothing and opens without a network."""
    data, row, plan = document(facts), facts.outlook.hardware, facts.plan
    size = plan.at_a_time(plan.batch_size)
    plots = {
        "time": bars(data, "seconds_by_kind", "predicted time of a step"),
        "memory": bars(data, "peak_bytes_by_kind", "predicted memory at the peak, beyond model and batch"),
        "roofline": roofline(data, row),
        "regions": region_map(regions(row, size), data),
    }
    graph = drawing(facts.outlook.rewritten(plan), facts.private.kinds, facts.private.nodes)
    template = environment().from_string(files("dpcompile.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(document=data, plots=plots, graph=graph, measures=measures(), colours=COLOURS)


def environment() -> Environment:
    """Templates in which every text of the user's (names, source lines) is escaped."""
    made = Environment(autoescape=True)
    made.filters |= {"seconds": lambda number: amount(number, "s"), "bytes": lambda number: amount(number, "B")}
    return made


def amount(number: float, unit: str) -> str:
    """A number with a prefix: 12.3 ms, 4.56 MB."""
    factor, name = scale(number, unit)
    return f"{number / factor:.3g} {name}"
