"""The price of this package's kernels as nodes of a graph: the strategies' formulas at the sizes of the operands."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import fx

from dpcompile.cost.prices import complete
from dpcompile.ir.cost import Work
from dpcompile.kernels import (
    convolution,
    dense,
    embedding,
    extra_dimension,
    layout,
    masked,
    own_gradient,
    projection,
    reduction,
    row_products,
    scale,
)
from dpcompile.kernels.geometry import Geometry
from dpcompile.kernels.workspace import Workspace
from dpcompile.predict.sizes import Shape, operands, results
from dpcompile.strategies import cross, fused, gram, materialize, outer, projected, rows, sums
from dpcompile.strategies import masked as masked_outer
from dpcompile.strategies.extra_dimension import EXTRA
from dpcompile.strategies.own_gradient import FUSED_SINGLE_WORK, GROUPED_GRADIENT_WORK, SINGLE_WORK

Sizes = dict[str, float]


def pair(a: Shape, g: Shape) -> Sizes:
    """a: [B, T, d] or [B, d], g: [B, T, p] or [B, p]."""
    d, p = a.sizes[-1], g.sizes[-1]
    return {"B": a.sizes[0], "T": a.sizes[1] if len(a.sizes) == 3 else 1, "d": d, "p": p, "P": d * p}


def rows_of(a: Shape, g: Shape) -> Sizes:
    """a: [B, d], g: [B, p]."""
    return {"B": a.sizes[0], "d": math.prod(a.sizes[1:]), "p": math.prod(g.sizes[1:])}


def stacked(x: Shape) -> Sizes:
    """[B, *parameter]."""
    return {"B": x.sizes[0], "P": math.prod(x.sizes[1:])}


def lookup(ids: Shape, g: Shape) -> Sizes:
    """ids: [B, T], g: [B, T, w]."""
    return {"B": ids.sizes[0], "T": ids.sizes[1], "w": g.sizes[2]}


def of_table(node: fx.Node, batch_size: int, ids: Shape, g: Shape) -> Sizes:
    """The same with the table, the number of whose rows is an argument."""
    count = next(float(argument) for argument in node.args if isinstance(argument, int))
    return {**lookup(ids, g), "V": count, "P": count * g.sizes[2]}


def images(node: fx.Node, batch_size: int, x: Shape, g: Shape) -> Sizes:
    """x: [B, C, *], g: [B, D, *] and a geometry."""
    how = next(argument for argument in node.args if isinstance(argument, Geometry))
    windowed, other = (g, x) if how.transposed else (x, g)
    C, D, positions = windowed.sizes[1], other.sizes[1], math.prod(other.sizes[2:])
    return convolution_sizes(how, x.sizes[0], C, D, positions, math.prod(windowed.sizes[2:]))


def convolution_sizes(how: Geometry, batch: int, C: int, D: int, positions: int, inputs: int) -> Sizes:
    """Sizes per group of C windowed and D other channels."""
    d, p = C // how.groups * how.taps, D // how.groups
    return {"B": batch, "T": positions, "T_in": inputs, "d": d, "p": p, "G": how.groups, "K": how.taps, "P": D * d}


def unfolded(node: fx.Node, batch_size: int, columns: Shape, g: Shape) -> Sizes:
    """columns: [B, C * K, T], g: [B, D, *]."""
    how = next(argument for argument in node.args if isinstance(argument, Geometry))
    C = columns.sizes[1] // how.taps
    return convolution_sizes(how, columns.sizes[0], C, g.sizes[1], columns.sizes[2], columns.sizes[2])


def unfolding(node: fx.Node, batch_size: int, x: Shape) -> Sizes:
    """One operand to [B, C * K, T]."""
    how = next(argument for argument in node.args if isinstance(argument, Geometry))
    (columns,) = results(node, batch_size)
    sizes = convolution_sizes(how, x.sizes[0], x.sizes[1], how.groups, columns.sizes[2], math.prod(x.sizes[2:]))
    return {**sizes, "B": 0.0} if how.is_pointwise else sizes


def reduced(node: fx.Node, batch_size: int, x: Shape) -> Sizes:
    """A sum within each example."""
    (result,) = results(node, batch_size)
    return {"B": result.sizes[0], "n": x.elements / max(result.sizes[0], 1), "P": math.prod(result.sizes[1:])}


def scales(node: fx.Node, batch_size: int, g: Shape, *others: Shape) -> Sizes:
    """The scale of a normalisation."""
    return reduced(node, batch_size, g)


def tied(node: fx.Node, batch_size: int, ids: Shape, b: Shape, a: Shape, g: Shape) -> Sizes:
    """A lookup and a matrix product."""
    return {"B": ids.sizes[0], "S": ids.sizes[1], "T": a.sizes[1], "w": b.sizes[2]}


def of_recipe(node: fx.Node, batch_size: int, like: Shape) -> Sizes:
    """A weight's rows and columns, as the recipe of its projection says."""
    how = next(argument for argument in node.args if isinstance(argument, projection.Recipe))
    return {"d": how.columns, "p": how.rows}


def elements(g: Shape) -> Sizes:
    """Output gradients in any layout."""
    return {"B": g.sizes[0], "T": g.elements / max(g.sizes[0], 1)}


def per_window(node: fx.Node, batch_size: int, x: Shape) -> Sizes:
    """One operand to a number per window."""
    how = next(argument for argument in node.args if isinstance(argument, Geometry))
    (windows,) = results(node, batch_size)
    return convolution_sizes(how, x.sizes[0], x.sizes[1], how.groups, windows.sizes[2], math.prod(x.sizes[2:]))


