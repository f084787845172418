"""Grows a random program line by line; every line runs at once on a few examples, so that shapes are seen, not computed."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from fuzz.program import Input, Program, Statement, drawn
from torch import Tensor, nn

EXAMPLES = 13
"""How many examples a line is tried on: a prime that divides no other size, so that the examples' axis is recognised."""
LARGEST = 160
LOUDEST = 30.0


class Unfit(Exception):
    """The drawn operation does not apply to the drawn values."""


@dataclass(frozen=True)
class Value:
    """What a line computed for EXAMPLES examples; `dim` holds outer * examples * inner."""

    name: str
    tensor: Tensor
    dim: int
    outer: int = 1
    inner: int = 1

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return self.tensor.dim()

    @property
    def shape(self) -> tuple[int, ...]:
        """All sizes, EXAMPLES among them."""
        return tuple(self.tensor.shape)

    @property
    def plain(self) -> bool:
        """Whether the examples' dimension holds nothing else."""
        return (self.outer, self.inner) == (1, 1)

    @property
    def layout(self) -> tuple[int, int, int]:
        """Dimension and folding."""
        return self.dim, self.outer, self.inner


class Builder:
    """A program in the making; `chance` decides."""

    def __init__(self, chance: random.Random, inputs: Sequence[Input]) -> None:
        self.chance = chance
        self.inputs = tuple(inputs)
        self.module = nn.Module()
        self.parts: dict[str, str] = {}
        self.ties: list[str] = []
        self.statements: list[Statement] = []
        generator = torch.Generator().manual_seed(3)
        made = [Value(i.name, drawn(i, EXAMPLES, generator), i.dim) for i in inputs]
        self.values = {value.name: value for value in made}

    def choose(self, options: Sequence[Any]) -> Any:
        """One of these."""
        if not options:
            raise Unfit
        return self.chance.choice(options)

    def choose_named(self, table: dict[str, Any]) -> Any:
        """One row of a table."""
        return table[self.choose(list(table))]

    def number(self, low: int, high: int) -> int:
        """A number between these, both included."""
        if low > high:
            raise Unfit
        return self.chance.randint(low, high)

    def rarely(self, one_in: int) -> bool:
        """True once in so many times."""
        return self.number(0, one_in - 1) == one_in - 1

    def value(self, fits: Callable[[Value], bool] = lambda value: True) -> Value:
        """A floating-point value that fits: usually the latest."""
        found = [v for v in reversed(self.values.values()) if v.tensor.is_floating_point()]
        if found and fits(found[0]) and not self.rarely(5):
            return found[0]
        return self.choose([v for v in found if fits(v)])

    def dim(self, value: Value, smallest: int = 1) -> int:
        """A dimension of the example itself, counted from the front or from the back."""
        dim = self.choose([d for d in range(value.rank) if d != value.dim and value.shape[d] >= smallest])
        return dim - value.rank if self.rarely(2) else dim

    def part(self, source: str, like: str | None = None) -> str:
        """A new part, an old one that starts alike (used twice then), or a frozen one."""
        alike = [name for name, known in self.parts.items() if known.startswith(like or source)]
        if alike and self.rarely(3):
            return f"self.{self.choose(alike)}"
        name = f"{source.split('(', maxsplit=1)[0].rsplit('.', 1)[-1].lower()}{len(self.parts)}"
        self.parts[name] = source + (".requires_grad_(False)" if self.rarely(8) else "")
        self.build(name)
        return f"self.{name}"

    def build(self, name: str) -> None:
        """Make a part and hand it to the module."""
        with torch.random.fork_rng():  # what is drawn next depends on values
            torch.manual_seed(len(self.parts))
            made = eval(self.parts[name], {"torch": torch, "nn": nn})
        setattr(self.module, name, nn.Parameter(made.double()) if isinstance(made, Tensor) else made.double())

    def parameter(self, *shape: int) -> str:
        """A parameter that is used as it is."""
        return self.part(f"nn.Parameter(torch.randn({', '.join(map(str, shape))}))")

    def tie(self, left: str, right: str) -> None:
        """Two parts have one weight from now on."""
        getattr(self.module, left).weight = getattr(self.module, right).weight
        self.ties.append(f"self.{left}.weight = self.{right}.weight")

    def add(self, name: str, expression: str, *operands: Value, layout: tuple[int, int, int] | None = None,
            mixes: bool = False) -> Value:  # fmt: skip
        """Append a line that computes an expression (or runs statements that set {out})."""
        template = expression if "{out}" in expression else "{out} = " + expression
        statement = Statement(f"h{len(self.statements)}", template, tuple(o.name for o in operands), mixes, name)
        made = self.tried(statement)
        value = Value(statement.out, made, *(layout or self.found(made, operands)))
        folded = value.outer * value.inner * EXAMPLES
        if not mixes and (made.shape[value.dim] != folded or self.axes(made) != [value.dim]):
            raise Unfit
        self.statements.append(statement)
        self.values[value.name] = value
        return value

    def tried(self, statement: Statement) -> Tensor:
        """What a line computes here; it must be small, finite and not too large."""
        scope: dict[str, Any] = {v.name: v.tensor for v in self.values.values()}
        scope |= {"torch": torch, "nn": nn, "F": F, "self": self.module}
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(statement.source(), scope)
        except Exception as error:
            raise Unfit(str(error)) from None
        made = scope[statement.out]
        if not isinstance(made, Tensor) or made.numel() > LARGEST * EXAMPLES or made.numel() == 0 or made.dim() > 5:
            raise Unfit
        if made.is_floating_point() and not bool((made.abs() < LOUDEST).all()):
            raise Unfit
        return made

    def axes(self, made: Tensor) -> list[int]:
        """The dimensions whose size depends on the number of examples."""
        return [dim for dim, size in enumerate(made.shape) if size % EXAMPLES == 0]

    def found(self, made: Tensor, operands: Sequence[Value]) -> tuple[int, int, int]:
        """Where the examples are in a result that is folded as its first operand."""
        axes = self.axes(made)
        if len(axes) != 1:
            raise Unfit
        return axes[0], operands[0].outer, operands[0].inner

    def program(self) -> Program:
        """What has been built."""
        return Program(self.inputs, tuple(self.parts.items()), tuple(self.ties), tuple(self.statements)).tidy()
