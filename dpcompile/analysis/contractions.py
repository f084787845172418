"""Recognise what a contraction node is: which operand is the input, which the output gradient, and the sizes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from dpcompile.ir.axis import Batched, Constant, Uniform
from dpcompile.ir.graph import operand_node, value
from dpcompile.ir.site import (
    ChannelScale,
    Contraction,
    Convolution,
    Dense,
    LayerScale,
    Opaque,
    Operand,
    Rows,
    Total,
)
from dpcompile.kernels.convolution import Geometry
from dpcompile.rules.rule import LAID, Result, Use, normal_dims

aten = torch.ops.aten
Recogniser = Callable[[fx.Node, Use], Contraction | None]


def operand(use: Use, node: fx.Node) -> Operand | None:
    """The layout of a per-example operand; None when it is not per example."""
    state = use.state(node)
    if isinstance(state, LAID):
        return Operand(node, state.dim, state.outer, state.inner)
    if isinstance(state, Constant) and any(map(use.has_batch, use.shape(node))):
        dim = use.axis(use.shape(node))
        return Operand(node, dim, 1, int(use.shape(node)[dim] / use.symbol))
    return None


def untransposed(node: fx.Node) -> tuple[fx.Node, bool]:
    """The matrix under a transpose, and whether there was one."""
    if node.target is aten.t.default:
        return operand_node(node, 0), True
    is_2d = node.target is aten.transpose.int and len(value(node).shape) == 2
    return (operand_node(node, 0), True) if is_2d else (node, False)


def dense(node: fx.Node, use: Use) -> Contraction | None:
    """mm(g^T, a): both matrices seen with their examples along the rows."""
    left, left_transposed = untransposed(use["self"])
    right, right_transposed = untransposed(use["mat2"])
    g, a = operand(use, left), operand(use, right)
    if g is None or a is None or g.dim != (0 if left_transposed else 1) or a.dim != (1 if right_transposed else 0):
        return None
    if (g.outer, g.inner) != (a.outer, a.inner):
        a, g = unfolded_alike(a, g)
    p, d = (int(size) for size in value(node).shape)
    return Dense(node, a, g, g.folded, d, p)


def unfolded_alike(a: Operand, g: Operand) -> tuple[Operand, Operand]:
    """Constants take their partner's folding."""
    layout = a if a.outer != 1 else g
    return Operand(a.node, a.dim, layout.outer, layout.inner), Operand(g.node, g.dim, layout.outer, layout.inner)


def grouped_dense(node: fx.Node, use: Use) -> Contraction | None:
    """bmm over groups, contracted over the examples: 'gkn,gkm->gnm' with the examples folded into k."""
    g, a = operand(use, use["self"]), operand(use, use["mat2"])
    if g is None or a is None or g.dim != 2 or a.dim != 1 or (g.outer, g.inner) != (a.outer, a.inner):
        return None
    groups, p, d = (int(size) for size in value(node).shape)
    return Dense(node, a, g, g.folded, d, p, groups, "btgi,btgo->goi")


def total(node: fx.Node, use: Use) -> Contraction | None:
    """sum over the examples and other dimensions."""
    source = use["self"]
    x, rank = operand(use, source), len(value(source).shape)
    if x is None:
        return None
    dims = normal_dims(use["dim"] if node.target is aten.sum.dim_IntList else None, rank)
    return total_over(node, use, x, tuple(dims))


def total_over(node: fx.Node, use: Use, x: Operand, dims: tuple[int, ...]) -> Total:
    """A Total with its sizes."""
    shape = tuple(int(size) for size in value(node).shape)
    elements = math.prod(int(size) for dim, size in enumerate(value(x.node).shape) if dim != x.dim) * x.folded
    return Total(node, x, dims, shape, elements)


def convolution(node: fx.Node, use: Use) -> Contraction | None:
    """Weight (output 1) or bias (output 2) gradient of a convolution."""
    x, g = operand(use, use["input"]), operand(use, use["grad_output"])
    if x is None or g is None:
        return None
    rank = len(value(x.node).shape)
    if node.args[1] == 2:
        return total_over(node, use, g, (0, *range(2, rank)))
    geometry = Geometry(
        kernel=tuple(int(size) for size in value(use["weight"]).shape[2:]), stride=spread(use["stride"], rank - 2),
        padding=spread(use["padding"], rank - 2), dilation=spread(use["dilation"], rank - 2),
        transposed=bool(use["transposed"]), output_padding=spread(use["output_padding"], rank - 2), groups=use["groups"],
    )  # fmt: skip
    positions = math.prod(int(size) for size in value(x.node if geometry.transposed else g.node).shape[2:])
    inputs = math.prod(int(size) for size in value(g.node if geometry.transposed else x.node).shape[2:])
    shape = tuple(int(size) for size in value(node).shape)
    return Convolution(node, x, g, geometry, shape, positions, inputs)


def spread(numbers: Any, count: int) -> tuple[int, ...]:
    """Convolution options per spatial dimension."""
    return tuple(numbers) if len(numbers) == count else tuple(numbers) * count


