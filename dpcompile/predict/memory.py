"""Peak memory of an emitted graph: a walk over the order in which it runs, with what every node allocates and frees.

Counted is what a step needs beyond the model and the batch: results (views count with what they view), memory inside a
kernel, and workspaces that stay between steps. A result is freed behind its last use, as the generated code does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from dpcompile.analysis.aliases import Aliases
from dpcompile.ir.graph import JointGraph, value
from dpcompile.kernels import (
    convolution,
    dense,
    embedding,
    extra_dimension,
    masked,
    own_gradient,
    projection,
    reduction,
    row_products,
    scale,
)
from dpcompile.kernels.copies import Copies
from dpcompile.kernels.geometry import Geometry
from dpcompile.kernels.workspace import UNFOLDED, Workspace
from dpcompile.predict.sizes import Shape, operands, results


@dataclass(frozen=True)
class Memory:
    """Bytes at every node, in the order in which they run, and what stays between steps.

    largest: at the peak, the bytes of every live result, and what the running node's kernel works in.
    """

    at: dict[fx.Node, float]
    kept: float
    largest: dict[fx.Node, float]

    @property
    def peak(self) -> float:
        """The largest of them, with what stays."""
        return max(self.at.values(), default=0.0) + self.kept


def memory(joint: JointGraph, batch_size: int) -> Memory:
    """The walk at one batch size."""
    aliases = Aliases(joint)
    size: dict[fx.Node, float] = {}
    held: set[fx.Node] = set()
    kept = 0.0
    for node in joint.graph.nodes:
        owner = aliases.class_of(node)
        if node.op != "call_function":
            held.add(owner)
        elif isinstance(node.target, Workspace):
            kept += bytes_of(node, batch_size)
            held.add(owner)
        size[owner] = max(size.get(owner, 0.0), bytes_of(node, batch_size))
    found, largest = walk(joint, aliases, size, held, batch_size)
    return Memory(found, kept, largest)


def walk(
    joint: JointGraph, aliases: Aliases, size: dict[fx.Node, float], held: set[fx.Node], batch_size: int
) -> tuple[dict[fx.Node, float], dict[fx.Node, float]]:
    """Live bytes while each node runs, and whose they are at the peak; what is `held` belongs to the caller or a workspace."""
    live: dict[fx.Node, float] = {}
    found: dict[fx.Node, float] = {}
    largest: dict[fx.Node, float] = {}
    for node in joint.graph.nodes:
        owner = aliases.class_of(node)
        if node.op == "call_function" and owner not in held:
            live[owner] = size[owner]
        working = inside(node, batch_size) + parts(node, batch_size)
        found[node] = sum(live.values()) + working
        if found[node] > sum(largest.values()):
            largest = {**live, node: live.get(node, 0.0) + working}
        for gone in [other for other in live if aliases.last[other] <= aliases.place[node]]:
            del live[gone]
    return found, largest


def bytes_of(node: fx.Node, batch_size: int) -> float:
    """Memory of a node's own results; those of several results belong to the nodes that take them out."""
    if isinstance(node.meta.get("val"), (tuple, list)):
        return 0.0
    return float(sum(shape.bytes for shape in results(node, batch_size)))


def parts(node: fx.Node, batch_size: int) -> float:
    """Memory of several results while they are computed; later it belongs to the nodes that take them out."""
    several = isinstance(node.meta.get("val"), (tuple, list)) and node.op == "call_function"
    return float(sum(shape.bytes for shape in results(node, batch_size))) if several else 0.0


def inside(node: fx.Node, batch_size: int) -> float:
    """Memory that a kernel allocates and frees before it returns."""
    target = node.target.kernel if isinstance(node.target, Workspace) else node.target
    if isinstance(target, Copies):  # the ordinary step's own, as if its results were no larger
        return memory(target.step, batch_size).peak
    declared = INSIDE.get(target) if not isinstance(target, str) else None
    return declared(node, batch_size) if declared is not None else 0.0


