"""Operations that take parts of tensors or join them: slices, splits, concatenation, padding. All are linear."""

from __future__ import annotations

import math
from typing import Any

import sympy
import torch
from torch import fx

from dpcompile.ir.axis import SHARED, Batched, Constant, Mixes, Position, Shared, State, Summed, Uniform
from dpcompile.ir.graph import size_expression
from dpcompile.rules.families import additive_in
from dpcompile.rules.rule import LAID, Laid, Result, Rule, Use, aligned, alike, differing, moved, normal_dims, refuse_numbers
from dpcompile.rules.view import PICKS, PICKS_WAY_OUT, fixed_numbers, keeps, keeps_zero, laid

aten = torch.ops.aten


def stop_within_batch(rule: Rule) -> Rule:
    """The ends of a slice may be batch sizes only along the batch; there the rule looks at them."""

    def wrapped(use: Use) -> Result:
        shape = use.result_shape()
        return rule(use) if use.has_batch(shape[use["dim"] % len(shape)]) else fixed_numbers("start", "end")(rule)(use)

    return fixed_numbers("step")(wrapped)


def full_range(use: Use, start: Any, end: Any, step: Any, size: sympy.Expr) -> bool:
    """Whether a slice takes everything along a dimension of this size."""
    stop = end.meta["val"] if isinstance(end, fx.Node) else end
    whole = stop is None or (isinstance(stop, int) and stop >= 2**62) or size_expression(stop) == size
    return start in (None, 0) and step in (None, 1) and whole


@keeps
def slice_(use: Use) -> Result:
    """A slice within the example; along the batch only the whole of it."""
    shape = use.shape(use.first)
    state = use.state(use.first) if isinstance(use.state(use.first), Position) else laid(use)
    assert isinstance(state, (Position, *LAID))
    if is_first_of_equals(state, use) and (use["start"] or 0, use["end"], use["step"] or 1) == (0, 1, 1):
        return SHARED
    if use["dim"] % len(shape) == state.dim and not full_range(use, use["start"], use["end"], use["step"], shape[state.dim]):
        return part(use, state, size_at(use["start"], 0), use.result_shape()[state.dim])
    return state


def part(use: Use, state: Any, start: sympy.Expr, size: sympy.Expr) -> Laid:
    """Some of the whole batches that were put one behind the other, as by cat([x, y]): never a part of a batch."""
    if not isinstance(state, LAID):
        raise Mixes(PICKS, PICKS_WAY_OUT)
    block = state.inner * use.symbol
    first, count = start / block, size / block
    if use.has("step") and use["step"] not in (None, 1):
        raise Mixes(PICKS, PICKS_WAY_OUT)
    if not (first.is_Integer and count.is_Integer and first >= 0 and count > 0 and first + count <= state.outer):
        raise Mixes(PICKS, PICKS_WAY_OUT)
    return type(state)(state.dim, int(count), state.inner)


def size_at(argument: Any, default: int) -> sympy.Expr:
    """A place along the batch as an expression in the batch size."""
    given = argument.meta["val"] if isinstance(argument, fx.Node) else argument
    return size_expression(default if given is None else given)


def is_first_of_equals(state: State, use: Use) -> bool:
    """Whether the operation runs along examples that all hold the same values, of which the first stands for any."""
    here = use["dim"] % len(use.shape(use.first))
    return isinstance(state, Uniform) and (state.dim, state.outer, state.inner) == (here, 1, 1)


@keeps
def select(use: Use) -> Result:
    """One index of a dimension of the example."""
    state, dim = laid(use), use["dim"] % len(use.shape(use.first))
    if is_first_of_equals(state, use) and use["index"] == 0:
        return SHARED
    if dim == state.dim:
        raise Mixes(PICKS, PICKS_WAY_OUT)
    return moved(state, state.dim - (dim < state.dim))


@keeps_zero
def select_backward(use: Use) -> Result:
    """The adjoint of select: zeros with one slice filled."""
    state, dim = laid(use), use["dim"] % len(use.result_shape())
    return moved(state, state.dim + (dim <= state.dim))


@keeps
def unbind(use: Use) -> Result:
    """All indices of a dimension of the example, one result each."""
    state, dim = laid(use), use["dim"] % len(use.shape(use.first))
    if dim == state.dim:
        raise Mixes(PICKS, PICKS_WAY_OUT)
    return (moved(state, state.dim - (dim < state.dim)),) * len(use.node.meta["val"])