def rows(node: fx.Node, use: Use) -> Contraction | None:
    """embedding_dense_backward."""
    ids, g = operand(use, use["indices"]), operand(use, use["grad_output"])
    if ids is None or g is None:
        return None
    return rows_of(node, ids, g, use["num_weights"], use["padding_idx"])


def rows_of(node: fx.Node, ids: Operand, g: Operand, count: int, padding_idx: int) -> Rows:
    """A Rows contraction with its sizes."""
    positions = math.prod(int(size) for dim, size in enumerate(value(ids.node).shape) if dim != ids.dim) * ids.folded
    width = math.prod(int(size) for size in value(g.node).shape[len(value(ids.node).shape) :])
    return Rows(node, ids, g, positions, count, width, padding_idx)


def index_put(node: fx.Node, use: Use) -> Contraction | None:
    """table[ids] differentiated: rows of the first dimension."""
    indices = use["indices"]
    if len(indices) != 1 or indices[0] is None or not use["accumulate"]:
        return None
    ids, g = operand(use, indices[0]), operand(use, use["values"])
    if ids is None or g is None or len(value(ids.node).shape) + len(value(node).shape) - 1 != len(value(g.node).shape):
        return None
    return replace(rows_of(node, ids, g, int(value(node).shape[0]), -1), signed=True)


def index_add(node: fx.Node, use: Use) -> Contraction | None:
    """index_select of a table differentiated."""
    ids, g = operand(use, use["index"]), operand(use, use["source"])
    if ids is None or g is None or use["dim"] != 0:
        return None
    return rows_of(node, ids, g, int(value(node).shape[0]), -1)


def layer_norm(node: fx.Node, use: Use) -> Contraction | None:
    """Scale (output 1) or shift (output 2) gradient of a layer or RMS normalisation."""
    x, g = operand(use, use["input"]), operand(use, use["grad_out"])
    if x is None or g is None:
        return None
    rank, normalised = len(value(x.node).shape), tuple(int(size) for size in use["normalized_shape"])
    if node.args[1] == 2:
        return total_over(node, use, g, tuple(range(rank - len(normalised))))
    has_mean = any(a.name == "mean" for a in use.node.target._schema.arguments)  # type: ignore[union-attr]
    mean, rstd = operand(use, use["mean"]) if has_mean else None, operand(use, use["rstd"])
    if rstd is None or (has_mean and mean is None):
        return None
    elements = math.prod(int(size) for dim, size in enumerate(value(x.node).shape) if dim != x.dim) * x.folded
    return LayerScale(node, x, g, mean, rstd, normalised, elements)


def group_norm(node: fx.Node, use: Use) -> Contraction | None:
    """Scale (output 1) or shift (output 2) gradient of a group normalisation."""
    x, g = operand(use, use["input"]), operand(use, use["grad_out"])
    mean, rstd = operand(use, use["mean"]), operand(use, use["rstd"])
    if x is None or g is None or mean is None or rstd is None or x.folded != 1:
        return None
    if node.args[1] == 2:
        return total_over(node, use, g, (0, *range(2, len(value(g.node).shape))))
    return ChannelScale(node, x, g, mean, rstd, use["C"], use["C"] * use["HxW"])


RECOGNISERS: Mapping[object, Recogniser] = {
    aten.mm.default: dense,
    aten.bmm.default: grouped_dense,
    aten.sum.dim_IntList: total,
    aten.sum.default: total,
    aten.convolution_backward.default: convolution,
    aten.embedding_dense_backward.default: rows,
    aten.index_put.default: index_put,
    aten._unsafe_index_put.default: index_put,
    aten.index_add.default: index_add,
    aten.native_layer_norm_backward.default: layer_norm,
    aten.native_group_norm_backward.default: group_norm,
    **({aten._fused_rms_norm_backward.default: layer_norm} if hasattr(aten, "_fused_rms_norm_backward") else {}),
}


def recognise(node: fx.Node, states: Mapping[fx.Node, Result], symbol: Any) -> Contraction:
    """The contraction at a node that sums over examples; Opaque where no family fits."""
    call = node.args[0] if node.target is operator.getitem else node
    assert isinstance(call, fx.Node)
    use = Use(call, states, symbol)
    recogniser = RECOGNISERS.get(call.target)
    found = recogniser(node, use) if recogniser is not None else None
    if found is not None:
        return found
    operands = [operand(use, tensor) for tensor in use.tensors()]
    shape = tuple(int(size) for size in value(node).shape)
    return Opaque(node, tuple(item for item in operands if item is not None), shape)


def is_contraction(node: fx.Node, states: Mapping[fx.Node, Result]) -> bool:
    """Whether a summed value is where examples are summed (and not part of a tail)."""
    call = node.args[0] if node.target is operator.getitem else node
    assert isinstance(call, fx.Node)
    return any(isinstance(states[n], (Batched, Uniform)) for n in call.all_input_nodes if not isinstance(states[n], tuple)) or (
        sums_constant(call, states)
    )


def sums_constant(call: fx.Node, states: Mapping[fx.Node, Result]) -> bool:
    """A sum of ones over the batch (an example-independent term of the loss)."""
    return bool(call.all_input_nodes) and all(isinstance(states[n], Constant) for n in call.all_input_nodes)