def per_row(a: Shape) -> Sizes:
    """a: [B, T, d]."""
    return {"B": a.sizes[0], "T": a.sizes[1], "d": a.sizes[2]}


def under_windows(node: fx.Node, batch_size: int, x: Shape, vector: Shape) -> Sizes:
    """x: [B, C, *], a functional [O, n], and a geometry."""
    how = next(argument for argument in node.args if isinstance(argument, Geometry))
    (found,) = results(node, batch_size)
    return convolution_sizes(how, x.sizes[0], x.sizes[1], vector.sizes[0], found.sizes[2], math.prod(x.sizes[2:]))


def under_rows(a: Shape, vector: Shape) -> Sizes:
    """a: [B, T, d] and a functional [O, d]."""
    return {**per_row(a), "T_in": a.sizes[1], "p": vector.sizes[0], "P": vector.elements}


Measure = Callable[..., Sizes]
PRICES: dict[Callable[..., Any], tuple[Work, int, Measure]] = {
    dense.sqnorm_outer: (outer.WORK, 2, rows_of),
    masked.sqnorm_masked: (masked_outer.WORK, 2, rows_of),
    dense.sqnorm_gram: (gram.DENSE_COST.work[0], 2, pair),
    dense.materialize: (materialize.DENSE, 2, pair),
    dense.sqnorm_materialized: (fused.DENSE, 2, pair),
    dense.contract: (sums.PRODUCT, 2, pair),
    reduction.sqnorm: (materialize.NORM, 1, stacked),
    reduction.weighted_sum: (sums.WEIGHTED, 1, stacked),
    reduction.weighted_sums: (sums.WEIGHTED, 1, stacked),
    layout.total_per_example: (materialize.REDUCED, 1, reduced),
    scale.layer_scale: (materialize.LAYER_SCALED, 4, scales),
    scale.channel_scale: (materialize.CHANNEL_SCALED, 4, scales),
    embedding.sqnorm_rows: (rows.WORK, 2, lookup),
    embedding.contract_rows: (sums.SCATTER, 2, of_table),
    embedding.materialize_rows: (materialize.TABLE, 2, of_table),
    embedding.cross_rows_dense: (cross.MIXED_PAIR, 4, tied),
    convolution.unfold: (gram.UNFOLD.work[0], 1, unfolding),
    convolution.sqnorm_gram_unfolded: (gram.UNFOLDED_COST.work[0], 2, unfolded),
    convolution.materialize_unfold: (materialize.UNFOLD, 2, images),
    convolution.materialize_grouped: (materialize.GROUPED, 2, images),
    extra_dimension.materialize_extra_dimension: (EXTRA, 2, images),
    own_gradient.materialize_grouped_gradient: (GROUPED_GRADIENT_WORK, 2, images),
    own_gradient.materialize_single: (SINGLE_WORK, 2, images),
    own_gradient.sqnorm_single: (FUSED_SINGLE_WORK, 2, images),
    convolution.sqnorm_materialized: (fused.CONVOLUTION, 2, images),
    convolution.contract_unfolded: (sums.UNFOLDED_PRODUCT, 2, unfolded),
    convolution.contract: (sums.WEIGHT_GRADIENT, 2, images),
    projection.coefficients: (projected.COEFFICIENTS, 1, of_recipe),
    projection.vector: (projected.COEFFICIENTS, 1, of_recipe),
    row_products.scaled_rows: (projected.SCALED, 1, elements),
    row_products.window_lengths: (projected.LENGTHS, 1, per_window),
    row_products.window_totals: (projected.TOTALS, 1, per_window),
    row_products.row_lengths: (projected.ROW_LENGTHS, 1, per_row),
    row_products.row_totals: (projected.ROW_TOTALS, 1, per_row),
    row_products.applied: (projected.APPLIED, 2, under_windows),
    row_products.applied_dense: (projected.APPLIED, 2, under_rows),
    row_products.projected: (projected.INNER, 1, elements),
}
"""Formula, number of operands that say the sizes, and how they say them."""

NEEDS_NODE = (of_table, images, unfolded, unfolding, reduced, scales, tied, of_recipe, per_window, under_windows)


def chosen_form(work: Work, node: fx.Node) -> Work:
    """Grouped convolutions and weight gradients of depthwise layers have a price of their own."""
    how = next((argument for argument in node.args if isinstance(argument, Geometry)), None)
    weights = work in (materialize.GROUPED, sums.WEIGHT_GRADIENT)
    if how is None or not weights or how.groups == 1:
        return work
    channels = [shape.sizes[1] for shape in operands(node, 1)[:2]]
    return materialize.DEPTHWISE if channels == [how.groups, how.groups] else work


def kernel_work(node: fx.Node, batch_size: int) -> Work | None:
    """The price of a node that is one of these kernels; None for every other node."""
    target = node.target.kernel if isinstance(node.target, Workspace) else node.target
    if isinstance(target, str) or target not in PRICES:
        return None
    work, count, measure = PRICES[target]
    work = chosen_form(work, node)
    shapes = operands(node, batch_size)[:count]
    found = measure(node, batch_size, *shapes) if measure in NEEDS_NODE else measure(*shapes)
    names = ("T", "T_in", "d", "p", "G", "K", "V", "w", "n", "S", "P")
    sizes = {**dict.fromkeys(names, 1.0), "s": float(max(shapes[0].itemsize, 4)), **found}
    return work.at(complete({name: float(size) for name, size in sizes.items()}))
