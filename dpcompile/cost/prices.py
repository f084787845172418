"""The sizes of a site's contractions as numbers for the cost formulas."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dpcompile.ir.graph import value
from dpcompile.ir.site import ChannelScale, Contraction, Convolution, Dense, LayerScale, Rows, Site, Total
from dpcompile.kernels.dense import gram_blocks


def sizes_of(site: Site, batch_size: int) -> list[dict[str, float]]:
    """Numbers for the symbols of `dpcompile.ir.cost`, one dictionary per contraction of the site."""
    names = ("T", "T_in", "d", "p", "G", "K", "V", "w", "n", "S")
    shared = dict.fromkeys(names, 1.0) | {"B": float(batch_size), "P": float(math.prod(site.shape))}
    shared["s"] = float(max(value(site.gradient).dtype.itemsize, 4))
    return [complete({**shared, **{n: float(v) for n, v in contraction_sizes(t.contraction).items()}}) for t in site.terms]


def complete(sizes: Mapping[str, float]) -> dict[str, float]:
    """With the blocks of Gram matrices that these positions are split into."""
    return {**sizes, "N": float(gram_blocks(int(sizes["T"])))}


def contraction_sizes(contraction: Contraction) -> dict[str, int]:
    """Sizes of one contraction by symbol; an image that is folded into the batch counts as positions."""
    match contraction:
        case Dense():
            return {"T": contraction.positions, "d": contraction.d, "p": contraction.p, "G": contraction.groups}
        case Convolution():
            return convolution_sizes(contraction)
        case Rows():
            return {"T": contraction.positions, "V": contraction.rows, "w": contraction.width}
        case Total() | LayerScale() | ChannelScale():
            return {"n": contraction.elements}
        case _:
            return {}


def convolution_sizes(contraction: Convolution) -> dict[str, int]:
    """d and p are per group: every tap of every input channel, and the output channels."""
    first, second, *kernel = contraction.weight_shape
    taps, groups, folded = math.prod(kernel), contraction.geometry.groups, contraction.x.folded
    positions, inputs = contraction.positions * folded, contraction.input_positions * folded
    return {"T": positions, "T_in": inputs, "d": second * taps, "p": first // groups, "G": groups, "K": taps}
