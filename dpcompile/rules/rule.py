"""What a rule sees (`Use`) and the families of rules that serve most operations.

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
    SUMMED,
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
from dpcompile.ir.graph import size_expression, value

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


def normal_dims(dims: Any, rank: int) -> list[int]:
    """Dimension arguments as a list of non-negative numbers; None and [] mean all."""
    if dims is None or dims == []:
        return list(range(rank))
    return [dim % max(rank, 1) for dim in (dims if isinstance(dims, (list, tuple)) else [dims])]


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


MEETS_SUM = "a sum over the batch is used for more than adding up gradients, so examples meet in it"
SUM_WAY_OUT = "reduce over each example's own elements only (for example x.mean(1) instead of x.mean())"


def is_fixed(use: Use, node: fx.Node) -> bool:
    """An operand that no example and no batch size influences."""
    state = use.state(node)
    return isinstance(state, Shared) or (isinstance(state, Constant) and not any(map(use.has_batch, use.shape(node))))


def is_sum_or_zero(state: State) -> bool:
    """A sum over examples, or zeros to which one is added."""
    return isinstance(state, Summed) or (isinstance(state, Constant) and state.value == 0)


def summed_result(use: Use) -> Result:
    """Summed for every result."""
    fakes = use.node.meta["val"]
    return SUMMED if isinstance(fakes, torch.Tensor) else (SUMMED,) * len(fakes)


def python_rule(use: Use) -> Result:
    """Integer arithmetic on sizes, and picking one of several results."""
    if use.node.target is operator.getitem:
        states = use.states[use.node.args[0]]  # type: ignore[index]
        assert isinstance(states, tuple)
        return states[use.node.args[1]]  # type: ignore[index]
    return BATCH_SIZE
