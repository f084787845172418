"""Random numbers held fixed: the draws of an example travel with it, whatever batch it is in.

A random operation is called once per example on that example's operands alone, from a seed that belongs to
the node and the example. Fused attention draws inside its kernel, where no example's draws can be told apart:
its dropout is switched off for the check, in forward and backward alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from dpcompile.ir.axis import Batched, Position, State, Uniform
from dpcompile.ir.graph import callee, size_expression
from dpcompile.ir.randomness import dropout_place, is_seeded
from dpcompile.rules.rule import Result

SEEDS_PER_NODE = 64


def is_random(node: fx.Node) -> bool:
    """Whether a node draws random numbers outside of fused attention."""
    return is_seeded(node) and dropout_place(node) is None


def without_dropout(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The node's arguments, with the dropout of fused attention switched off."""
    place = dropout_place(node)
    args, kwargs = list(node.args), dict(node.kwargs)
    if place is not None and place < len(args):
        args[place] = 0.0
    elif "dropout_p" in kwargs:
        kwargs["dropout_p"] = 0.0
    return tuple(args), kwargs


def draw_per_example(
    node: fx.Node,
    states: Mapping[fx.Node, Result],
    symbol: sympy.Symbol,
    values: Mapping[fx.Node, Any],
    rows: Sequence[int],
    number: int,
) -> Any:
    """Call a random operation on each example alone and lay the results out as the analysis says."""
    results = []
    for position, row in enumerate(rows):
        torch.manual_seed(number * SEEDS_PER_NODE + row)
        one = {n: one_example(n, states[n], value, symbol, position, len(rows)) for n, value in values.items()}
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), one.__getitem__)
        results.append(callee(node)(*args, **kwargs))
    fakes, state = node.meta["val"], states[node]
    if isinstance(state, tuple):
        return tuple(joined([r[i] for r in results], s, fakes[i], symbol) for i, s in enumerate(state))
    return joined(results, state, fakes, symbol)


def one_example(node: fx.Node, state: Result, value: Any, symbol: sympy.Symbol, position: int, size: int) -> Any:
    """An operand as it would be if this example were alone."""
    if isinstance(value, int) and isinstance(node.meta.get("val"), torch.SymInt):
        return int(size_expression(node.meta["val"]).subs(symbol, 1))
    if not isinstance(value, Tensor):
        return value
    if isinstance(state, (Batched, Uniform)):
        unfolded = value.unflatten(state.dim, (state.outer, size, state.inner))
        return unfolded.narrow(state.dim + 1, position, 1).flatten(state.dim, state.dim + 2).contiguous()
    for dim, expression in enumerate(map(size_expression, node.meta["val"].shape)):
        if symbol in expression.free_symbols:
            start = position if isinstance(state, Position) else 0
            value = value.narrow(dim, start, int(expression.subs(symbol, 1)))
    return value.contiguous()


def joined(parts: Sequence[Tensor], state: State, fake: Tensor, symbol: sympy.Symbol) -> Tensor:
    """Single examples' results as one tensor with the sizes and strides that the graph expects."""
    if not isinstance(state, (Batched, Uniform)):
        return parts[0]
    folded = [part.unflatten(state.dim, (state.outer, 1, state.inner)) for part in parts]
    whole = torch.cat(folded, state.dim + 1).flatten(state.dim, state.dim + 2)
    strides = [int(size_expression(stride).subs(symbol, len(parts))) for stride in fake.stride()]
    return torch.empty_strided(whole.shape, strides, dtype=whole.dtype, device=whole.device).copy_(whole)
