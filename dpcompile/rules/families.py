"""The families of rules that serve most operations: pointwise, reductions, along and within dimensions, linear ones.

A row of a table names its family and what the family has to know (`reduction(linear=True)`, `linear_in("self")`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import sympy
import torch
from torch import fx

from dpcompile.ir.axis import SHARED, SUMMED, Constant, Mixes, Shared, State, Summed
from dpcompile.rules.rule import LAID, Result, Rule, Use, aligned, alike, is_fixed, moved, normal_dims, refuse_numbers

MEETS_SUM = "a sum over the batch is used for more than adding up gradients, so examples meet in it"
SUM_WAY_OUT = "reduce over each example's own elements only (for example x.mean(1) instead of x.mean())"


def pointwise(use: Use) -> Result:
    """Every element of the result depends on the operands' elements at its own place only."""
    refuse_numbers(use)
    fakes = use.node.meta["val"]
    operands = [(use.state(node), use.shape(node)) for node in use.tensors()]
    if isinstance(fakes, torch.Tensor):
        return aligned(use, operands, use.result_shape())
    return tuple(aligned(use, operands, use.result_shape(i)) for i in range(len(fakes)))


def same_as(name: str) -> Rule:
    """Casts, copies and other identities: the state of one operand."""

    def rule(use: Use) -> Result:
        refuse_numbers(use)
        return use.state(use[name])

    return rule


def reduction(linear: bool = False, dims: str | None = "dim", default_all: bool = True) -> Rule:
    """A reduction over the dimensions `dims`; a linear one over the batch gives Summed, any other mixes."""

    def rule(use: Use) -> Result:
        refuse_numbers(use)
        operand = use.tensors()[0]
        state, rank = use.state(operand), len(use.shape(operand))
        given = use[dims] if dims is not None else None
        reduced = normal_dims(given, rank)
        fakes = use.node.meta["val"]
        count = 1 if isinstance(fakes, torch.Tensor) else len(fakes)
        result = reduce_state(use, state, reduced, rank, linear, operand)
        return result if count == 1 else (result,) * count

    return rule


def reduce_state(use: Use, state: State, reduced: list[int], rank: int, linear: bool, operand: fx.Node) -> State:
    """The state after reducing these dimensions of one operand."""
    if isinstance(state, Shared):
        return SHARED
    if isinstance(state, Summed):
        if linear:
            return SUMMED
        raise Mixes("a sum over the batch enters a reduction that is not linear")
    if isinstance(state, Constant):
        if not any(use.has_batch(use.shape(operand)[dim]) for dim in reduced):
            return Constant(0.0 if linear and state.value == 0 else math.nan)
        if linear:
            return SUMMED
        raise Mixes("a reduction runs over the batch, so its result depends on how many examples there are")
    assert isinstance(state, LAID)
    if state.dim in reduced:
        if linear:
            return SUMMED
        raise Mixes("a reduction runs over the examples of the batch", "reduce over each example's own dimensions")
    shift = 0 if keeps_dims(use) else sum(dim < state.dim for dim in reduced)
    return moved(state, state.dim - shift)


def keeps_dims(use: Use) -> bool:
    """Whether a reduction keeps its reduced dimensions with size 1."""
    fake = use.node.meta["val"]
    fake = fake if isinstance(fake, torch.Tensor) else fake[0]
    return len(fake.shape) == len(use.shape(use.tensors()[0]))


def along(name: str = "dim", operand: str = "self") -> Rule:
    """An operation along one dimension (softmax, cumsum, sort): that dimension must not be the examples'."""

    def rule(use: Use) -> Result:
        refuse_numbers(use)
        rank = len(use.shape(use[operand]))
        dims = normal_dims(use[name], rank)
        for tensor in use.tensors():
            state, shape = use.state(tensor), use.shape(tensor)
            held = (isinstance(state, LAID) and state.dim in dims) or (isinstance(state, Constant) and any(
                use.has_batch(shape[dim]) for dim in dims if dim < len(shape)))  # fmt: skip
            if held and len(shape) == rank:
                raise Mixes(f"the operation runs along dimension {dims[0]}, which holds the examples",
                            "run it along a dimension of the example itself")  # fmt: skip
        return pointwise_like(use)

    return rule


