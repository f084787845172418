"""What a state means, decided by running the real operation in float64 on real examples.

A sample is one call of an operation with operands whose states are given. It is run on several little batches: each
example alone, all three, with one of them replaced, with one removed, and in another order. An output then truly is

    Batched(dim, outer, inner)   if in every batch an example's block equals what the example gives alone
    Uniform(...)                 if moreover all blocks are equal
    Shared                       if it is the same for every batch
    Summed                       if for every batch it is the sum of what its examples give alone
    Constant(value)              if all its elements equal one number, the same for every batch
    Position(dim)                if it counts the examples along dim

What a rule claims must be among what is true. Where something is true, a rule may refuse only if the sample says so.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

from dpcompile import torch_private
from dpcompile.analysis.example_axis import check_shapes, state_of
from dpcompile.ir.axis import (
    BATCH_SIZE,
    SHARED,
    SUMMED,
    Batched,
    BatchSize,
    Constant,
    Mixes,
    Position,
    State,
    Summed,
    Uniform,
)
from dpcompile.ir.errors import DPCompileError
from dpcompile.rules.rule import Result, Rule, Use

N = None
"""Stands for the example axis in the shape of an operand: its size is outer * B * inner."""
HINT = 23
ALONE = ((0,), (1,), (2,), (7,))
BATCHES = ((0, 1, 2), (0, 7, 2), (2, 0, 1), (0, 2))
FAILURES = (RuntimeError, IndexError, ValueError)
Draw = Callable[[torch.Generator, Sequence[int]], Tensor]
REFUSED = "refused"


def normal(generator: torch.Generator, shape: Sequence[int]) -> Tensor:
    """Floating-point numbers."""
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


def positive(generator: torch.Generator, shape: Sequence[int]) -> Tensor:
    """Numbers between 0.1 and 0.9."""
    return 0.1 + 0.8 * torch.rand(tuple(shape), generator=generator, dtype=torch.float64)


def zero_or_one(generator: torch.Generator, shape: Sequence[int]) -> Tensor:
    """Probabilities that leave nothing to chance."""
    return torch.randint(0, 2, tuple(shape), generator=generator).double()


def booleans(generator: torch.Generator, shape: Sequence[int]) -> Tensor:
    """True and false."""
    return torch.randint(0, 2, tuple(shape), generator=generator).bool()


def complexes(generator: torch.Generator, shape: Sequence[int]) -> Tensor:
    """Complex numbers."""
    return torch.randn(tuple(shape), generator=generator, dtype=torch.complex128)


def integers(high: int) -> Draw:
    """Integers from 0 to high - 1."""
    return lambda generator, shape: torch.randint(0, high, tuple(shape), generator=generator)


@dataclass(frozen=True)
class Operand:
    """A tensor operand with its state; `shape` holds the sizes, N where the examples lie."""

    state: State
    shape: tuple[int | None, ...]
    draw: Draw = normal

    def sizes(self, batch: Any) -> list[Any]:
        """The sizes for a number (or symbol) of examples."""
        folded = getattr(self.state, "outer", 1) * getattr(self.state, "inner", 1)
        return [folded * batch if size is None else size for size in self.shape]

    def value(self, place: int, examples: Sequence[int]) -> Tensor:
        """The operand for these examples; `place` makes operands differ."""
        match self.state:
            case Constant(value=number):
                return torch.full(self.sizes(len(examples)), number, dtype=self.dtype())
            case Position(dim=dim):
                counted = torch.arange(len(examples)).to(self.dtype())
                shape = [-1 if axis == dim else 1 for axis in range(len(self.shape))]
                return counted.view(shape).expand(self.sizes(len(examples))).contiguous()
            case Batched() | Uniform():
                return self.laid_out(place, examples)
            case Summed():
                return sum((self.drawn(place, number) for number in examples), torch.zeros(()))
            case _:
                return self.drawn(place, 0)

    def laid_out(self, place: int, examples: Sequence[int]) -> Tensor:
        """Every example's own block between `outer` and `inner`."""
        state = self.state
        assert isinstance(state, (Batched, Uniform))
        uniform = isinstance(state, Uniform)
        blocks = [self.drawn(place, 0 if uniform else number) for number in examples]
        if (state.outer, state.inner) == (1, 1):
            return torch.cat(blocks, state.dim)
        split = [b.unflatten(state.dim, (state.outer, 1, state.inner)) for b in blocks]
        return torch.cat(split, state.dim + 1).flatten(state.dim, state.dim + 2).contiguous()

    def drawn(self, place: int, number: int) -> Tensor:
        """The part of one example."""
        return drawn(self.draw, tuple(self.sizes(1)), 1000 * place + number)

    def dtype(self) -> torch.dtype:
        """The type of its elements."""
        return dtype_of(self.draw)


