"""Which operations of a backward pass are linear in the gradients that flow through them.

Autograd's own formulas are, but a hook that clamps gradients, a custom function's backward, or the second derivative of a
gradient penalty need not be: scaling before them is not scaling behind them. An operation without a row here counts as not
linear.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Set
from typing import Any, Final

from torch import Tensor, fx

from dpcompile import torch_private

REARRANGED: Final = frozenset({
    "view", "_unsafe_view", "reshape", "_reshape_alias", "t", "transpose", "permute", "squeeze", "unsqueeze", "expand", "slice",
    "select", "split", "split_with_sizes", "chunk", "unbind", "narrow", "diagonal", "unfold", "clone", "_to_copy", "alias",
    "detach", "contiguous", "neg", "sum", "mean", "cumsum", "flip", "roll", "index_select", "gather", "tril", "triu",
    "slice_backward", "select_backward", "as_strided", "lift_fresh_copy", "repeat", "index", "unsafe_split", "expand_as",
    "im2col", "col2im", "pixel_shuffle", "pixel_unshuffle", "new_zeros", "zeros_like", "trace", "diag_embed", "real", "imag",
    "diagonal_backward", "view_as_real", "view_as_complex", "conj", "_conj", "resolve_conj", "movedim", "unfold_backward",
    "unsafe_chunk", "constant_pad_nd", "choose_kept", "place_kept", "keep_entries",
})  # fmt: skip
"""Linear in their first argument, whatever the others are."""
SUMS: Final = frozenset({"add", "sub", "cat", "stack"})
"""Linear if all tensors among the arguments flow."""
PRODUCTS: Final = frozenset({"mul", "mm", "bmm", "matmul", "mv", "dot", "convolution", "linear", "einsum", "_trilinear"})
"""Linear if exactly one of the factors flows, and nothing is added to the product."""
FIRST: Final = frozenset({"div", "masked_fill", "where"})
"""Linear in one argument if the others do not flow: the numerator, what is masked with zero, one branch against zero."""
ADDITIVE: Final = frozenset({
    "index_add", "scatter_add", "index_put", "_index_put_impl", "_unsafe_index_put", "select_scatter", "slice_scatter", "scatter",
    "index_copy", "copy",
})  # fmt: skip
"""Linear if everything that is put together flows or is zero, whatever the places are."""
ADDED_PRODUCTS: Final = frozenset({"addmm", "baddbmm", "addbmm"})
"""Linear if one factor flows, and what is added flows or is zero."""
PUT_TOGETHER: Final = ("self", "src", "source", "value", "values")
"""The arguments of ADDITIVE operations that are put together; the others say where."""
NARROWEST: Final = 4
"""Bytes of a real number below which a conversion rounds too much to count as linear."""


GRADIENTS: Final = ("grad", "d_")


def is_linear(node: fx.Node, flowing: Set[fx.Node]) -> bool:
    """Whether a node is linear in those of its operands that flow, and zero where they are."""
    inside = [argument for argument in flat((node.args, tuple(node.kwargs.values()))) if argument in flowing]
    if not inside or node.target is operator.getitem:
        return True
    if not isinstance(node.target, torch_private.OpOverload) or is_rounded(node):
        return False
    return is_linear_operation(node, node.target._schema.name.split("::")[1], inside, flowing)


def is_linear_operation(node: fx.Node, name: str, inside: list[Any], flowing: Set[fx.Node]) -> bool:
    """The same for an ATen operation, by its name; `inside` are its flowing operands, as often as they occur."""
    first, given = node.args[0] if node.args else None, named_arguments(node)
    if name in REARRANGED:
        is_cast = isinstance(node.target, torch_private.OpOverload) and node.target._overloadname == "dtype"
        return inside == [first] and is_zero(given.get("value", 0)) and not is_cast  # view(dtype) reads the bits anew
    if name in SUMS:
        numbers = [argument for argument in (given.get("other"),) if isinstance(argument, (int, float, complex))]
        return all(map(is_zero, numbers)) and all(s in flowing or is_zero(s) for s in node.all_input_nodes)
    if name in PRODUCTS:
        return len(inside) == 1 and given.get("bias") is None
    if name in FIRST:
        return is_linear_in_one(node, name, inside)
    if name in ADDED_PRODUCTS:
        base, left, right = node.args[:3]
        return (left in flowing) != (right in flowing) and (base in flowing or is_zero(base))
    if name in ADDITIVE:
        together = [argument for key, argument in given.items() if key in PUT_TOGETHER]
        return given.get("reduce") is None and all(argument in flowing or is_zero(argument) for argument in together)
    return "backward" in name and is_linear_in_gradients(given, inside, flowing)


def named_arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments that were given, by schema name."""
    assert isinstance(node.target, torch_private.OpOverload)
    names = [argument.name for argument in node.target._schema.arguments]
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def is_linear_in_one(node: fx.Node, name: str, inside: list[Any]) -> bool:
    """Division, masking, and a choice between two values."""
    if name == "div":
        return inside == [node.args[0]] and node.kwargs.get("rounding_mode") is None
    if name == "masked_fill":
        return inside == [node.args[0]] and is_zero(node.args[2])
    condition, *branches = node.args
    return condition not in inside and all(b in inside or is_zero(b) for b in branches)


def is_rounded(node: fx.Node) -> bool:
    """Whether a result holds whole numbers, truth values, or numbers of a few bits."""
    found = node.meta.get("val")
    fakes = [fake for fake in (found if isinstance(found, (tuple, list)) else [found]) if isinstance(fake, Tensor)]
    return any(not (is_inexact(fake) and fake.dtype.itemsize >= NARROWEST * (1 + fake.is_complex())) for fake in fakes)


def is_inexact(fake: Tensor) -> bool:
    """Whether a tensor has a floating-point or complex type."""
    return fake.is_floating_point() or fake.is_complex()


def is_zero(value: object) -> bool:
    """Whether an argument is zero: a number, or a node by what makes it."""
    if isinstance(value, (int, float, complex)):
        return value == 0
    if not isinstance(value, fx.Node) or not isinstance(value.target, torch_private.OpOverload):
        return False
    name = value.target._schema.name.split("::")[1]
    if name in ("full", "full_like", "new_full"):
        return is_zero(named_arguments(value).get("fill_value"))
    if name == "scalar_tensor":
        return is_zero(value.args[0])
    return name in ("zeros", "zeros_like", "new_zeros")


def is_linear_in_gradients(given: Mapping[str, Any], inside: list[Any], flowing: Set[fx.Node]) -> bool:
    """A formula of autograd's is linear in the gradients that it is given, which torch names grad, grad_output, and so on, and
    this package d_out, d_h_n and d_c_n."""
    gradients = [argument for name, argument in given.items() if name.startswith(GRADIENTS)]
    others = flat([argument for name, argument in given.items() if not name.startswith(GRADIENTS)])
    nodes = [argument for argument in gradients if isinstance(argument, fx.Node)]
    return not any(argument in others for argument in inside) and all(g in flowing or is_zero(g) for g in nodes)


def flat(arguments: object) -> list[Any]:
    """Nodes and numbers among arguments, those in lists too; anything else is None."""
    if isinstance(arguments, (tuple, list)):
        return [item for argument in arguments for item in flat(argument)]
    return [arguments if isinstance(arguments, fx.Node) else None]
