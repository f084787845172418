"""Lookups by index: embedding, gather, scatter, advanced indexing."""

from __future__ import annotations

import sympy
import torch
from torch import fx

from dpcompile.ir.axis import (
    SHARED,
    SUMMED,
    Batched,
    Constant,
    Mixes,
    Position,
    Shared,
    State,
    Summed,
    Uniform,
)
from dpcompile.rules.families import additive_in, linear_in
from dpcompile.rules.rule import LAID, Laid, Result, Rule, Use, aligned, alike, differing, is_fixed, moved, refuse_numbers

aten = torch.ops.aten


def embedding(use: Use) -> Result:
    """Rows of a shared table, chosen per example."""
    if not is_fixed(use, use["weight"]):
        raise Mixes("the embedding table depends on the batch")
    refuse_numbers(use)
    state = use.state(use["indices"])
    if isinstance(state, Summed):
        raise Mixes("a sum over the batch is used as an index")
    return state if isinstance(state, LAID) else alike(use, use.result_shape())


def embedding_backward(use: Use) -> Result:
    """The gradient of the table: a sum over examples; scale_grad_by_freq counts rows over the whole batch."""
    if use["scale_grad_by_freq"]:
        raise Mixes("scale_grad_by_freq divides by how often a row occurs in the whole batch", "switch scale_grad_by_freq off")
    refuse_numbers(use)
    gradient, indices = use.state(use["grad_output"]), use.state(use["indices"])
    if is_fixed(use, use["indices"]) and (isinstance(gradient, Summed) or is_fixed(use, use["grad_output"])):
        return SUMMED if isinstance(gradient, Summed) else SHARED
    laid = {(state.dim, state.outer, state.inner) for state in (gradient, indices) if isinstance(state, LAID)}
    if len(laid) > 1 or not all(isinstance(state, (*LAID, Constant)) for state in (gradient, indices)):
        raise Mixes("the indices of an embedding and its gradient hold their examples along different axes")
    return SUMMED


def embedding_bag(use: Use) -> Result:
    """Bags of rows: legal when every bag lies within one example, which offsets per batch do not show."""
    raise Mixes("an embedding bag with offsets over the whole batch does not show which entries belong to which example",
                "give EmbeddingBag a 2-D input [B, bag], or use nn.Embedding followed by a sum over the bag")  # fmt: skip


def gather(use: Use) -> Result:
    """Lookup along a dimension of the example."""
    refuse_numbers(use)
    source, index, dim = use.state(use["self"]), use.state(use["index"]), use["dim"] % max(len(use.shape(use["self"])), 1)
    if isinstance(source, LAID) and source.dim == dim:
        raise Mixes("values are looked up across examples")
    refuse_unequal_rows(use, ("self", "index"), dim)
    if isinstance(source, Shared) and isinstance(index, LAID):
        return index
    state = aligned(use, [(source, use.shape(use["self"])), (index, use.shape(use["index"]))], use.result_shape())
    return state if isinstance(source, Constant) else differing(use, state, use.result_shape())


def refuse_unequal_rows(use: Use, names: tuple[str, ...], dim: int | None = None) -> None:
    """gather and scatter go through the rows of their operands together, except along `dim`: where the examples lie all must
    hold them, or an example would meet the row that stands at its position in the batch."""
    shapes = [use.shape(use[name]) for name in names if isinstance(use[name], fx.Node)]
    for axis in range(min(map(len, shapes))):
        sizes = {shape[axis] for shape in shapes}
        if axis != dim and len(sizes) > 1 and any(map(use.has_batch, sizes)):
            raise Mixes("rows are matched with examples by their position in the batch", "give every operand a row per example")


def scatter(use: Use) -> Result:
    """Writing (or adding) along a dimension of the example."""
    refuse_numbers(use)
    dim = use["dim"] % max(len(use.shape(use["self"])), 1)
    refuse_unequal_rows(use, ("self", "index"), dim)
    if use.has("src"):
        refuse_unequal_rows(use, ("index", "src"))
    operands = [(use.state(node), use.shape(node)) for node in use.tensors()]
    laid = {(state.dim, state.outer, state.inner) for state, _ in operands if isinstance(state, LAID)}
    if any(shape and use.has_batch(shape[dim]) for _, shape in operands):
        if use.node.target is aten.scatter_add.default and is_zero_table(use) and len(laid) <= 1:
            return SUMMED
        raise Mixes("values are written across examples")
    return differing(use, aligned(use, operands, use.result_shape()), use.result_shape())


def is_zero_table(use: Use) -> bool:
    """Whether values are added into zeros without an example axis: then adding along the examples is a sum over them."""
    base = use.state(use["self"])
    return isinstance(base, Constant) and base.value == 0 and not any(map(use.has_batch, use.shape(use["self"])))