@cache
def drawn(draw: Draw, shape: tuple[int, ...], seed: int) -> Tensor:
    """Random numbers from a seed."""
    return draw(torch.Generator().manual_seed(seed), shape)


@cache
def dtype_of(draw: Draw) -> torch.dtype:
    """The type of what is drawn."""
    return draw(torch.Generator(), (1,)).dtype


@dataclass(frozen=True)
class Size:
    """A number computed from the batch size."""

    of: Callable[[Any], Any] = lambda batch: batch


def batched(*shape: int | None, outer: int = 1, inner: int = 1, draw: Draw = normal) -> Operand:
    """An operand that differs from example to example."""
    return Operand(Batched(shape.index(N), outer, inner), shape, draw)


def uniform(*shape: int | None, outer: int = 1, inner: int = 1, draw: Draw = normal) -> Operand:
    """An operand with equal values for all examples."""
    return Operand(Uniform(shape.index(N), outer, inner), shape, draw)


def shared(*shape: int, draw: Draw = normal) -> Operand:
    """An operand without examples."""
    return Operand(SHARED, shape, draw)


def summed(*shape: int, draw: Draw = normal) -> Operand:
    """A sum over examples."""
    return Operand(SUMMED, shape, draw)


def constant(number: float, *shape: int | None, draw: Draw = normal) -> Operand:
    """One number everywhere."""
    return Operand(Constant(number), shape, draw)


def position(*shape: int | None) -> Operand:
    """The index of the example."""
    return Operand(Position(shape.index(N)), shape, integers(1))


@dataclass(frozen=True, eq=False)
class Sample:
    """One call. cautious: the rule may refuse although a state would be true. must: it may not, whatever the operands.

    run: what the operation means, where it cannot be run here. drawn: it draws random numbers, so that only a claim
    of equal values can be wrong.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    cautious: bool = False
    must: bool = False
    run: Callable[..., Any] | None = None
    drawn: bool = False

    def __str__(self) -> str:
        return (
            f"{self.op}({', '.join([describe(a) for a in self.args] + [f'{k}={describe(v)}' for k, v in self.kwargs.items()])})"
        )

    def operands(self) -> list[Operand | Size]:
        """All tensor operands and sizes, in order."""
        found: list[Operand | Size] = []
        fx.node.map_aggregate((self.args, self.kwargs), lambda a: found.append(a) if isinstance(a, (Operand, Size)) else a)
        return found

    def allows_refusal(self) -> bool:
        """Whether a refusal needs no reason: said so, or operands that have no business in a layer."""
        odd = (Summed, Uniform, Constant, Position, BatchSize)
        return not self.must and (self.cautious or any(isinstance(o, Size) or isinstance(o.state, odd) for o in self.operands()))


def call(
    op: Any,
    *args: Any,
    cautious: bool = False,
    must: bool = False,
    run: Callable[..., Any] | None = None,
    drawn: bool = False,
    **kwargs: Any,
) -> Sample:
    """A sample, written like the call itself."""
    return Sample(op, args, kwargs, cautious, must, run, drawn)


def describe(argument: Any) -> str:
    """An operand by its state and shape."""
    if isinstance(argument, Operand):
        sizes = ", ".join("B" if size is None else str(size) for size in argument.shape)
        return f"{argument.state}[{sizes}]"
    if isinstance(argument, (list, tuple)):
        return f"[{', '.join(map(describe, argument))}]"
    return "size" if isinstance(argument, Size) else str(argument)


# -- what is true ---------------------------------------------------------------------------------------------


Runs = dict[tuple[int, ...], list[Any]]


@cache
def runs(sample: Sample) -> Runs:
    """The results of the call on every little batch, as lists; empty where the operation fails."""
    return {examples: results(sample, examples) for examples in (*ALONE, *BATCHES)}


def results(sample: Sample, examples: Sequence[int]) -> list[Any]:
    """The results on one batch."""
    places = {id(operand): place for place, operand in enumerate(sample.operands())}

    def value(argument: Any) -> Any:
        if isinstance(argument, Operand):
            return argument.value(places[id(argument)], examples)
        return argument.of(len(examples)) if isinstance(argument, Size) else argument

    args, kwargs = fx.node.map_aggregate((sample.args, sample.kwargs), value)
    if sample.drawn:
        torch.manual_seed(0)
    try:
        with warnings.catch_warnings():  # torch calls some uses deprecated
            warnings.simplefilter("ignore")
            found = (sample.run or sample.op)(*args, **kwargs)
    except FAILURES:
        return []
    return list(found) if isinstance(found, (tuple, list)) else [found]


def holds(sample: Sample, state: State, index: int) -> bool:
    """Whether this state is true of one result of the call."""
    found = runs(sample)
    if isinstance(state, Constant):
        found = {examples: outputs for examples, outputs in found.items() if outputs}
    if not all(found.values()):
        return False
    values = {examples: outputs[index] for examples, outputs in found.items()}
    first = next(iter(values.values()))
    if not isinstance(first, Tensor):
        return isinstance(state, BatchSize) or all(v == first for v in values.values())
    if sample.drawn and isinstance(state, Batched):
        return True
    try:
        return all(equal(left, right) for left, right in pairs(state, values))
    except FAILURES:
        return False


def pairs(state: State, values: dict[tuple[int, ...], Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Tensors that are equal if the state is true."""
    first = next(iter(values.values()))
    for examples, value in values.items():
        match state:
            case Batched() | Uniform():
                split = value.unflatten(state.dim, (state.outer, len(examples), state.inner))
                for place, number in enumerate(examples):
                    alone = values[(0,) if isinstance(state, Uniform) else (number,)]
                    yield split.select(state.dim + 1, place), alone.unflatten(state.dim, (state.outer, state.inner))
            case Summed():
                yield value, torch.stack([values[number,] for number in examples]).sum(0)
            case Constant(value=number):
                told = first.reshape(-1)[0] if math.isnan(number) else torch.tensor(number)
                yield value.to(torch.complex128), told.to(torch.complex128).expand(value.shape)
            case Position(dim=dim):
                counted = torch.arange(len(examples), dtype=value.dtype)
                yield value.movedim(dim, -1), counted.expand(value.movedim(dim, -1).shape)
            case _:
                yield value, first


