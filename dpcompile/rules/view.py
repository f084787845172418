"""Operations that rearrange: views, permutations, slices, concatenation, padding. All are linear."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch import fx

from dpcompile.ir.axis import Batched, BatchSize, Constant, Mixes, Position, Shared, Summed, Uniform
from dpcompile.ir.graph import size_expression
from dpcompile.rules.rule import (
    LAID,
    Laid,
    Result,
    Rule,
    Use,
    additive_in,
    aligned,
    alike,
    before_examples,
    differing,
    moved,
    normal_dims,
    refuse_numbers,
)  # fmt: skip

aten = torch.ops.aten
PICKS = "examples are picked by their place in the batch"
PICKS_WAY_OUT = "treat all examples alike; select within the example's own dimensions"


def keeps(rule: Rule) -> Rule:
    """Shared, Constant and Summed operands keep their state under any rearrangement within one tensor."""

    def wrapped(use: Use) -> Result:
        state = use.state(use.node.args[0])
        if not isinstance(state, (Shared, Constant, Summed)):
            return rule(use)
        fakes = use.node.meta["val"]
        return state if isinstance(fakes, torch.Tensor) else (state,) * len(fakes)

    return wrapped


def keeps_zero(rule: Rule) -> Rule:
    """As `keeps` for operations that fill up with zeros: a constant other than zero does not stay one."""

    def wrapped(use: Use) -> Result:
        state = use.state(use.node.args[0])
        if isinstance(state, Constant) and state.value != 0:
            return alike(use, use.result_shape())
        return keeps(rule)(use)

    return wrapped


def fixed_numbers(*names: str) -> Callable[[Rule], Rule]:
    """These arguments are values, not sizes, and must not be computed from the batch size."""

    def wrap(rule: Rule) -> Rule:
        def wrapped(use: Use) -> Result:
            found: list[fx.Node] = []
            fx.node.map_arg([use[name] for name in names], found.append)
            if any(isinstance(use.states[node], BatchSize) for node in found):
                raise Mixes("the batch size is used as a value, so every example's result depends on how many there are",
                            "use a number that does not depend on the batch")  # fmt: skip
            return rule(use)

        return wrapped

    return wrap


def stop_within_batch(rule: Rule) -> Rule:
    """The stop of a slice may be the batch size only along the batch; there the rule looks at it."""

    def wrapped(use: Use) -> Result:
        shape = use.result_shape()
        return rule(use) if use.has_batch(shape[use["dim"] % len(shape)]) else fixed_numbers("end")(rule)(use)

    return fixed_numbers("start", "step")(wrapped)


def laid(use: Use) -> Laid:
    """The layout of the first operand; a position may only be reshaped in place."""
    state = use.state(use.node.args[0])
    if not isinstance(state, LAID):
        raise Mixes("an example's position in the batch is rearranged like data")
    return state


@keeps
def view(use: Use) -> Result:
    """Reshape: examples stay together when the new shape cuts at the same places in row-major order."""
    state, new = use.state(use.node.args[0]), use.result_shape()
    if isinstance(state, Position):
        dim = use.axis(new)
        if new[dim] == use.symbol:
            return Position(dim)
        raise Mixes("positions in the batch are repeated")
    layout = laid(use)
    return use.laid_out(new, before_examples(layout, use.shape(use.node.args[0])), type(layout))


@keeps
def permute(use: Use) -> Result:
    """Any reordering of dimensions."""
    rank = len(use.result_shape())
    name = use.node.target._schema.name  # type: ignore[union-attr]
    order = list(range(rank))
    if name == "aten::permute":
        order = [dim % rank for dim in use["dims"]]
    elif name == "aten::numpy_T":
        order.reverse()
    else:
        a, b = (use["dim0"], use["dim1"]) if name == "aten::transpose" else (0, -1)
        order[a], order[b] = order[b], order[a]
    state = use.state(use.node.args[0])
    if isinstance(state, Position):
        return Position(order.index(state.dim))
    return moved(laid(use), order.index(laid(use).dim))


@keeps
def unsqueeze(use: Use) -> Result:
    """One more dimension of size 1."""
    dim, state = use["dim"] % len(use.result_shape()), use.state(use.node.args[0])
    if isinstance(state, Position):
        return Position(state.dim + (dim <= state.dim))
    return moved(laid(use), laid(use).dim + (dim <= laid(use).dim))


@keeps
def squeeze(use: Use) -> Result:
    """Dimensions of size 1 dropped; the examples' dimension is never dropped in the traced graph."""
    state, shape = laid(use), use.shape(use.node.args[0])
    has_dim = any(a.name == "dim" for a in use.node.target._schema.arguments)  # type: ignore[union-attr]
    dims = normal_dims(use["dim"] if has_dim else None, len(shape))
    if state.dim in dims and has_dim:
        raise Mixes("the examples' dimension is squeezed, which changes the result when the batch holds one example",
                    "name the dimensions that squeeze() may drop")  # fmt: skip
    if not has_dim:
        raise Mixes("squeeze() without dimensions drops the batch when it holds one example", "give squeeze a dimension")
    dropped = [dim for dim in dims if shape[dim] == 1]
    return moved(state, state.dim - sum(dim < state.dim for dim in dropped))


