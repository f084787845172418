"""Operations that rearrange the elements of one tensor: views, permutations, repetitions. All are linear."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from dpcompile.ir.axis import BatchSize, Constant, Mixes, Position, Shared, Summed
from dpcompile.ir.graph import size_expression
from dpcompile.rules.rule import LAID, Laid, Result, Rule, Use, alike, before_examples, moved, normal_dims, prod

aten = torch.ops.aten
PICKS = "examples are picked by their place in the batch"
PICKS_WAY_OUT = "treat all examples alike; select within the example's own dimensions"


def keeps(rule: Rule) -> Rule:
    """Shared, Constant and Summed operands keep their state under any rearrangement within one tensor."""

    def wrapped(use: Use) -> Result:
        state = use.state(use.first)
        if not isinstance(state, (Shared, Constant, Summed)):
            return rule(use)
        fakes = use.node.meta["val"]
        return state if isinstance(fakes, torch.Tensor) else (state,) * len(fakes)

    return wrapped


def keeps_zero(rule: Rule) -> Rule:
    """As `keeps` for operations that fill up with zeros: a constant other than zero does not stay one."""

    def wrapped(use: Use) -> Result:
        state = use.state(use.first)
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


def laid(use: Use) -> Laid:
    """The layout of the first operand; a position may only be reshaped in place."""
    state = use.state(use.first)
    if not isinstance(state, LAID):
        raise Mixes("an example's position in the batch is rearranged like data")
    return state


@keeps
def view(use: Use) -> Result:
    """Reshape: examples stay together when the new shape cuts at the same places in row-major order."""
    state, new = use.state(use.first), use.result_shape()
    if isinstance(state, Position):
        dim = use.axis(new)
        if new[dim] == use.symbol and prod(new[:dim]) == prod(use.shape(use.first)[: state.dim]):
            return Position(dim)
        raise Mixes("positions in the batch are repeated, or cut into rows of another length")
    layout = laid(use)
    return use.laid_out(new, before_examples(layout, use.shape(use.first)), type(layout))


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
    state = use.state(use.first)
    if isinstance(state, Position):
        return Position(order.index(state.dim))
    return moved(laid(use), order.index(laid(use).dim))


@keeps
def unsqueeze(use: Use) -> Result:
    """One more dimension of size 1."""
    dim, state = use["dim"] % len(use.result_shape()), use.state(use.first)
    if isinstance(state, Position):
        return Position(state.dim + (dim <= state.dim))
    return moved(laid(use), laid(use).dim + (dim <= laid(use).dim))


@keeps
def squeeze(use: Use) -> Result:
    """Dimensions of size 1 dropped; the examples' dimension is never dropped in the traced graph."""
    state, shape = laid(use), use.shape(use.first)
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
    state, new = use.state(use.first), use.result_shape()
    if isinstance(state, Constant):
        return state
    if isinstance(state, LAID):
        result = moved(state, state.dim + len(new) - len(use.shape(use.first)))
        if sum(map(use.has_batch, new)) != 1:
            raise Mixes("a per-example value is expanded over the batch once more")
        return result
    spread = [dim for dim, size in enumerate(new) if use.has_batch(size)]
    if not spread:
        return state
    if isinstance(state, Shared) and len(spread) == 1:
        return alike(use, new)
    raise Mixes("a value is expanded over several batch dimensions or a sum over examples is spread over them")


def repeat(use: Use) -> Result:
    """Tiling: of a shared value along the batch, or of per-example values as blocks."""
    state, new = use.state(use.first), use.result_shape()
    if isinstance(state, Constant) or (isinstance(state, Summed) and not any(map(use.has_batch, new))):
        return state
    if isinstance(state, Shared):
        return alike(use, new)
    layout, repeats = laid(use), use["repeats"]
    dim = layout.dim + len(new) - len(use.shape(use.first))
    if not isinstance(repeats[dim], int) or sum(map(use.has_batch, new)) != 1:
        raise Mixes("per-example values are repeated as often as there are examples")
    return type(layout)(dim, layout.outer * repeats[dim], layout.inner)


@keeps
def per_example(use: Use) -> Result:
    """An adjoint or a padding whose result has the examples where the operand has them."""
    return laid(use)


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
def rot90(use: Use) -> Result:
    """A rotation in a plane of the example."""
    if laid(use).dim in normal_dims(use["dims"], len(use.result_shape())):
        raise Mixes("the rotation turns the batch", "give rot90 two dimensions of the example")
    return laid(use)


@keeps
def channel_shuffle(use: Use) -> Result:
    """A permutation of the second dimension."""
    if laid(use).dim == 1:
        raise Mixes("the channels that are shuffled hold the examples")
    return laid(use)


@keeps
def as_strided(use: Use) -> Result:
    """A strided view with the example's own stride along one dimension and everything else within one example."""
    state, fake, shape = laid(use), use.node.meta["val"], use.result_shape()
    strides = [size_expression(stride) for stride in fake.stride()]
    own = size_expression(use.first.meta["val"].stride()[state.dim])
    dim, offset = use.axis(shape), size_expression(fake.storage_offset())
    fits = (state.outer, state.inner, state.dim) == (1, 1, 0) and shape[dim] == use.symbol and strides[dim] == own and offset == 0
    within = sum((n - 1) * s for d, (n, s) in enumerate(zip(shape, strides, strict=True)) if d != dim)
    if not fits or use.has_batch(own) or any(map(use.has_batch, strides)) or within >= own:
        raise Mixes("as_strided reads across examples", "use ordinary views and reshapes")
    return moved(state, dim)


@keeps
def diagonal(use: Use) -> Result:
    """A diagonal of two dimensions of the example."""
    state, rank = laid(use), len(use.shape(use.first))
    dims = normal_dims([use["dim1"], use["dim2"]], rank)
    if state.dim in dims:
        raise Mixes("the diagonal pairs examples with positions")
    return moved(state, state.dim - sum(dim < state.dim for dim in dims))


@keeps
def unfold(use: Use) -> Result:
    """Sliding windows along a dimension of the example, as a last dimension."""
    if use["dimension"] % len(use.shape(use.first)) == laid(use).dim:
        raise Mixes("windows slide over the batch")
    return laid(use)


RULES: dict[object, Rule] = {
    aten.view.default: view, aten._unsafe_view.default: view, aten.reshape.default: view, aten._reshape_alias.default: view,
    aten.view_as_real.default: keeps_zero(per_example), aten.view_as_complex.default: keeps_zero(per_example),
    aten.permute.default: permute, aten.transpose.int: permute, aten.t.default: permute, aten.numpy_T.default: permute,
    aten.unsqueeze.default: unsqueeze, aten.squeeze.dim: squeeze, aten.squeeze.dims: squeeze, aten.squeeze.default: squeeze,
    aten.expand.default: expand, aten.repeat.default: repeat, aten.flip.default: flip,
    aten.rot90.default: rot90, aten.channel_shuffle.default: channel_shuffle,
    aten.roll.default: fixed_numbers("shifts")(roll), aten.as_strided.default: as_strided,
    aten.diagonal.default: fixed_numbers("offset")(diagonal), aten.unfold.default: unfold,
}  # fmt: skip
