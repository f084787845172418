"""What a rule sees (`Use`), what it answers, and the arithmetic of layouts that rules share.

A rule maps the states of the operands of one call to the state of its result (a tuple for several results), or
raises Mixes with the reason. Two facts need no rule and are decided before a rule is asked: an operation on
operands that are all Shared is Shared, and an operation that is linear in one operand carries Summed through it
when everything else is Shared.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from dpcompile.ir.axis import (
    BATCH_SIZE,
    SHARED,
    Batched,
    BatchSize,
    Constant,
    Mixes,
    Position,
    Shared,
    State,
    Summed,
    Uniform,
)
from dpcompile.ir.graph import integer, operand_node, size_expression, value

Result = State | tuple[State, ...]
Laid = Batched | Uniform
LAID = (Batched, Uniform)


@dataclass(frozen=True)
class Use:
    """One call of an operation: its arguments by schema name, and the states of the nodes before it."""

    node: fx.Node
    states: Mapping[fx.Node, Result]
    symbol: sympy.Symbol

    def __getitem__(self, name: str) -> Any:
        """The argument of this schema name, the schema's default if it was not given."""
        for position, argument in enumerate(self.node.target._schema.arguments):  # type: ignore[union-attr]
            if argument.name == name:
                if position < len(self.node.args):
                    return self.node.args[position]
                return self.node.kwargs.get(name, argument.default_value)
        raise KeyError(name)

    @property
    def first(self) -> fx.Node:
        """The first argument, for operations on one tensor."""
        argument = self.node.args[0]
        assert isinstance(argument, fx.Node), f"{self.node} does not begin with a tensor"
        return argument

    def operands_except(self, names: tuple[str, ...] = ()) -> list[fx.Node]:
        """Every node among the arguments, as often as it occurs, but for the arguments of these names."""
        found: list[fx.Node] = []
        others = [a.name for a in self.node.target._schema.arguments if a.name not in names]  # type: ignore[union-attr]
        fx.node.map_arg([self[name] for name in others], found.append)
        return found

    def has(self, name: str) -> bool:
        """Whether the operation has an argument of this name."""
        return any(argument.name == name for argument in self.node.target._schema.arguments)  # type: ignore[union-attr]

    def state(self, argument: Any) -> State:
        """The state of an argument; numbers and None are Shared."""
        if not isinstance(argument, fx.Node):
            return SHARED
        found = self.states[argument]
        assert not isinstance(found, tuple), f"{argument} has several results"
        return found

    def shape(self, argument: fx.Node) -> list[sympy.Expr]:
        """The sizes of a tensor argument as expressions in the batch symbol."""
        return [size_expression(size) for size in value(argument).shape]

    def result_shape(self, index: int | None = None) -> list[sympy.Expr]:
        """The sizes of the result (or of one of several results)."""
        fake = self.node.meta["val"] if index is None else self.node.meta["val"][index]
        return [size_expression(size) for size in fake.shape]

    def tensors(self) -> list[fx.Node]:
        """All tensor operands, those inside lists included."""
        return [n for n in self.node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]

    def has_batch(self, size: sympy.Expr) -> bool:
        """Whether a size depends on the batch size."""
        return self.symbol in size.free_symbols

    def folded(self, size: sympy.Expr) -> int:
        """How many positions per example a batch-sized dimension holds."""
        positions = size / self.symbol
        if not positions.is_Integer:
            raise Mixes(f"a size of {size} is no multiple of the batch size")
        return int(positions)

    def axis(self, shape: list[sympy.Expr]) -> int:
        """The one dimension whose size depends on the batch size."""
        found = [dim for dim, size in enumerate(shape) if self.has_batch(size)]
        if len(found) != 1:
            raise Mixes(f"the result has shape {shape}, with the batch size in {len(found)} dimensions")
        return found[0]

    def laid_out(self, shape: list[sympy.Expr], before: int, like: type[Laid]) -> Laid:
        """The layout of a contiguous tensor whose examples repeat `before` times in row-major order."""
        dim = self.axis(shape)
        outer, rest = divmod(before, prod(shape[:dim]) or 1)
        if rest or outer == 0:
            raise Mixes("a reshape cuts across examples")
        inner = shape[dim] / (outer * self.symbol)
        if not inner.is_Integer:
            raise Mixes("a reshape cuts across examples")
        return like(dim, outer, int(inner))