def split(use: Use) -> Result:
    """Pieces along a dimension of the example."""
    state, place = use.state(use.first), sympy.Integer(0)
    if not isinstance(state, LAID) or use["dim"] % len(use.shape(use.first)) != state.dim:
        return (state,) * len(use.node.meta["val"])
    parts = []
    for index in range(len(use.node.meta["val"])):
        size = use.result_shape(index)[state.dim]
        parts.append(part(use, state, place, size))
        place += size
    return tuple(parts)


def cat(use: Use) -> Result:
    """Concatenation within the example; along the batch only of whole batches (as outer blocks)."""
    parts = [(use.state(node), use.shape(node)) for node in use["tensors"]]
    found = {(s.dim, s.outer, s.inner) for s, _ in parts if isinstance(s, LAID)}
    if not found:
        states = {type(state) for state, _ in parts}
        values = {state.value for state, _ in parts if isinstance(state, Constant)}
        if states == {Constant} and len(values) == 1 and not math.isnan(values.pop()):
            return parts[0][0]
        axis, sizes = use["dim"] % len(use.result_shape()), [shape for _, shape in parts]
        if not states <= {Constant, Shared} or any(use.has_batch(shape[axis]) for shape in sizes):
            raise Mixes("something is appended to the batch as if it were an example")
        return alike(use, use.result_shape())
    is_batched = any(isinstance(state, Batched) for state, _ in parts)
    like: type[Laid] = Batched if is_batched else Uniform
    dim, outer, inner = next(iter(found))
    shape, is_along = use.result_shape(), use["dim"] % len(use.result_shape()) == dim
    several = {(d, i) for d, _, i in found} if is_along else found
    if len(several) > 1 or any(isinstance(state, (Summed, Position)) for state, _ in parts):
        raise Mixes("tensors whose examples lie along different axes are concatenated")
    if not is_along:
        return like(dim, outer, inner)
    batches = [sizes[dim] / (use.symbol * inner) for _, sizes in parts if len(sizes) == len(shape)]
    if all(isinstance(state, (*LAID, Constant)) for state, _ in parts) and all(count.is_Integer for count in batches):
        return like(dim, int(shape[dim] / (use.symbol * inner)), inner)
    raise Mixes("something is appended to the batch as if it were an example")


def stack(use: Use) -> Result:
    """Concatenation along a new dimension, which is never the examples'."""
    refuse_numbers(use)
    parts = [(use.state(node), use.shape(node)) for node in use["tensors"]]
    same = len({state for state, _ in parts}) == 1 and isinstance(parts[0][0], Constant) and not math.isnan(parts[0][0].value)
    state = parts[0][0] if same else differing(use, aligned(use, parts, parts[0][1]), parts[0][1])
    dim = use["dim"] % len(use.result_shape())
    return moved(state, state.dim + (dim <= state.dim)) if isinstance(state, LAID) else state


@keeps
def pad(use: Use) -> Result:
    """Padding of the example's own dimensions."""
    state, rank = laid(use), len(use.result_shape())
    amounts = use["pad"]
    if any(amounts[2 * (rank - 1 - state.dim) : 2 * (rank - state.dim)]):
        raise Mixes("the batch is padded")
    return state


def pad_constant(use: Use) -> Result:
    """Constant padding is linear when the constant is zero."""
    state = use.state(use.first)
    if isinstance(state, Summed) and use["value"] != 0:
        raise Mixes("a number is appended to a sum over the batch")
    if isinstance(state, Constant) and use["value"] != state.value:
        return alike(use, use.result_shape())
    return pad(use)


def slice_scatter(use: Use) -> Result:
    """Writing a slice of the example's dimensions."""
    refuse_numbers(use, ("start", "end"))
    shape = use.result_shape()
    operands = [(use.state(node), use.shape(node)) for node in use.tensors()]
    state = differing(use, aligned(use, operands, shape), shape)
    if isinstance(state, LAID) and use["dim"] % len(shape) == state.dim and not full_range(
            use, use["start"], use["end"], use["step"], shape[state.dim]):  # fmt: skip
        raise Mixes(PICKS, PICKS_WAY_OUT)
    return state


def select_scatter(use: Use) -> Result:
    """Writing one index of a dimension of the example."""
    refuse_numbers(use)
    shape, dim = use.result_shape(), use["dim"] % len(use.result_shape())
    source, sizes = use.state(use["src"]), use.shape(use["src"])
    source = moved(source, source.dim + (dim <= source.dim)) if isinstance(source, LAID) else source
    operands = [(use.state(use["self"]), shape), (source, [*sizes[:dim], sympy.Integer(1), *sizes[dim:]])]
    if use.has_batch(shape[dim]):
        raise Mixes(PICKS, PICKS_WAY_OUT)
    return differing(use, aligned(use, operands, shape), shape)


