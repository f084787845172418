"""What a piece of work costs, as formulas in named sizes, so that a report can print formula, number and break-even.

A `Work` is one kernel call, or a few that always run together:

    form              the kernel's name; measured machines have one efficiency curve per form
    matrix_flops      multiplications and additions inside matrix products and convolutions, as torch counts them
    other_flops       all other arithmetic
    bytes_moved       traffic to and from memory, reads and writes
    fresh_bytes       memory newly allocated for the work (a page fault each on a CPU)
    launches          operations that are started
    product           (batch, m, n, k) of its matrix products: small and skinny ones are slow
    features          the sizes on which the kernel's efficiency depends
    terms             which contractions of a site the sizes are taken from

A `Cost` is the work of one strategy on one site with the memory that it keeps:

    resident_bytes    what the strategy allocates and keeps until the clipped sums: materialised gradients, unfolded inputs
                      (operands that a contraction waits with are the backward pass's own, freed later)
    workspace_bytes   what is allocated inside a kernel and released before it returns, the largest of them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import sympy

B, T, T_IN, D_IN, D_OUT, GROUPS, TAPS, ROWS, WIDTH, ELEMENTS, PARAMETERS, BYTES, S, BLOCKS = sympy.symbols(
    "B T T_in d p G K V w n P s S N", positive=True
)
"""Examples; positions per example, of a convolution's input; fan-in and fan-out per group; groups; kernel positions; table
rows and their width; elements that are reduced; elements of the parameter; bytes per element; positions of a second
term; blocks into which the positions are split for Gram matrices."""

ZERO: Final = sympy.Integer(0)
ONE: Final = sympy.Integer(1)
NUMBERS: Final = ("matrix_flops", "other_flops", "bytes_moved", "fresh_bytes", "launches")


@dataclass(frozen=True, slots=True)
class Work:
    """One kernel's work; every field but `form` and `terms` holds sympy expressions, or numbers after `at`."""

    form: str
    matrix_flops: Any = ZERO
    other_flops: Any = ZERO
    bytes_moved: Any = ZERO
    fresh_bytes: Any = ZERO
    launches: Any = ONE
    product: tuple[Any, ...] = ()
    features: tuple[Any, ...] = ()
    terms: tuple[int, ...] = (0,)

    def at(self, sizes: Mapping[str, float]) -> Work:
        """The work in numbers."""
        values = tuple(sorted(sizes.items()))
        numbers: dict[str, Any] = {name: evaluate(getattr(self, name), values) for name in NUMBERS}
        tuples: dict[str, Any] = {
            name: tuple(evaluate(part, values) for part in getattr(self, name)) for name in ("product", "features")
        }
        return replace(self, **numbers, **tuples)

    def of(self, *terms: int) -> Work:
        """The same work on other contractions of the site."""
        return replace(self, terms=terms)


@dataclass(frozen=True, slots=True)
class Cost:
    """The work of a strategy and the memory that it needs."""

    work: tuple[Work, ...] = ()
    resident_bytes: Any = ZERO
    workspace_bytes: Any = ZERO

    def __add__(self, other: Cost) -> Cost:
        """One after the other: workspaces of one are released before the other starts."""
        return Cost(
            self.work + other.work,
            self.resident_bytes + other.resident_bytes,
            larger(self.workspace_bytes, other.workspace_bytes),
        )

    def at(self, sizes: Sequence[Mapping[str, float]]) -> Cost:
        """The cost in numbers, each work with the sizes of its contractions; the memory with those of the first."""
        first = tuple(sorted(merged(sizes, (0,)).items()))
        return Cost(
            tuple(work.at(merged(sizes, work.terms)) for work in self.work),
            evaluate(self.resident_bytes, first),
            evaluate(self.workspace_bytes, first),
        )

    def total(self, name: str) -> Any:
        """The sum over all work of one of NUMBERS."""
        return sum(getattr(work, name) for work in self.work)


def larger(left: Any, right: Any) -> Any:
    """The larger of two expressions or numbers."""
    return sympy.Max(left, right) if isinstance(left, sympy.Basic) or isinstance(right, sympy.Basic) else max(left, right)


def merged(sizes: Sequence[Mapping[str, float]], terms: tuple[int, ...]) -> dict[str, float]:
    """The sizes of one contraction; of two, where the second only says what the first has not, and its positions S."""
    if not sizes:
        return {}
    first = dict(sizes[terms[0]])
    if len(terms) == 1:
        return first
    second = sizes[terms[1]]
    return {**second, **{name: number for name, number in first.items() if name not in second or number > 1}, "S": second["T"]}


@lru_cache(maxsize=4096)
def compiled(expression: sympy.Expr) -> tuple[Any, tuple[str, ...]]:
    """A formula as a Python function of its symbols."""
    symbols = tuple(sorted(expression.free_symbols, key=str))
    return sympy.lambdify(symbols, expression, "math"), tuple(map(str, symbols))


def evaluate(expression: Any, sizes: tuple[tuple[str, float], ...]) -> float:
    """One formula in numbers."""
    if not isinstance(expression, sympy.Basic):
        return float(expression)
    function, names = compiled(expression)
    values = dict(sizes)
    return float(function(*(values[name] for name in names)))