def equal(left: Tensor, right: Tensor) -> bool:
    """Equal up to rounding in float64."""
    if left.shape != right.shape or (left.dtype != right.dtype and left.dtype.is_floating_point):
        return False
    if not (left.is_floating_point() or left.is_complex()):
        return bool((left == right).all())
    return bool(torch.allclose(left, right, rtol=1e-9, atol=1e-10, equal_nan=True))


@cache
def has_truth(sample: Sample) -> bool:
    """Whether some state is true of every result."""
    found = runs(sample)
    if not all(found.values()):
        return False
    return all(any(holds(sample, state, i) for state in candidates(found, i)) for i in range(len(found[ALONE[0]])))


def candidates(found: Runs, index: int) -> Iterator[State]:
    """Every state whose layout fits the sizes of a result."""
    yield from (SHARED, SUMMED, Constant(math.nan), BATCH_SIZE)
    one, three = found[ALONE[0]][index], found[BATCHES[0]][index]
    if not isinstance(one, Tensor):
        return
    for dim, (size, larger) in enumerate(zip(one.shape, three.shape, strict=False)):
        if larger == 3 * size and size > 0:
            yield from (Batched(dim, k, size // k) for k in range(1, size + 1) if size % k == 0)
            yield Position(dim)


# -- what a rule says -----------------------------------------------------------------------------------------


@cache
def use_of(sample: Sample) -> Use:
    """The call as a rule sees it: fake operands with a symbolic batch size."""
    (mode, batch), graph = symbolic_batch(), fx.Graph()
    states: dict[fx.Node, Result] = {}
    runs(sample)  # outside of the fake mode

    def node(argument: Any) -> Any:
        if not isinstance(argument, (Operand, Size)):
            return argument
        made = graph.placeholder(f"operand_{len(states)}")
        if isinstance(argument, Size):
            made.meta["val"], states[made] = argument.of(batch), BATCH_SIZE
            return made
        made.meta["val"], states[made] = torch.empty(argument.sizes(batch), dtype=argument.dtype()), argument.state
        return made

    with mode:
        known: dict[int, Any] = {}
        args, kwargs = fx.node.map_aggregate(
            (sample.args, sample.kwargs), lambda a: known.setdefault(id(a), node(a)) if isinstance(a, (Operand, Size)) else a
        )
        made = graph.call_function(sample.op, args, kwargs)
        outputs = [symbolic_result(sample, index, batch) for index in range(len(outputs_of(sample, 3)))]
        several = sample.op._schema.returns[1:] or str(sample.op._schema.returns[0].type) == "List[Tensor]"
        made.meta["val"] = tuple(outputs) if several else outputs[0]
    return Use(made, states, batch.node.expr)


@cache
def symbolic_batch() -> tuple[Any, Any]:
    """A fake mode and its batch size."""
    mode = torch_private.new_fakes()
    return mode, torch_private.fake(mode, torch.empty(HINT), 0, HINT).shape[0]


def outputs_of(sample: Sample, size: int) -> list[Any]:
    """The results on the first batch of this size."""
    found = next(outputs for examples, outputs in runs(sample).items() if len(examples) == size)
    assert found, f"{sample} cannot be run on {size} examples"
    return found


def symbolic_result(sample: Sample, index: int, batch: Any) -> Any:
    """A result with the sizes and strides that it has on two and on three examples, as formulas of the batch size."""
    two, three = outputs_of(sample, 2)[index], outputs_of(sample, 3)[index]

    def formula(second: int | torch.SymInt, third: int | torch.SymInt) -> Any:
        slope, start = third - second, 3 * second - 2 * third
        return slope * batch + start if slope else start

    if not isinstance(three, Tensor):
        return three if two == three else formula(two, three)
    sizes = [formula(*pair) for pair in zip(two.shape, three.shape, strict=True)]
    strides = [formula(*pair) for pair in zip(two.stride(), three.stride(), strict=True)]
    made = torch.empty_strided(sizes, strides, dtype=three.dtype)
    offset = formula(two.storage_offset(), three.storage_offset())
    return (
        made
        if sample.op is not torch.ops.aten.as_strided.default
        else torch.empty(1000 * batch).as_strided(sizes, strides, offset)
    )


def claim(sample: Sample, rule: Rule | None = None) -> Result | str:
    """What the compiler says of the call, or REFUSED; with another rule in place of the operation's own."""
    use = use_of(sample)
    try:
        if rule is None:
            return state_of(use)
        said = rule(use)
        check_shapes(use, said)
    except (DPCompileError, Mixes):
        return REFUSED
    finally:
        mode, _ = symbolic_batch()
        if torch_private.specialised(mode):
            symbolic_batch.cache_clear()
            raise AssertionError(f"the rule fixes the batch size at {sample}")
    return said


def verdict(sample: Sample, said: Result | str) -> str:
    """Why what was said is wrong; empty if it is right."""
    if isinstance(said, str):
        return f"{sample} is refused without need" if has_truth(sample) and not sample.allows_refusal() else ""
    found = said if isinstance(said, tuple) else (said,)
    for index, state in enumerate(found):
        values = [outputs[index] if outputs else None for outputs in runs(sample).values()]
        if values[0] is None and all(runs(sample).values()):
            continue  # a result that was not asked for
        if not holds(sample, state, index):
            return f"{sample} is said to be {', '.join(map(str, found))}, which is not true of result {index}"
    return ""


def every_layout(op: Any, shape: tuple[int, ...], *rest: Any, draw: Draw = normal, **options: Any) -> list[Sample]:
    """Calls of an operation on one operand: examples along each axis, folded, uniform, constant, summed, counted."""
    operands = [batched(*shape[:dim], N, *shape[dim:], draw=draw) for dim in range(len(shape) + 1)]
    operands += [batched(N, *shape, outer=2, draw=draw), batched(N, *shape, inner=3, draw=draw)]
    operands += [batched(shape[0], N, *shape[1:], inner=2, draw=draw)] if shape else []
    operands += [uniform(N, *shape, draw=draw), summed(5, *shape, draw=draw), constant(1.0, N, *shape, draw=draw)]
    operands += [constant(2.0, 5, *shape, draw=draw), Operand(Position(0), (N, *shape), draw)]
    return [call(op, operand, *rest, **options) for operand in operands]


def along_every_axis(
    op: Any, rank: int, *rest: Any, axis: str = "dim", draw: Draw = normal, many: bool = False, **options: Any
) -> list[Sample]:
    """Calls of an operation with a dimension argument, along each dimension (negative ones too) in each layout."""
    shape = (3, 5, 2)[: rank - 1]
    found = []
    for dim in [*range(rank - 1), -1]:
        found += every_layout(op, shape, *rest, draw=draw, **{axis: [dim] if many else dim}, **options)
    return found