def pointwise_like(use: Use) -> Result:
    """The operands' common layout, on every result of the same rank; constants do not stay constant along a dimension."""
    operands = [(use.state(node), use.shape(node)) for node in use.tensors()]
    fakes = use.node.meta["val"]
    if any(isinstance(state, LAID) for state, _ in operands):
        rank = max(len(shape) for _, shape in operands)
        common = aligned(use, operands, [sympy.Integer(1)] * rank)
        return common if isinstance(fakes, torch.Tensor) else (common,) * len(fakes)
    if any(isinstance(state, Summed) for state, _ in operands):
        raise Mixes(MEETS_SUM, SUM_WAY_OUT)
    if isinstance(fakes, torch.Tensor):
        return alike(use, use.result_shape())
    return tuple(alike(use, use.result_shape(i)) for i in range(len(fakes)))


def trailing(count: int, sizes: tuple[str, ...] = ()) -> Rule:
    """An operation within the last `count` dimensions (pooling, resizing, padding, matrix functions)."""

    def rule(use: Use) -> Result:
        refuse_numbers(use, tuple(name for name in sizes if use.has(name)))
        operands = [(use.state(node), use.shape(node)) for node in use.tensors()]
        for state, shape in operands:
            last = any(map(use.has_batch, shape[-count:]))
            if (isinstance(state, LAID) and state.dim >= len(shape) - count) or (isinstance(state, Constant) and last):
                raise Mixes(f"the operation works within the last {count} dimensions, and the examples lie there")
        return pointwise_like(use)

    return rule


def linear_in(*names: str) -> Callable[[Rule], Rule]:
    """The operation is linear in each of these operands with the others fixed: Summed passes through any one of them."""

    def wrap(rule: Rule) -> Rule:
        def wrapped(use: Use) -> Result:
            summed = [node for node in use.tensors() if isinstance(use.state(node), Summed)]
            if not summed:
                return rule(use)
            refuse_numbers(use)
            linear = [use[name] for name in names]
            others = [node for node in use.tensors() if node is not summed[0]]
            named = sum(argument is summed[0] for argument in linear)
            occurrences = use.operands_except().count(summed[0])
            if len(summed) == 1 and named == occurrences == 1 and all(is_fixed(use, node) for node in others):
                return summed_result(use)
            raise Mixes(MEETS_SUM, SUM_WAY_OUT)

        return wrapped

    return wrap


def additive_in(*names: str) -> Callable[[Rule], Rule]:
    """The operation is linear in these operands jointly (add, cat, scatter): all of them Summed, or zero."""

    def wrap(rule: Rule) -> Rule:
        def wrapped(use: Use) -> Result:
            if not any(isinstance(use.state(node), Summed) for node in use.tensors()):
                return rule(use)
            refuse_numbers(use)
            added = [use[name] for name in names]
            jointly = [n for item in added for n in (item if isinstance(item, (list, tuple)) else [item])]
            for node in use.tensors():
                is_added = jointly.count(node) == use.operands_except().count(node)
                fine = is_sum_or_zero(use.state(node)) if is_added else is_fixed(use, node)
                if not fine:
                    raise Mixes(MEETS_SUM, SUM_WAY_OUT)
            if any(isinstance(item, (int, float, complex)) and item != 0 for item in jointly):
                raise Mixes("a number is added to a sum over the batch", SUM_WAY_OUT)
            return summed_result(use)

        return wrapped

    return wrap


def is_sum_or_zero(state: State) -> bool:
    """A sum over examples, or zeros to which one is added."""
    return isinstance(state, Summed) or (isinstance(state, Constant) and state.value == 0)


def summed_result(use: Use) -> Result:
    """Summed for every result."""
    fakes = use.node.meta["val"]
    return SUMMED if isinstance(fakes, torch.Tensor) else (SUMMED,) * len(fakes)
