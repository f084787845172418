"""Per-example gradients of contractions, and of parameters behind any linear tail: always right, one file for all families.

`convolution_form` chooses between the ways to materialise a convolution: "unfold" (im2col and batched matrix products),
"grouped-extra" (Rochette et al. 2019: a grouped convolution of one dimension more), "grouped" (the same without the extra
dimension, so that three dimensions are covered, too), and the library's own weight gradient, of one convolution with a group for
every example ("grouped-gradient") or of one example after another ("single").
"""

from __future__ import annotations

import operator
from typing import Any, Final

import torch
from torch import Tensor, fx

from dpcompile.ir.graph import callee, integer, operand_node, size_expression, value
from dpcompile.ir.site import ChannelScale, Contraction, Convolution, Dense, LayerScale, Opaque, Rows, Total
from dpcompile.kernels import convolution, dense, embedding, extra_dimension, layout, own_gradient, scale
from dpcompile.kernels.fallback import ExampleLoop, Place, grouped_products, sum_images
from dpcompile.strategies.emitter import Emitter

CONVOLUTION_FORMS: Final = {
    "unfold": convolution.materialize_unfold,
    "grouped": convolution.materialize_grouped,
    "grouped-extra": extra_dimension.materialize_extra_dimension,
    "grouped-gradient": own_gradient.materialize_grouped_gradient,
    "single": own_gradient.materialize_single,
}
"""Kernels from operands to per-example gradients; "unfold" is that of the norm "materialize", others are called like it."""


def per_example_gradient(contraction: Contraction, emitter: Emitter, convolution_form: str = "unfold") -> fx.Node:
    """The node f[B, *shape of the contraction] of per-example gradients."""
    emitter.at(contraction.node)
    match contraction:
        case Dense(groups=1):
            products = emitter.call(dense.materialize, emitter.rows(contraction.a), emitter.rows(contraction.g))
            stacked = len(value(contraction.node).shape) == 3
            return emitter.call(torch.ops.aten.unsqueeze.default, products, 1) if stacked else products
        case Dense():
            pair = [emitter.call(layout.group_positions, o.node, o.dim, o.outer, o.inner) for o in (contraction.a, contraction.g)]
            return emitter.call(grouped_products, *pair)
        case Convolution():
            return convolution_gradient(contraction, emitter, convolution_form)
        case Rows():
            ids, g = row_operands(contraction, emitter)
            tables = emitter.call(embedding.materialize_rows, ids, g, contraction.rows, contraction.padding_idx)
            shape = tuple(map(int, value(contraction.node).shape))
            return tables if len(shape) == 2 else emitter.call(layout.shaped, tables, shape)
        case Total():
            x = contraction.x
            return emitter.call(layout.total_per_example, x.node, x.dim, x.outer, x.inner, contraction.dims, contraction.shape)
        case LayerScale():
            trailing = len(contraction.normalised)
            operands = [contraction.g, contraction.x, contraction.mean, contraction.rstd]
            nodes = [o and emitter.call(layout.sequence, o.node, o.dim, o.outer, o.inner, trailing) for o in operands]
            return emitter.call(scale.layer_scale, *nodes)
        case ChannelScale():
            operands = [contraction.g, contraction.x, contraction.mean, contraction.rstd]
            return emitter.call(scale.channel_scale, *(o.node for o in operands if o is not None))
        case Opaque():
            return opaque_gradient(contraction, emitter)


def convolution_gradient(contraction: Convolution, emitter: Emitter, form: str) -> fx.Node:
    """Per-example weight gradients; images folded into the convolution's batch are added up per example."""
    x, g = contraction.x, contraction.g
    images = emitter.call(CONVOLUTION_FORMS[form], x.node, g.node, contraction.geometry)
    return images if x.folded == 1 else emitter.call(sum_images, images, x.outer, x.inner)


def row_operands(contraction: Rows, emitter: Emitter) -> tuple[fx.Node, fx.Node]:
    """Indices int[B, T] and row gradients f[B, T, width]."""
    ids, g = contraction.ids, contraction.g
    rank = len(value(ids.node).shape)
    sequence = emitter.call(layout.index_sequence, ids.node, ids.dim, ids.outer, ids.inner)
    if contraction.signed:
        sequence = emitter.call(torch.ops.aten.remainder.Scalar, sequence, contraction.rows)
    return sequence, emitter.call(layout.row_sequence, g.node, g.dim, g.outer, g.inner, rank)


def opaque_gradient(contraction: Opaque, emitter: Emitter) -> fx.Node:
    """An unknown operation, run for one example at a time."""
    node = contraction.node
    is_item = node.target is operator.getitem
    call, index = (operand_node(node, 0), integer(node, 1)) if is_item else (node, None)
    batched = {operand.node: emitter.examples(operand) for operand in contraction.operands}
    shared = [n for n in call.all_input_nodes if n not in batched and isinstance(n.meta["val"], Tensor)]
    places = {n: i for i, n in enumerate([*batched, *shared])}

    def freeze(argument: fx.Node) -> Any:
        return Place(places[argument]) if argument in places else size_for_one(argument, emitter)

    args, kwargs = fx.node.map_arg((call.args, dict(call.kwargs)), freeze)
    loop = ExampleLoop(callee(call), args, kwargs, index, len(batched), contraction.shape)
    return emitter.call(loop, *batched.values(), *shared)


def size_for_one(node: fx.Node, emitter: Emitter) -> int:
    """A size computed from the batch size, for a batch of one example."""
    return int(size_expression(node.meta["val"]).subs(emitter.joint.symbol, 1))
