"""Which way is predicted to be the fastest for a linear layer, over positions per example and size of the weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dpcompile.cost.hardware import Hardware
from dpcompile.cost.prices import complete
from dpcompile.cost.roofline import seconds
from dpcompile.ir.cost import Cost
from dpcompile.strategies import fused, gram, interval, materialize, outer
from dpcompile.strategies.sums import PRODUCT, WEIGHTED

POSITIONS = tuple(2**k for k in range(13))
SIDES = tuple(2**k for k in range(4, 13))
"""Fan-in, and as large a fan-out."""

WAYS: dict[str, Cost] = {
    "outer+bookkeep": outer.COST + Cost((PRODUCT,)),
    "gram+bookkeep": gram.DENSE_COST + Cost((PRODUCT,)),
    "fused+bookkeep": Cost((fused.DENSE, PRODUCT)),
    "materialize+reuse": Cost((materialize.DENSE, materialize.NORM, WEIGHTED)),
}


@dataclass(frozen=True)
class Regions:
    """winners[i][j]: the fastest way at positions[i] and at a weight of products[j] elements."""

    positions: tuple[int, ...]
    products: tuple[int, ...]
    winners: tuple[tuple[str, ...], ...]


def regions(hardware: Hardware, batch_size: int) -> Regions:
    """The map for square layers in float32 on one machine at one batch size."""
    rows = tuple(tuple(winner(hardware, batch_size, T, side) for side in SIDES) for T in POSITIONS)
    return Regions(POSITIONS, tuple(side**2 for side in SIDES), rows)


def winner(hardware: Hardware, batch_size: int, positions: int, side: int) -> str:
    """The fastest way at one point; `outer` needs one position."""
    possible = [name for name in WAYS if positions == 1 or not name.startswith("outer")]
    return min(possible, key=lambda name: way_seconds(name, hardware, batch_size, positions, side, side))


def way_seconds(name: str, hardware: Hardware, batch_size: int, positions: int, d: int, p: int) -> float:
    """Predicted seconds of one way for a layer of d inputs and p outputs."""
    if name == "fused+bookkeep" and positions > 1:  # one product cannot cancel
        return seconds((WAYS[name] + Cost((interval.PRODUCTS,))).at(sizes(batch_size, positions, d, p)), hardware)
    return seconds(WAYS[name].at(sizes(batch_size, positions, d, p)), hardware)


def sizes(batch_size: int, positions: int, d: int, p: int) -> Sequence[dict[str, float]]:
    """The symbols of the formulas."""
    ones = dict.fromkeys(("T_in", "G", "K", "V", "w", "n", "S"), 1.0)
    return [complete({**ones, "B": batch_size, "T": positions, "d": d, "p": p, "P": d * p, "s": 4.0})]