def index_select(use: Use) -> Result:
    """Rows of a tensor by an index vector."""
    refuse_numbers(use)
    source, index = use.state(use["self"]), use.state(use["index"])
    dim = use["dim"] % max(len(use.shape(use["self"])), 1)
    if isinstance(source, LAID) and source.dim == dim:
        raise Mixes("examples are picked by an index", "select within the example's own dimensions")
    if isinstance(source, LAID) and isinstance(index, Shared):
        return source
    if isinstance(source, Shared) and isinstance(index, LAID):
        return moved(index, dim)
    raise Mixes("an index that differs per example selects from values that differ per example")


def index_add(use: Use) -> Result:
    """Adding rows at indices: the adjoint of index_select."""
    refuse_numbers(use)
    dim = use["dim"] % max(len(use.shape(use["self"])), 1)
    base, index, source = (use.state(use[name]) for name in ("self", "index", "source"))
    if isinstance(source, LAID) and isinstance(index, LAID) and source.dim == dim and (source.outer, source.inner) == (
            index.outer, index.inner) and is_zero_table(use):  # fmt: skip
        return SUMMED
    if isinstance(index, Shared) and isinstance(source, LAID) and source.dim != dim:
        target = [(base, use.shape(use["self"])), (source, use.shape(use["source"]))]
        return aligned(use, target, use.result_shape())
    raise Mixes("rows are added across examples")


def indexed_dims(indices: list[fx.Node | None]) -> list[int]:
    """The dimensions that advanced indexing replaces."""
    return [dim for dim, index in enumerate(indices) if index is not None]


def result_start(dims: list[int]) -> int:
    """Where the broadcast index dimensions stand in the result: in place when adjacent, else in front."""
    return dims[0] if dims == list(range(dims[0], dims[-1] + 1)) else 0


def index_layout(use: Use, indices: list[fx.Node | None], rank: int) -> tuple[State, bool]:
    """State of the broadcast indices (within the index block), and whether one of them is the batch position."""
    found: list[Laid] = []
    is_position = False
    for index in indices:
        if index is None:
            continue
        state = use.state(index)
        shift = rank - len(use.shape(index))
        if isinstance(state, Position):
            is_position = True
            found.append(Uniform(state.dim + shift))
        elif isinstance(state, LAID):
            found.append(moved(state, state.dim + shift))
        elif isinstance(state, Constant) and any(map(use.has_batch, use.shape(index))):
            found.append(Uniform(use.axis(use.shape(index)) + shift))
        elif isinstance(state, Summed):
            raise Mixes("a sum over the batch is used as an index")
    if not found:
        return SHARED, False
    if len({(state.dim, state.outer, state.inner) for state in found}) > 1:
        raise Mixes("indices that hold their examples along different axes meet")
    batched = any(isinstance(state, Batched) for state in found)
    return (Batched if batched else Uniform)(found[0].dim, found[0].outer, found[0].inner), is_position


def refuse_booleans(indices: list[fx.Node | None]) -> None:
    """A boolean mask stands for as many dimensions as it has, and selects a number of elements that depends on data."""
    if any(node is not None and node.meta["val"].dtype == torch.bool for node in indices):
        raise Mixes("boolean indexing gives every example a different size", "use torch.where or masked_fill")


def positions_at(use: Use, indices: list[fx.Node | None]) -> list[int]:
    """The dimensions that are indexed by the position in the batch."""
    return [dim for dim, node in enumerate(indices) if node is not None and isinstance(use.state(node), Position)]


def index(use: Use) -> Result:
    """Advanced indexing: of a shared table by per-example indices, or within each example."""
    indices: list[fx.Node | None] = list(use["indices"])
    source, dims = use.state(use["self"]), indexed_dims(indices)
    refuse_booleans(indices)
    if isinstance(source, Position):
        raise Mixes("an example's position in the batch is looked up")
    rank = max(len(use.shape(node)) for node in indices if node is not None)
    chosen, is_position = index_layout(use, indices, rank)
    start = result_start(dims)
    if isinstance(source, LAID):
        return index_within(use, source, indices, dims, chosen, is_position, rank)
    if isinstance(source, Constant):
        return source
    if is_position:
        raise Mixes("a position in the batch looks up a shared table")
    if isinstance(chosen, LAID):
        return moved(chosen, start + chosen.dim)
    return source


def index_within(use: Use, source: Laid, indices: list[fx.Node | None], dims: list[int], chosen: State,
                 is_position: bool, rank: int) -> State:  # fmt: skip
    """Indexing of a per-example tensor: the examples' dimension untouched, or indexed by the batch position."""
    start = result_start(dims)
    if source.dim in dims:
        whole = positions_at(use, indices) == [source.dim] and (source.outer, source.inner) == (1, 1)
        if not whole or not isinstance(chosen, LAID):
            raise Mixes("examples are picked by an index", "index the example's own dimensions")
        return Batched(start + chosen.dim)
    if isinstance(chosen, LAID):
        raise Mixes("an index that differs per example selects from another example's values",
                    "use gather along the example's own dimension")  # fmt: skip
    free = [dim for dim in range(len(use.shape(use["self"]))) if dim not in dims]
    place = free.index(source.dim)
    return moved(source, place + (rank if place >= start else 0))


