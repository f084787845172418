"""The rewritten graph as a drawing: modules from top to bottom, and forward, backward, norms and sums side by side.

In every module's band the forward nodes stand in the order in which they run, the backward nodes upwards, so that a value
and the gradient that needs it are at about the same height.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import fx

from dpcompile.ir.graph import JointGraph, operand_node
from dpcompile.ir.printer import is_size, node_line, node_names, target_text
from dpcompile.report.kinds import BACKWARD, FORWARD, NORMS, SUMS

LANES: Final = (FORWARD, BACKWARD, NORMS, SUMS)
WIDTH, HEIGHT, PITCH, LANE, LEFT, GAP = 216, 18, 24, 300, 190, 22
"""Boxes, their distance, lanes, the margin for module names, and the space between bands, in the drawing's units."""


@dataclass(frozen=True)
class Box:
    """One node: where it stands and what it says. heat: its share in the most expensive node's time."""

    x: float
    y: float
    label: str
    text: str
    place: str
    kind: str
    heat: float
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Band:
    """One module: its name and its vertical extent."""

    name: str
    y: float
    height: float


@dataclass(frozen=True)
class Drawing:
    """Everything with a place in the drawing; `paths` are the edges, from box to box."""

    boxes: tuple[Box, ...]
    bands: tuple[Band, ...]
    paths: tuple[tuple[int, int, str], ...]
    width: float
    height: float


def drawing(joint: JointGraph, kinds: Mapping[fx.Node, str], seconds: Mapping[fx.Node, float]) -> Drawing:
    """Places for all nodes that compute tensors; one of several results counts as the node that it comes from."""
    nodes = [node for node in joint.graph.nodes if node in kinds and not is_size(node) and node.target is not operator.getitem]
    bands, places = bands_of(nodes, kinds)
    number = {node: index for index, node in enumerate(nodes)}
    names, most = node_names(joint), max([seconds.get(node, 0.0) for node in nodes], default=0.0) or 1.0
    boxes = []
    for node in nodes:
        time = f"{seconds.get(node, 0.0) * 1e6:.1f} us predicted"
        text = "\n".join(filter(None, (node_line(node, names, joint.symbol), node.meta.get("source_line", ""), time)))
        inputs = tuple(dict.fromkeys(number[source] for source in map(origin, node.all_input_nodes) if source in number))
        heat = seconds.get(node, 0.0) / most
        boxes.append(Box(*places[node], label(node), text, band_of(node, kinds[node]), kinds[node], heat, inputs))
    paths = tuple((i, index, curve(boxes[i], box)) for index, box in enumerate(boxes) for i in box.inputs)
    height = bands[-1].y + bands[-1].height + GAP if bands else 1.0
    return Drawing(tuple(boxes), tuple(bands), paths, LEFT + LANE * len(LANES), height)


def origin(node: fx.Node) -> fx.Node:
    """The node that computes a value."""
    return operand_node(node, 0) if node.target is operator.getitem else node


def label(node: fx.Node) -> str:
    """What fits into a box: the name, and the operation where the name does not say it."""
    operation = target_text(node.target)
    said = node.name.rstrip("_0123456789") == operation.removeprefix("dp.").rstrip("_")
    text = f"dp.{node.name}" if said and operation.startswith("dp.") else node.name if said else f"{node.name} = {operation}"
    return text if len(text) <= 34 else text[:33] + "\u2026"


def band_of(node: fx.Node, kind: str) -> str:
    """The module that a node belongs to; what belongs to none is the model's own, or the whole step's."""
    path: str = node.meta.get("module_path", "")
    return path or ("whole step" if kind in (NORMS, SUMS) else "model")


def bands_of(nodes: Iterable[fx.Node], kinds: Mapping[fx.Node, str]) -> tuple[list[Band], dict[fx.Node, tuple[float, float]]]:
    """Bands in the order in which modules first run, and every node's place."""
    groups: dict[str, dict[str, list[fx.Node]]] = {}
    for node in nodes:
        groups.setdefault(band_of(node, kinds[node]), {name: [] for name in LANES})[kinds[node]].append(node)
    if "whole step" in groups:
        groups["whole step"] = groups.pop("whole step")
    bands, places, top = [], dict[fx.Node, tuple[float, float]](), float(GAP)
    for name, lanes in groups.items():
        height = PITCH * max(map(len, lanes.values()))
        for lane, kind in enumerate(LANES):
            column = reversed(lanes[kind]) if kind == BACKWARD else lanes[kind]
            places |= {node: (LEFT + LANE * lane, top + PITCH * row) for row, node in enumerate(column)}
        bands.append(Band(name, top, height))
        top += height + GAP
    return bands, places


def curve(start: Box, end: Box) -> str:
    """An edge: from side to side between lanes, around the left side within one."""
    y1, y2 = start.y + HEIGHT / 2, end.y + HEIGHT / 2
    if start.x == end.x:
        x = start.x
        bend = min(14 + 0.06 * abs(y2 - y1), 60)
        return f"M{x:g} {y1:g}C{x - bend:g} {y1:g} {x - bend:g} {y2:g} {x:g} {y2:g}"
    forward = start.x < end.x
    x1, x2 = (start.x + WIDTH, end.x) if forward else (start.x, end.x + WIDTH)
    middle = (x1 + x2) / 2
    return f"M{x1:g} {y1:g}C{middle:g} {y1:g} {middle:g} {y2:g} {x2:g} {y2:g}"


def measures() -> dict[str, Any]:
    """Sizes that the page needs to draw boxes."""
    return {"width": WIDTH, "height": HEIGHT, "lane": LANE, "left": LEFT, "lanes": LANES}