def expand(use: Use) -> Result:
    """Broadcast to more dimensions; a shared value spread over the batch is Uniform."""
    state, new = use.state(use.node.args[0]), use.result_shape()
    if isinstance(state, Constant):
        return state
    if isinstance(state, LAID):
        result = moved(state, state.dim + len(new) - len(use.shape(use.node.args[0])))
        if sum(map(use.has_batch, new)) != 1:
            raise Mixes("a per-example value is expanded over the batch once more")
        return result
    spread = [dim for dim, size in enumerate(new) if use.has_batch(size)]
    if not spread:
        return state
    if isinstance(state, Shared) and len(spread) == 1 and new[spread[0]] == use.symbol:
        return Uniform(spread[0])
    raise Mixes("a value is expanded over a folded batch dimension or a sum over examples is spread over them")


def repeat(use: Use) -> Result:
    """Tiling: of a shared value along the batch, or of per-example values as blocks."""
    state, new = use.state(use.node.args[0]), use.result_shape()
    if isinstance(state, Constant) or (isinstance(state, Summed) and not any(map(use.has_batch, new))):
        return state
    if isinstance(state, Shared):
        return alike(use, new)
    layout, repeats = laid(use), use["repeats"]
    dim = layout.dim + len(new) - len(use.shape(use.node.args[0]))
    if not isinstance(repeats[dim], int) or sum(map(use.has_batch, new)) != 1:
        raise Mixes("per-example values are repeated as often as there are examples")
    return type(layout)(dim, layout.outer * repeats[dim], layout.inner)


def full_range(use: Use, start: Any, end: Any, step: Any, size: sympy.Expr) -> bool:
    """Whether a slice takes everything along a dimension of this size."""
    stop = end.meta["val"] if isinstance(end, fx.Node) else end
    whole = stop is None or (isinstance(stop, int) and stop >= 2**62) or size_expression(stop) == size
    return start in (None, 0) and step in (None, 1) and whole


@keeps
def slice_(use: Use) -> Result:
    """A slice within the example; along the batch only the whole of it."""
    shape = use.shape(use.node.args[0])
    state = use.state(use.node.args[0]) if isinstance(use.state(use.node.args[0]), Position) else laid(use)
    assert isinstance(state, (Position, *LAID))
    if use["dim"] % len(shape) == state.dim and not full_range(use, use["start"], use["end"], use["step"], shape[state.dim]):
        raise Mixes(PICKS, PICKS_WAY_OUT)
    return state


@keeps
def select(use: Use) -> Result:
    """One index of a dimension of the example."""
    state, dim = laid(use), use["dim"] % len(use.shape(use.node.args[0]))
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
    state, dim = laid(use), use["dim"] % len(use.shape(use.node.args[0]))
    if dim == state.dim:
        raise Mixes(PICKS, PICKS_WAY_OUT)
    return (moved(state, state.dim - (dim < state.dim)),) * len(use.node.meta["val"])


def split(use: Use) -> Result:
    """Pieces along a dimension of the example."""
    state = use.state(use.node.args[0])
    if isinstance(state, LAID) and use["dim"] % len(use.shape(use.node.args[0])) == state.dim:
        raise Mixes(PICKS, PICKS_WAY_OUT)
    return (state,) * len(use.node.meta["val"])


@keeps
def per_example(use: Use) -> Result:
    """An adjoint or a padding whose result has the examples where the operand has them."""
    return laid(use)


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
    if len(found) > 1 or any(isinstance(state, (Summed, Position)) for state, _ in parts):
        raise Mixes("tensors whose examples lie along different axes are concatenated")
    if use["dim"] % len(use.result_shape()) != dim:
        return like(dim, outer, inner)
    if all(isinstance(state, LAID) for state, _ in parts):
        return like(dim, outer * len(parts), inner)
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
    state = use.state(use.node.args[0])
    if isinstance(state, Summed) and use["value"] != 0:
        raise Mixes("a number is appended to a sum over the batch")
    if isinstance(state, Constant) and use["value"] != state.value:
        return alike(use, use.result_shape())
    return pad(use)


