"""The sizes of a site as numbers for its cost formulas."""

from __future__ import annotations

import math

from dpcompile.ir.graph import value
from dpcompile.ir.site import ChannelScale, Contraction, Convolution, Dense, LayerScale, Rows, Site, Total


def sizes_of(site: Site, batch_size: int) -> dict[str, float]:
    """Numbers for the symbols of `dpcompile.ir.cost`; the largest contraction decides for a reused weight."""
    sizes: dict[str, float] = dict.fromkeys(("T", "T_in", "d", "p", "K", "V", "w", "n"), 1.0)
    sizes |= {"G": 1.0, "B": float(batch_size), "P": float(math.prod(site.shape))}
    sizes["s"] = float(max(value(site.gradient).dtype.itemsize, 4))
    for term in site.terms:
        for name, number in contraction_sizes(term.contraction).items():
            sizes[name] = max(sizes[name], float(number))
    return sizes


def contraction_sizes(contraction: Contraction) -> dict[str, int]:
    """Sizes of one contraction by symbol."""
    match contraction:
        case Dense():
            return {
                "T": contraction.positions,
                "d": contraction.d,
                "p": contraction.p,
                "G": contraction.groups,
            }
        case Convolution():
            first, second, *kernel = contraction.weight_shape
            groups = contraction.geometry.groups
            taps = math.prod(kernel)
            per_group = {"d": second * taps, "p": first // groups, "G": groups, "K": taps}
            return {
                "T": contraction.positions * contraction.x.folded,
                "T_in": contraction.input_positions,
                **per_group,
            }
        case Rows():
            return {"T": contraction.positions, "V": contraction.rows, "w": contraction.width}
        case Total() | LayerScale() | ChannelScale():
            return {"n": contraction.elements}
        case _:
            return {}
