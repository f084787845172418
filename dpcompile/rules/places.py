"""Writes at indices that all examples share, and elements by their place in a whole tensor."""

from __future__ import annotations

import torch

from dpcompile.ir.axis import SUMMED, Mixes, Shared, Summed
from dpcompile.rules.families import additive_in, linear_in
from dpcompile.rules.index import is_zero_table
from dpcompile.rules.rule import LAID, Result, Rule, Use, aligned, alike, differing, is_fixed, refuse_numbers

aten = torch.ops.aten


def index_write(use: Use) -> Result:
    """Writing rows of every example at indices that all examples share."""
    refuse_numbers(use)
    dim = use["dim"] % max(len(use.shape(use["self"])), 1)
    if not is_fixed(use, use["index"]):
        raise Mixes(
            "an index that differs per example says where values are written", "use scatter along the example's own dimension"
        )
    operands = [(use.state(node), use.shape(node)) for node in use.tensors() if node is not use["index"]]
    if any(shape and use.has_batch(shape[dim]) for _, shape in operands):
        raise Mixes("values are written across examples")
    return differing(use, aligned(use, operands, use.result_shape()), use.result_shape())


def take(use: Use) -> Result:
    """Elements of a shared tensor by their place in it."""
    refuse_numbers(use)
    index = use.state(use["index"])
    if not is_fixed(use, use["self"]):
        raise Mixes("take counts elements over the whole batch", "use gather or take_along_dim within the example")
    if isinstance(index, Summed):
        raise Mixes("a sum over the batch is used as an index")
    return index if isinstance(index, LAID) else alike(use, use.result_shape())


def put(use: Use) -> Result:
    """Adding elements into zeros by their place: the adjoint of take."""
    refuse_numbers(use)
    laid = {state for state in (use.state(use["index"]), use.state(use["source"])) if isinstance(state, LAID)}
    places = {(state.dim, state.outer, state.inner) for state in laid}
    is_laid = isinstance(use.state(use["index"]), LAID) and not isinstance(use.state(use["source"]), (Shared, Summed))
    if is_laid and len(places) == 1 and is_zero_table(use) and use["accumulate"] and (
            len(use.shape(use["index"])) == len(use.shape(use["source"]))):  # fmt: skip
        return SUMMED
    raise Mixes("put counts elements over the whole batch", "use scatter or index_put within the example")


RULES: dict[object, Rule] = {
    aten.index_copy.default: additive_in("self", "source")(index_write),
    aten.index_fill.int_Scalar: additive_in("self", "value")(index_write),
    aten.index_fill.int_Tensor: additive_in("self", "value")(index_write),
    aten.index_reduce.default: index_write,
    aten.take.default: linear_in("self")(take),
    aten.put.default: put,
}