Rule = Callable[[Use], Result]


def prod(sizes: list[sympy.Expr]) -> int:
    """The product of sizes that do not depend on the batch."""
    return int(math.prod(int(size) for size in sizes))


def before_examples(state: Laid, shape: list[sympy.Expr]) -> int:
    """How often the block of all examples repeats in row-major order."""
    return prod(shape[: state.dim]) * state.outer


def moved(state: Laid, dim: int) -> Laid:
    """The same layout along another dimension."""
    return type(state)(dim, state.outer, state.inner)


def refuse_numbers(use: Use, sizes: tuple[str, ...] = ()) -> None:
    """A batch size or a batch position used as a value couples examples; the arguments `sizes` may hold batch sizes."""
    for node in use.operands_except(sizes):
        if isinstance(use.states[node], BatchSize):
            raise Mixes("the batch size is used as a value, so every example's result depends on how many there are",
                        "divide by a constant, or return per-example values and scale the result afterwards")  # fmt: skip
        if isinstance(use.states[node], Position):
            raise Mixes("an example's position in the batch is used as a value", "make it independent of the position")


def aligned(use: Use, operands: list[tuple[State, list[sympy.Expr]]], shape: list[sympy.Expr]) -> State:
    """Pointwise combination with broadcasting: all operands with examples must agree on where those lie."""
    found: list[Laid] = []
    for state, sizes in operands:
        if isinstance(state, Summed):
            raise Mixes("a sum over the batch is combined with other values", "reduce over each example's own elements only")
        if isinstance(state, LAID):
            found.append(moved(state, state.dim + len(shape) - len(sizes)))
    layouts = {(state.dim, state.outer, state.inner) for state in found}
    if len(layouts) > 1:
        raise Mixes("examples lie along different axes of the operands, so every example meets every other")
    if not found:
        if any(isinstance(state, Constant) for state, _ in operands):
            return spread(use, shape, all(isinstance(state, Constant) for state, _ in operands))
        return SHARED
    first = found[0]
    return Batched(first.dim, first.outer, first.inner) if any(isinstance(s, Batched) for s in found) else first


def alike(use: Use, shape: list[sympy.Expr]) -> State:
    """Equal for all examples, but not within one: along the batch-sized dimension if there is one."""
    if not any(map(use.has_batch, shape)):
        return SHARED
    dim = use.axis(shape)
    return Uniform(dim, 1, use.folded(shape[dim]))


def differing(use: Use, state: State, shape: list[sympy.Expr]) -> State:
    """A state whose elements differ within an example: what is constant is merely equal for all examples."""
    return alike(use, shape) if isinstance(state, Constant) else state


def spread(use: Use, shape: list[sympy.Expr], constant: bool) -> State:
    """Constants combined with shared values: equal for all examples, along the batch-sized dimension if there is one."""
    if constant:
        return Constant(math.nan)
    batch_dims = [dim for dim, size in enumerate(shape) if use.has_batch(size)]
    if not batch_dims:
        return SHARED
    dim = use.axis(shape)
    if shape[dim] != use.symbol:
        raise Mixes("a constant of a folded batch shape is combined with shared values, so its layout is unknown")
    return Uniform(dim)


def normal_dims(dims: Any, rank: int) -> list[int]:
    """Dimension arguments as a list of non-negative numbers; None and [] mean all."""
    if dims is None or dims == []:
        return list(range(rank))
    return [dim % max(rank, 1) for dim in (dims if isinstance(dims, (list, tuple)) else [dims])]


def is_fixed(use: Use, node: fx.Node) -> bool:
    """An operand that no example and no batch size influences."""
    state = use.states[node] if isinstance(node, fx.Node) else SHARED
    return isinstance(state, Shared) or (isinstance(state, Constant) and not any(map(use.has_batch, use.shape(node))))


def python_rule(use: Use) -> Result:
    """Integer arithmetic on sizes, and picking one of several results."""
    if use.node.target is operator.getitem:
        states = use.states[operand_node(use.node, 0)]
        assert isinstance(states, tuple)
        return states[integer(use.node, 1)]
    return BATCH_SIZE
