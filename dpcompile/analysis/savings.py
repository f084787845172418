"""What forming per-example gradients takes, to say what training a part of the parameters saves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dpcompile.ir.graph import value
from dpcompile.ir.site import Convolution, Dense, Site


def gradient_work(sites: Sequence[Site]) -> tuple[int, int]:
    """Per example: multiplications in matrix products and convolutions, and entries of all contractions."""
    contractions = {term.contraction.node: term.contraction for site in sites for term in site.terms}
    entries = {node: math.prod(int(size) for size in value(node).shape) for node in contractions}
    products = sum(
        entries[node] * contraction.positions
        for node, contraction in contractions.items()
        if isinstance(contraction, (Dense, Convolution))
    )
    return products, sum(entries.values())


def savings(before: tuple[int, int], after: tuple[int, int]) -> str:
    """How much of it is left, in words."""
    products, entries = (now / max(was, 1) for was, now in zip(before, after, strict=True))
    return f"the trained parts take {products:.0%} of the products of per-example gradients and {entries:.0%} of their entries"