def narrower(node: fx.Node, batch_size: int) -> float:
    """A scaled copy of the smaller operand."""
    return float(min(shape.bytes for shape in operands(node, batch_size)[:2]))


def tiles(node: fx.Node, batch_size: int) -> float:
    """Three blocks of Gram matrices."""
    a = operands(node, batch_size)[0]
    positions = a.sizes[2] if node.target is convolution.sqnorm_gram_unfolded else a.sizes[1]
    side = -(-positions // dense.gram_blocks(positions))
    return 3.0 * 4 * min(a.sizes[0] * side**2, max(2 * dense.WORKSPACE, side**2))


def one_workspace(node: fx.Node, batch_size: int) -> float:
    """Some examples' gradients."""
    a, g = operands(node, batch_size)[:2]
    return 4.0 * min(a.sizes[0] * a.sizes[-1] * g.sizes[-1], max(dense.FRESH, a.sizes[-1] * g.sizes[-1]))


def sorted_rows(node: fx.Node, batch_size: int) -> float:
    """Segment sums, of many positions in float64, and three index tensors."""
    ids, g = operands(node, batch_size)[:2]
    return g.elements * (4.0 if g.sizes[1] <= embedding.MOST_ROWS else 12.0) + 3.0 * ids.elements * 8


def scaled_rows_and_table(node: fx.Node, batch_size: int) -> float:
    """The scaled rows; where there are many positions the table in float64, too, and a piece of the rows unless it is gone when
    the result, no smaller, is made."""
    g = operands(node, batch_size)[1]
    scaled, table = max(g.bytes, 4.0 * g.elements), math.prod(map(int, value(node).shape))
    if g.sizes[1] <= embedding.MOST_ROWS:
        return scaled
    piece = 8.0 * g.elements / g.sizes[1] * embedding.MOST_ROWS
    return scaled + 8.0 * table + max(piece - 4.0 * table, 0.0)


def geometry_of(node: fx.Node) -> Geometry:
    """How a convolution's kernel lies on its images."""
    return next(argument for argument in node.args if isinstance(argument, Geometry))


def contraction(node: fx.Node, batch_size: int) -> float:
    """What the way that `convolution.contract` takes for these sizes forms before its result."""
    x, g = operands(node, batch_size)[:2]
    (weight,) = results(node, batch_size)
    how = geometry_of(node)
    windowed, other = (g, x) if how.transposed else (x, g)
    positions = math.prod(other.sizes[2:])
    way = convolution.way_to_contract(how, weight.sizes, positions)
    if way == "depthwise":
        return 2.0 * x.sizes[0] * weight.bytes
    if way == "unfold":
        unfolded = 4.0 * windowed.sizes[0] * windowed.sizes[1] * how.taps * positions
        return (0.0 if how.is_pointwise else unfolded) + min(unfolded, other.bytes)
    copies = 2.0 * narrower(node, batch_size) + padded(node, x, 1)  # an operand scaled, and one in the library's layout
    return copies + 3.0 * weight.bytes  # its stand-in, the library's layout, and on the way to torch's


def unfolded_contraction(node: fx.Node, batch_size: int) -> float:
    """A scaled operand; where there are groups, every example's gradient, of an operand in another order if positions are few."""
    if geometry_of(node).groups == 1:
        return narrower(node, batch_size)
    unfolded, (weight,) = operands(node, batch_size)[0], results(node, batch_size)
    copied = unfolded.bytes if unfolded.sizes[2] <= convolution.FEW_POSITIONS else 0.0
    return 4.0 * unfolded.sizes[0] * math.prod(weight.sizes) + copied


def two_operands(node: fx.Node, batch_size: int) -> float:
    """A product of the operands' size."""
    return float(operands(node, batch_size)[0].bytes)


def own_result(node: fx.Node, batch_size: int) -> float:
    """The result before it is brought into order."""
    return float(sum(shape.bytes for shape in results(node, batch_size)))


def unfolded_chunks(node: fx.Node, batch_size: int) -> float:
    """Some examples' windows, beside those of the examples before them."""
    x, g = operands(node, batch_size)[:2]
    how = geometry_of(node)
    windowed, other = (g, x) if how.transposed else (x, g)
    one = windowed.sizes[1] * how.taps * math.prod(other.sizes[2:])
    step = max(1, UNFOLDED // max(1, one))
    return 0.0 if how.is_pointwise else 4.0 * one * min(x.sizes[0], 2 * step)


def squares_and_mask(node: fx.Node, batch_size: int) -> float:
    """Squares of both operands, and the mask, in float64."""
    return 8.0 * sum(operand.elements for operand in operands(node, batch_size)[:3])


def two_of_rows(node: fx.Node, batch_size: int) -> float:
    """Magnitudes of the output gradients, and their products with an output."""
    return 8.0 * operands(node, batch_size)[0].elements


def one_plane(node: fx.Node, batch_size: int) -> float:
    """A product of two values of the weight's shape."""
    how = next(argument for argument in node.args if isinstance(argument, projection.Recipe))
    return 4.0 * how.rows * how.columns


def in_other_layouts(node: fx.Node, batch_size: int) -> float:
    """The result in the library's layout and on its way to torch's; in three dimensions several times more."""
    how = geometry_of(node)
    x = operands(node, batch_size)[0]
    return (2.0 if len(how.kernel) < 3 else 6.0) * own_result(node, batch_size) + padded(node, x, 1)


def one_gradient(node: fx.Node, batch_size: int) -> float:
    """The weight gradient of one example three times, for the same reason; in three dimensions its input unfolded, too."""
    how = geometry_of(node)
    x, g = operands(node, batch_size)[:2]
    windowed, other = (g, x) if how.transposed else (x, g)
    unfolded = windowed.sizes[1] * how.taps * math.prod(other.sizes[2:]) if len(how.kernel) == 3 else 0
    return 4.0 * (3 * x.sizes[1] * g.sizes[1] // how.groups * how.taps + unfolded) + padded(node, x, max(x.sizes[0], 1))


def padded(node: fx.Node, x: Shape, parts: int) -> float:
    """A part of x with the padding beyond half a kernel around it (`kernels.geometry.with_half_padding`); nothing where there is
    none, or on a GPU."""
    over = geometry_of(node).beyond_half()
    if not any(over) or value(node).device.type != "cpu":
        return 0.0
    sides = (size + 2 * more for size, more in zip(x.sizes[2:], over, strict=True))
    return 4.0 * x.sizes[0] * x.sizes[1] * math.prod(sides) / parts


INSIDE: dict[Callable[..., Any], Callable[[fx.Node, int], float]] = {
    dense.contract: narrower,
    convolution.contract: contraction,
    convolution.materialize_unfold: unfolded_chunks,
    convolution.contract_unfolded: unfolded_contraction,
    convolution.materialize_grouped: own_result,
    extra_dimension.materialize_extra_dimension: own_result,
    own_gradient.materialize_grouped_gradient: in_other_layouts,
    own_gradient.materialize_single: one_gradient,
    own_gradient.sqnorm_single: one_gradient,
    masked.sqnorm_masked: squares_and_mask,
    dense.sqnorm_gram: tiles,
    convolution.sqnorm_gram_unfolded: tiles,
    dense.sqnorm_materialized: one_workspace,
    embedding.sqnorm_rows: sorted_rows,
    embedding.contract_rows: scaled_rows_and_table,
    scale.layer_scale: two_operands,
    scale.channel_scale: two_operands,
    row_products.projected: two_of_rows,
    projection.coefficients: one_plane,
    projection.vector: one_plane,
    row_products.window_lengths: two_operands,
    reduction.sqnorm: lambda node, batch_size: operands(node, batch_size)[0].elements / reduction.CHUNK * 12,
}
"""Declared workspaces of kernels, in bytes."""
