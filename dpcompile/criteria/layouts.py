"""How the trained part of every parameter is told to the compiler: gone, all, whole rows or columns, or single entries.

What pruning leaves never changes. What dropping keeps moves, and gets room for the most that it will ever keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from dpcompile.criteria.choices import GradientDropping, kept_of
from dpcompile.criteria.ranking import pools
from dpcompile.criteria.units import Units
from dpcompile.selection import Layout


def layouts(left: Mapping[str, Tensor], units: Sequence[Units], dropping: GradientDropping | None) -> dict[str, Layout]:
    """{parameter: layout}. left: what pruning leaves; units: what dropping chooses among."""
    static = {name: static_layout(mask) for name, mask in left.items()}
    moving: dict[str, Layout] = {}
    if dropping is not None:
        for layer in units:
            moving |= dict.fromkeys(layer.members, moving_layout(layer, left, units, dropping))
    return {name: joined(static.get(name, Layout()), moving.get(name, Layout())) for name in {**static, **moving}}


def moving_layout(layer: Units, left: Mapping[str, Tensor], units: Sequence[Units], dropping: GradientDropping) -> Layout:
    """Room for the most units of one layer that dropping will ever keep."""
    pool = next(members for members in pools(dropping, units) if layer in [units[i] for i in members])
    eligible = [int(units[i].eligible(left).sum()) for i in pool]
    most = min(layer.count, kept_of(dropping.lowest_rate(), sum(eligible)))
    varies = len(pool) > 1 or not isinstance(dropping.rate, (int, float)) or layer.is_cut(left)
    return layer.layout(most, varies)


def static_layout(mask: Tensor) -> Layout:
    """How a mask that never changes is told best: gone, all, whole rows or columns, or single entries."""
    if not bool(mask.any()):
        return Layout(is_gone=True)
    if bool(mask.all()):
        return Layout()
    for dim in range(min(mask.dim(), 2)):
        others = [d for d in range(mask.dim()) if d != dim]
        used = mask.any(dim=others, keepdim=True) if others else mask
        if bool((used.expand_as(mask) == mask).all()):
            return Layout(dim, int(used.sum()))
    return Layout(entries=True)


def joined(static: Layout, moving: Layout) -> Layout:
    """One layout for a part that is chosen within another: the smaller of two cuts along one dimension, else entries besides."""
    if static.is_gone or moving == Layout():
        return static
    if static == Layout() or moving.is_gone:
        return moving
    if static.dim == moving.dim and static.dim is not None:
        return Layout(static.dim, min(static.capacity, moving.capacity), moving.varies, moving.entries)
    cut = static if static.dim is not None else moving
    return Layout(cut.dim, cut.capacity, varies=cut.dim is not None, entries=True)