@keeps
def flip(use: Use) -> Result:
    """Reversal of dimensions of the example."""
    if laid(use).dim in normal_dims(use["dims"], len(use.result_shape())):
        raise Mixes("the order of the examples is reversed", PICKS_WAY_OUT)
    return laid(use)


@keeps
def roll(use: Use) -> Result:
    """Rotation of dimensions of the example; without dimensions the whole batch is rotated."""
    if not use["dims"] or laid(use).dim in normal_dims(use["dims"], len(use.result_shape())):
        raise Mixes("the rotation carries values from one example into another", "give roll the example's dimensions")
    return laid(use)


@keeps
def as_strided(use: Use) -> Result:
    """A strided view with the example's own stride along one dimension and everything else within one example."""
    state, fake, shape = laid(use), use.node.meta["val"], use.result_shape()
    strides = [size_expression(stride) for stride in fake.stride()]
    own = size_expression(use.node.args[0].meta["val"].stride()[state.dim])
    dim, offset = use.axis(shape), size_expression(fake.storage_offset())
    fits = (state.outer, state.inner, state.dim) == (1, 1, 0) and shape[dim] == use.symbol and strides[dim] == own and offset == 0
    within = sum((n - 1) * s for d, (n, s) in enumerate(zip(shape, strides, strict=True)) if d != dim)
    if not fits or use.has_batch(own) or any(map(use.has_batch, strides)) or within >= own:
        raise Mixes("as_strided reads across examples", "use ordinary views and reshapes")
    return moved(state, dim)


@keeps
def diagonal(use: Use) -> Result:
    """A diagonal of two dimensions of the example."""
    state, rank = laid(use), len(use.shape(use.node.args[0]))
    dims = normal_dims([use["dim1"], use["dim2"]], rank)
    if state.dim in dims:
        raise Mixes("the diagonal pairs examples with positions")
    return moved(state, state.dim - sum(dim < state.dim for dim in dims))


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


@keeps
def unfold(use: Use) -> Result:
    """Sliding windows along a dimension of the example, as a last dimension."""
    if use["dimension"] % len(use.shape(use.node.args[0])) == laid(use).dim:
        raise Mixes("windows slide over the batch")
    return laid(use)


@keeps_zero
def slice_backward(use: Use) -> Result:
    """The adjoint of slice: zeros with the gradient in place."""
    state = laid(use)
    if use["dim"] % len(use.result_shape()) == state.dim and not full_range(
            use, use["start"], use["end"], use["step"], use.result_shape()[state.dim]):  # fmt: skip
        raise Mixes(PICKS, PICKS_WAY_OUT)
    return state


RULES: dict[object, Rule] = {
    aten.view.default: view, aten._unsafe_view.default: view, aten.reshape.default: view, aten._reshape_alias.default: view,
    aten.view_as_real.default: keeps_zero(per_example), aten.view_as_complex.default: keeps_zero(per_example),
    aten.permute.default: permute, aten.transpose.int: permute, aten.t.default: permute, aten.numpy_T.default: permute,
    aten.unsqueeze.default: unsqueeze, aten.squeeze.dim: squeeze, aten.squeeze.dims: squeeze, aten.squeeze.default: squeeze,
    aten.expand.default: expand, aten.repeat.default: repeat, aten.slice.Tensor: stop_within_batch(slice_), aten.select.int: fixed_numbers("index")(select),
    aten.select_backward.default: fixed_numbers("index")(select_backward),
    aten.slice_backward.default: stop_within_batch(slice_backward), aten.unbind.int: unbind,
    aten.split.Tensor: split, aten.split_with_sizes.default: split, aten.unsafe_split.Tensor: split,
    aten.unsafe_split_with_sizes.default: split, aten.cat.default: additive_in("tensors")(cat), aten.stack.default: additive_in("tensors")(stack),
    aten.constant_pad_nd.default: fixed_numbers("pad", "value")(pad_constant), aten.flip.default: flip,
    aten.roll.default: fixed_numbers("shifts")(roll),
    aten.as_strided.default: as_strided, aten.diagonal.default: fixed_numbers("offset")(diagonal), aten.unfold.default: unfold,
    aten.slice_scatter.default: additive_in("self", "src")(stop_within_batch(slice_scatter)),
    aten.select_scatter.default: additive_in("self", "src")(select_scatter),
}  # fmt: skip
