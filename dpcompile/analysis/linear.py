"""Which operations of a backward pass are linear in the gradients that flow through them.

Autograd's own formulas are, but a hook that clamps gradients, a custom function's backward, or the second derivative of a
gradient penalty need not be: scaling before them is not scaling behind them. An operation without a row here counts as not
linear.
"""

from __future__ import annotations

import operator
from collections.abc import Set
from typing import Final

from torch import Tensor, fx

from dpcompile import torch_private

REARRANGED: Final = frozenset({
    "view", "_unsafe_view", "reshape", "_reshape_alias", "t", "transpose", "permute", "squeeze", "unsqueeze", "expand", "slice",
    "select", "split", "split_with_sizes", "chunk", "unbind", "narrow", "diagonal", "unfold", "clone", "_to_copy", "alias",
    "detach", "contiguous", "neg", "sum", "mean", "cumsum", "flip", "roll", "index_select", "gather", "tril", "triu",
    "slice_backward", "select_backward", "as_strided", "lift_fresh_copy", "repeat", "index", "unsafe_split", "expand_as",
    "im2col", "col2im", "pixel_shuffle", "pixel_unshuffle", "new_zeros", "zeros_like", "trace", "diag_embed", "real", "imag",
    "diagonal_backward", "view_as_real", "view_as_complex", "conj", "_conj", "resolve_conj", "movedim", "unfold_backward",
    "unsafe_chunk", "constant_pad_nd",
})  # fmt: skip
"""Linear in their first argument, whatever the others are."""
SUMS: Final = frozenset({"add", "sub", "cat", "stack"})
"""Linear if all tensors among the arguments flow."""
PRODUCTS: Final = frozenset({"mul", "mm", "bmm", "matmul", "mv", "dot", "convolution", "linear", "einsum", "_trilinear"})
"""Linear if exactly one of the factors flows."""
FIRST: Final = frozenset({"div", "masked_fill", "where"})
"""Linear in one argument if the others do not flow: the numerator, what is masked with zero, one branch against zero."""
ADDITIVE: Final = frozenset({
    "index_add", "scatter_add", "index_put", "_index_put_impl", "_unsafe_index_put", "select_scatter", "slice_scatter", "scatter",
    "index_copy", "copy", "addmm", "baddbmm", "addbmm",
})  # fmt: skip


GRADIENTS: Final = ("grad", "d_")


def is_linear(node: fx.Node, flowing: Set[fx.Node]) -> bool:
    """Whether a node is linear in those of its operands that flow, and zero where they are."""
    inside = [source for source in node.all_input_nodes if source in flowing]
    if not inside or node.target is operator.getitem:
        return True
    if not isinstance(node.target, torch_private.OpOverload) or is_whole(node):
        return False
    return is_linear_operation(node, node.target._schema.name.split("::")[1], inside, flowing)


def is_linear_operation(node: fx.Node, name: str, inside: list[fx.Node], flowing: Set[fx.Node]) -> bool:
    """The same for an ATen operation, by its name."""
    first = node.args[0] if node.args else None
    if name in REARRANGED:
        padded = node.args[2] if name == "constant_pad_nd" and len(node.args) > 2 else 0
        return inside == [first] and is_zero(padded)
    if name in SUMS:
        tensors = node.all_input_nodes
        scalar = name in ("add", "sub") and len(node.args) > 1 and isinstance(node.args[1], (int, float)) and node.args[1] != 0
        return not scalar and all(source in flowing or is_zero(source) for source in tensors)
    if name in PRODUCTS:
        return len(inside) == 1 and sum(argument is inside[0] for argument in flat(node.args)) == 1
    if name in FIRST:
        return is_linear_in_one(node, name, inside)
    if name in ADDITIVE:
        return is_linear_addition(node, name, flowing)
    return "backward" in name and is_linear_in_gradients(node, inside, flowing)


def is_linear_in_one(node: fx.Node, name: str, inside: list[fx.Node]) -> bool:
    """Division, masking, and a choice between two values."""
    if name == "div":
        return inside == [node.args[0]] and node.kwargs.get("rounding_mode") is None
    if name == "masked_fill":
        value = node.args[2]
        return inside == [node.args[0]] and is_zero(value)
    condition, *branches = node.args
    return condition not in inside and all(b in inside or is_zero(b) for b in branches)


def is_linear_addition(node: fx.Node, name: str, flowing: Set[fx.Node]) -> bool:
    """Values added into, or put over, others: both flow or are zero; indices and the other factor do not flow."""
    if name in ("addmm", "baddbmm", "addbmm"):
        base, left, right = node.args[:3]
        one = (left in flowing) != (right in flowing)
        return one and (base in flowing or is_zero(base))
    assert isinstance(node.target, torch_private.OpOverload)
    names = [argument.name for argument in node.target._schema.arguments]
    numbers = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    if isinstance(numbers.get("value"), (int, float)) and numbers["value"] != 0:
        return False  # a number that is put among the gradients
    values = [argument for argument in flat(node.args) if isinstance(argument, fx.Node) and is_floating(argument)]
    return all(value in flowing or is_zero(value) for value in values)


def is_whole(node: fx.Node) -> bool:
    """Whether the result is rounded to whole numbers, as casts and sums can."""
    return isinstance(node.meta.get("val"), Tensor) and not is_floating(node)


def is_floating(node: fx.Node) -> bool:
    """Whether a value has a floating-point or complex type."""
    fake = node.meta.get("val")
    return isinstance(fake, Tensor) and (fake.dtype.is_floating_point or fake.dtype.is_complex)


def is_zero(value: object) -> bool:
    """Whether an argument is zero: a number, or a node by what makes it."""
    if isinstance(value, (int, float)):
        return value == 0
    if not isinstance(value, fx.Node) or not isinstance(value.target, torch_private.OpOverload):
        return False
    name = value.target._schema.name.split("::")[1]
    if name in ("full", "full_like", "new_full", "scalar_tensor"):
        return any(
            argument == 0 and not isinstance(argument, bool) for argument in value.args if isinstance(argument, (int, float))
        )
    return name in ("zeros", "zeros_like", "new_zeros")


def is_linear_in_gradients(node: fx.Node, inside: list[fx.Node], flowing: Set[fx.Node]) -> bool:
    """A formula of autograd's is linear in the gradients that it is given, which torch names grad, grad_output, and so on, and
    this package d_out, d_h_n and d_c_n."""
    assert isinstance(node.target, torch_private.OpOverload)
    names = [argument.name for argument in node.target._schema.arguments][: len(node.args)]
    gradients = [argument for name, argument in zip(names, node.args, strict=True) if name.startswith(GRADIENTS)]
    others = [argument for name, argument in zip(names, node.args, strict=True) if not name.startswith(GRADIENTS)]
    given = [argument for argument in gradients if isinstance(argument, fx.Node)]
    return not set(inside) & set(map(id_free, flat(others))) and all(g in flowing or is_zero(g) for g in given)


def id_free(argument: object) -> object:
    """Nodes as they are, anything that cannot be in a set as None."""
    return argument if isinstance(argument, fx.Node) else None


def flat(arguments: object) -> list[object]:
    """Arguments with those in lists."""
    if isinstance(arguments, (tuple, list)):
        return [item for argument in arguments for item in flat(argument)]
    return [arguments]