def index_put(use: Use) -> Result:
    """Adding values at indices into zeros (a gradient), or writing within each example."""
    indices: list[fx.Node | None] = list(use["indices"])
    base, values, dims = use.state(use["self"]), use.state(use["values"]), indexed_dims(indices)
    if is_masked_fill(use, indices):
        return masked_fill(use, indices)
    refuse_numbers(use, ("indices",))
    rank = max(len(use.shape(node)) for node in indices if node is not None)
    refuse_booleans(indices)
    chosen, is_position = index_layout(use, indices, rank)
    start = result_start(dims)
    value_shift = len(use.shape(use["self"])) - len(dims) + rank - len(use.shape(use["values"]))
    fitting = isinstance(chosen, LAID) and fits(values, chosen, start, value_shift)
    if isinstance(chosen, LAID) and is_zero_table(use) and use["accumulate"] and fitting and not is_position:
        return SUMMED
    axes = [dim for dim, size in enumerate(use.shape(use["self"])) if use.has_batch(size)]
    if isinstance(chosen, Shared) and not set(axes) & set(dims):
        batched = values if isinstance(values, LAID) else None
        target = index_within_shape(use, dims, rank, batched, value_shift)
        operands = [(base, use.shape(use["self"]))] + ([(target, use.result_shape())] if target is not None else [])
        return differing(use, aligned(use, operands, use.result_shape()), use.result_shape())
    within = positions_at(use, indices) == axes and isinstance(base, (LAID, Constant))
    if is_position and within and (fitting or isinstance(values, (Shared, Constant))):
        return Batched(axes[0])
    raise Mixes("values are written across examples")


def is_masked_fill(use: Use, indices: list[fx.Node | None]) -> bool:
    """Whether one number is written wherever a mask over the first dimensions is true: x[x < 0] = 1."""
    masks = [node for node in indices if node is not None]
    return len(indices) == len(masks) == 1 and masks[0].meta["val"].dtype == torch.bool and use.shape(use["values"]) == []


def masked_fill(use: Use, indices: list[fx.Node | None]) -> Result:
    """The same as torch.where, the mask spread over the last dimensions."""
    refuse_numbers(use)
    mask, shape = indices[0], use.result_shape()
    assert mask is not None
    sizes = use.shape(mask)
    sizes = [*sizes, *[sympy.Integer(1)] * (len(shape) - len(sizes))]
    operands = [(use.state(use["self"]), shape), (use.state(use["values"]), []), (use.state(mask), sizes)]
    return differing(use, aligned(use, operands, shape), shape)


def fits(values: State, chosen: Laid, start: int, shift: int) -> bool:
    """Whether the written values hold their examples where the indices hold theirs."""
    if isinstance(values, Constant):
        return True
    return isinstance(values, LAID) and (values.dim + shift, values.outer, values.inner) == (
        start + chosen.dim, chosen.outer, chosen.inner)  # fmt: skip


def index_within_shape(use: Use, dims: list[int], rank: int, values: Laid | None, shift: int) -> Laid | None:
    """The layout of written values in terms of the target's dimensions."""
    if values is None:
        return None
    start, place = result_start(dims), values.dim + shift
    free = [dim for dim in range(len(use.shape(use["self"]))) if dim not in dims]
    if start <= place < start + rank:
        raise Mixes("values are written across examples")
    return moved(values, free[place - rank if place >= start + rank else place])


RULES: dict[object, Rule] = {
    aten.embedding.default: embedding,
    aten.embedding_dense_backward.default: embedding_backward,
    aten._embedding_bag.default: embedding_bag,
    aten._embedding_bag_forward_only.default: embedding_bag,
    aten.gather.default: linear_in("self")(gather),
    aten.scatter.src: additive_in("self", "src")(scatter),
    aten.scatter.value: additive_in("self", "value")(scatter),
    aten.scatter_add.default: additive_in("self", "src")(scatter),
    aten.index_select.default: linear_in("self")(index_select),
    aten.index_add.default: additive_in("self", "source")(index_add),
    aten.scatter_reduce.two: scatter,
    aten.index.Tensor: linear_in("self")(index),
    aten._unsafe_index.Tensor: linear_in("self")(index),
    aten.index_put.default: additive_in("self", "values")(index_put),
    aten._unsafe_index_put.default: additive_in("self", "values")(index_put),
}
