"""Matrix products, convolutions and the other contractions.

A contraction whose summed dimension holds the examples of both operands is a sum over examples (Summed): that
is where parameter gradients come from. One whose free dimensions hold the examples of one operand is Batched.
"""

from __future__ import annotations

import math

import torch

from dpcompile.ir.axis import SHARED, SUMMED, Batched, Constant, Mixes, Shared, State, Summed
from dpcompile.rules.families import linear_in
from dpcompile.rules.rule import LAID, Result, Rule, Use, aligned, alike, is_fixed, moved, refuse_numbers

aten = torch.ops.aten
PAIRS = "every example of one operand meets every example of the other"


def role(use: Use, name: str, dims: str) -> tuple[str, State]:
    """Which index of the equation holds the examples of an operand ('' for none)."""
    node = use[name]
    state = use.state(node)
    if isinstance(state, LAID):
        return dims[state.dim], state
    if isinstance(state, Constant):
        found = [letter for letter, size in zip(dims, use.shape(node), strict=True) if use.has_batch(size)]
        return (found[0] if found else ""), state
    if isinstance(state, (Shared, Summed)):
        return "", state
    raise Mixes("the batch size or a position in the batch is used as a matrix")


def same_layout(left: State, right: State) -> bool:
    """Whether two operands fold their examples into the dimension in the same way (constants fit any)."""
    if isinstance(left, Constant) or isinstance(right, Constant):
        return True
    assert isinstance(left, LAID) and isinstance(right, LAID)
    return (left.outer, left.inner) == (right.outer, right.inner)


def product(left: str, right: str, result: str, names: tuple[str, str] = ("self", "mat2")) -> Rule:
    """A product of two operands written as an einsum: `left,right->result`."""

    def rule(use: Use) -> Result:
        refuse_numbers(use)
        (i, first), (j, second) = role(use, names[0], left), role(use, names[1], right)
        if not i and not j:
            return SHARED
        layout = first if isinstance(first, LAID) else second
        if i and j and i != j:
            raise Mixes(PAIRS)
        if i and j and not same_layout(first, second):
            raise Mixes("the operands fold their examples in different orders, so examples meet")
        index = i or j
        if index in result:
            if not isinstance(layout, LAID):
                both_constant = isinstance(first, Constant) and isinstance(second, Constant)
                return Constant(math.nan) if both_constant else alike(use, use.result_shape())
            both = [state for state in (first, second) if isinstance(state, Batched)]
            return moved(both[0] if both else layout, result.index(index))
        if i and j:
            return SUMMED
        raise Mixes("the sum runs over the examples of one operand with weights that do not belong to them")

    return linear_in(*names)(rule)


def add_product(rule: Rule, bias: str = "self") -> Rule:
    """`bias + product`: the product decides; the bias must be shared or lie alike."""

    def wrapped(use: Use) -> Result:
        state = rule(use)
        assert not isinstance(state, tuple)
        added = use.state(use[bias])
        if isinstance(state, Summed) or isinstance(added, Summed):
            raise Mixes("a value is added to a sum over the batch")
        return aligned(use, [(state, use.result_shape()), (added, use.shape(use[bias]))], use.result_shape())

    return wrapped


def convolution(use: Use) -> Result:
    """Examples lie along the first dimension of the input; weight and bias are the same for all."""
    refuse_numbers(use)
    state = use.state(use["input"])
    if any(node is not None and not is_fixed(use, node) for node in (use["weight"], use["bias"])):
        raise Mixes("the convolution's weight depends on the batch", "use one weight for all examples")
    if isinstance(state, LAID) and state.dim != 0:
        raise Mixes("the examples lie along the channels or the image of a convolution")
    if isinstance(state, Summed):
        raise Mixes("a sum over the batch is convolved")
    return state if isinstance(state, LAID) else alike(use, use.result_shape())


def convolution_backward(use: Use) -> Result:
    """Gradient of the input per example; gradients of weight and bias summed over examples."""
    refuse_numbers(use)
    states = [use.state(use["grad_output"]), use.state(use["input"])]
    laid = [state for state in states if isinstance(state, LAID)]
    if not is_fixed(use, use["weight"]) or any(state.dim != 0 for state in laid) or not laid:
        raise Mixes("the convolution's weight depends on the batch")
    if len({(state.outer, state.inner) for state in laid}) > 1:
        raise Mixes("input and gradient of the convolution fold their examples in different orders")
    return Batched(0, laid[0].outer, laid[0].inner), SUMMED, SUMMED


def bilinear(use: Use) -> Result:
    """The product of three operands that nn.Bilinear and its backward use."""
    refuse_numbers(use)
    operands = [use[name] for name in ("i1", "i2", "i3")]
    rank = len(use.shape(operands[0])) + len(use["expand1"])
    positions = []
    for node, added in zip(operands, ("expand1", "expand2", "expand3"), strict=True):
        state, kept = use.state(node), [d for d in range(rank) if d not in use[added]]
        if isinstance(state, LAID):
            positions.append((kept[state.dim], state.outer, state.inner))
        elif not is_fixed(use, node):
            raise Mixes("a sum over the batch enters a trilinear product")
    if len(set(positions)) > 1:
        raise Mixes(PAIRS)
    if not positions:
        return SHARED
    dim, outer, inner = positions[0]
    if dim in use["sumdim"]:
        if len(positions) > 1:
            return SUMMED
        raise Mixes("the sum runs over the examples of one operand with weights that do not belong to them")
    return Batched(dim - sum(d < dim for d in use["sumdim"]), outer, inner)


matrix = product("nk", "km", "nm")
RULES: dict[object, Rule] = {
    aten.mm.default: matrix,
    aten.addmm.default: add_product(product("nk", "km", "nm", ("mat1", "mat2"))),
    aten.bmm.default: product("bnk", "bkm", "bnm"),
    aten.baddbmm.default: add_product(product("bnk", "bkm", "bnm", ("batch1", "batch2"))),
    aten.mv.default: product("nk", "k", "n", ("self", "vec")),
    aten.addmv.default: add_product(product("nk", "k", "n", ("mat", "vec"))),
    aten.dot.default: product("k", "k", "", ("self", "tensor")),
    aten.convolution.default: convolution,
    aten.convolution_backward.default: linear_in("grad_output")(convolution_backward),
    aten._trilinear.default: bilinear,
}