@keeps_zero
def diagonal_backward(use: Use) -> Result:
    """The adjoint of diagonal, and diag_embed: zeros with a diagonal of two dimensions filled from the last one."""
    state, rank = laid(use), len(use.result_shape())
    if state.dim == len(use.shape(use.first)) - 1:
        raise Mixes("the diagonal pairs examples with positions")
    return moved(state, off_diagonal(use, rank)[state.dim])


def off_diagonal(use: Use, rank: int) -> list[int]:
    """The dimensions that a diagonal leaves alone, in order."""
    dims = normal_dims([use["dim1"], use["dim2"]], rank)
    return [dim for dim in range(rank) if dim not in dims]


def diagonal_scatter(use: Use) -> Result:
    """Writing a diagonal of two dimensions of the example."""
    refuse_numbers(use)
    shape, source = use.result_shape(), use.state(use["src"])
    free, sizes = off_diagonal(use, len(shape)), use.shape(use["src"])
    if isinstance(source, LAID):
        if source.dim == len(sizes) - 1:
            raise Mixes("the diagonal pairs examples with positions")
        source = moved(source, free[source.dim])
    if any(use.has_batch(shape[dim]) for dim in range(len(shape)) if dim not in free):
        raise Mixes("the diagonal pairs examples with positions")
    laid_like = [sizes[free.index(dim)] if dim in free else sympy.Integer(1) for dim in range(len(shape))]
    return differing(use, aligned(use, [(use.state(use["self"]), shape), (source, laid_like)], shape), shape)


@keeps_zero
def unfold_backward(use: Use) -> Result:
    """The adjoint of sliding windows, which lie along a last dimension."""
    if use["dim"] % len(use.result_shape()) == laid(use).dim:
        raise Mixes("windows slide over the batch")
    return laid(use)


def slice_backward(use: Use) -> Result:
    """The adjoint of slice. One number in some of several batches is as if each of those had it, between the others' zeros."""
    state, dim = use.state(use.first), use["dim"] % len(use.result_shape())
    if isinstance(state, Constant) and state.value != 0 and use.has_batch(use.result_shape()[dim]):
        return filled(use, Uniform(dim, use.folded(use.shape(use.first)[dim]), 1))
    return placed_slice(use)


@keeps_zero
def placed_slice(use: Use) -> Result:
    """Zeros with the gradient in place."""
    state = laid(use)
    if use["dim"] % len(use.result_shape()) == state.dim and not full_range(
            use, use["start"], use["end"], use["step"], use.result_shape()[state.dim]):  # fmt: skip
        return filled(use, state)
    return state


def filled(use: Use, state: Laid) -> Laid:
    """Zeros with some whole batches filled: the gradient of `part`, which holds each example's own zeros besides."""
    whole = use.result_shape()[state.dim] / (state.inner * use.symbol)
    if not whole.is_Integer:
        raise Mixes(PICKS, PICKS_WAY_OUT)
    part(use, type(state)(state.dim, int(whole), state.inner), size_at(use["start"], 0), use.shape(use.first)[state.dim])
    return Batched(state.dim, int(whole), state.inner)


RULES: dict[object, Rule] = {
    aten.slice.Tensor: stop_within_batch(slice_), aten.slice_backward.default: stop_within_batch(slice_backward),
    aten.select.int: fixed_numbers("index")(select), aten.select_backward.default: fixed_numbers("index")(select_backward),
    aten.unbind.int: unbind, aten.split.Tensor: split, aten.split_with_sizes.default: split,
    aten.unsafe_split.Tensor: split, aten.unsafe_split_with_sizes.default: split,
    aten.cat.default: additive_in("tensors")(cat), aten.stack.default: additive_in("tensors")(stack),
    aten.constant_pad_nd.default: fixed_numbers("pad", "value")(pad_constant),
    aten.slice_scatter.default: additive_in("self", "src")(stop_within_batch(slice_scatter)),
    aten.diagonal_backward.default: fixed_numbers("offset")(diagonal_backward),
    aten.diag_embed.default: fixed_numbers("offset")(diagonal_backward),
    aten.diagonal_scatter.default: additive_in("self", "src")(diagonal_scatter),
    aten.unfold_backward.default: unfold_backward,
    aten.select_scatter.default: additive_in("self", "src")(select_scatter),
}  # fmt: skip
