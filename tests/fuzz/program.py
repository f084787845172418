"""A random model as data: parts, and statements that can be dropped one by one; what is printed is what runs."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADER = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n"


@dataclass(frozen=True)
class Statement:
    """One line of forward: {out} is what it computes, {0} and {1} are what it reads; `mixes` if examples meet in it."""

    out: str
    template: str
    operands: tuple[str, ...]
    mixes: bool = False
    name: str = ""

    def source(self) -> str:
        """The line itself."""
        return self.template.format(*self.operands, out=self.out)


@dataclass(frozen=True)
class Input:
    """A drawn argument of forward: its shape for one example, where the examples lie, and the number of classes if any."""

    name: str
    shape: tuple[int, ...]
    dim: int
    classes: int | None = None

    def source(self, size: int) -> str:
        """How it is drawn for this many examples."""
        sizes = (*self.shape[: self.dim], size, *self.shape[self.dim :])
        if self.classes is not None:
            return f"torch.randint(0, {self.classes}, {sizes})"
        return f"torch.randn({', '.join(map(str, sizes))}, dtype=torch.float64)"


@dataclass(frozen=True)
class Program:
    """Inputs, parts of the module (name, constructor), lines that tie weights, and the statements of forward."""

    inputs: tuple[Input, ...]
    parts: tuple[tuple[str, str], ...]
    ties: tuple[str, ...]
    statements: tuple[Statement, ...]

    @property
    def mixes(self) -> bool:
        """Whether an operation was drawn in which examples meet."""
        return any(statement.mixes for statement in self.statements)

    @property
    def batch_dim(self) -> tuple[int, ...]:
        """Where the examples lie in every input."""
        return tuple(given.dim for given in self.inputs)

    def class_source(self) -> str:
        """The module as Python."""
        built = [f"self.{name} = {source}" for name, source in self.parts]
        lines = [*(s.source() for s in self.statements), f"return {self.statements[-1].out}"]
        names = ", ".join(given.name for given in self.inputs)
        return "\n".join([
            "class Model(nn.Module):", "    def __init__(self):", "        super().__init__()",
            textwrap.indent("\n".join([*built, *self.ties]), " " * 8), "",
            f"    def forward(self, {names}):", textwrap.indent("\n".join(lines), " " * 8), ""])  # fmt: skip

    def __repr__(self) -> str:
        names = ", ".join(given.name for given in self.inputs)
        drawn = [f"{given.name} = {given.source(3)}" for given in self.inputs]
        call = f"step = dpcompile(Model().double(), batch_dim={self.batch_dim})({names})"
        return "\n".join(
            [HEADER + "from dpcompile import dpcompile\n", self.class_source(), "torch.manual_seed(0)", *drawn, call]
        )

    def make(self) -> nn.Module:
        """The module, in float64, from a fixed seed."""
        scope: dict[str, Any] = {"torch": torch, "nn": nn, "F": F}
        exec(compile(self.class_source(), "<model>", "exec"), scope)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return scope["Model"]().double()

    def batch(self, size: int) -> tuple[Tensor, ...]:
        """Inputs for this many examples, from a fixed seed; their scale differs from example to example."""
        generator = torch.Generator().manual_seed(7)
        return tuple(drawn(given, size, generator) for given in self.inputs)

    def without(self, index: int) -> Program:
        """The same program less one statement: what read its result reads what it read first."""
        gone = self.statements[index]
        kept = [
            replace(s, operands=tuple(gone.operands[0] if name == gone.out else name for name in s.operands))
            for s in (*self.statements[:index], *self.statements[index + 1 :])
        ]
        return replace(self, statements=tuple(kept)).tidy()

    def tidy(self) -> Program:
        """Without the statements that nothing reads, and the parts and ties that no statement names then."""
        live, kept = {self.statements[-1].out}, list[Statement]()
        for statement in reversed(self.statements):
            if statement.out in live:
                live |= set(statement.operands)
                kept.insert(0, statement)
        ties = tuple(tie for tie in self.ties if any(words(tie) & words(s.template) for s in kept))
        used = set[str]().union(*(words(text) for text in (*ties, *(s.template for s in kept))))
        return replace(self, parts=tuple(p for p in self.parts if p[0] in used), ties=ties, statements=tuple(kept))


def words(text: str) -> set[str]:
    """The names of the parts in a line."""
    return set(re.findall(r"self\.(\w+)", text))


def drawn(given: Input, size: int, generator: torch.Generator) -> Tensor:
    """An input of this many examples."""
    shape = (size, *given.shape)
    if given.classes is not None:
        return torch.randint(0, given.classes, shape, generator=generator).movedim(0, given.dim).contiguous()
    scale = 0.5 + torch.rand(size, *(1 for _ in given.shape), dtype=torch.float64, generator=generator)
    values = torch.randn(shape, dtype=torch.float64, generator=generator) * scale
    return values.movedim(0, given.dim).contiguous()
