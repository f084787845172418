"""What a piece of work costs, as formulas in named sizes, so that a report can print formula, number and break-even.

matrix_flops      multiplications and additions inside matrix products and convolutions
other_flops       all other arithmetic
bytes_moved       traffic to and from memory, reads and writes
resident_bytes    memory that stays allocated from the backward pass until the clipped sums
fresh_bytes       memory newly allocated for the work (a page fault each on a CPU), resident or not
launches          operations that are started
form              which kind of matrix work it is (the hardware's efficiency differs by kind)
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import sympy

B, T, T_IN, D_IN, D_OUT, GROUPS, TAPS, ROWS, WIDTH, ELEMENTS, PARAMETERS, BYTES = sympy.symbols(
    "B T T_in d p G K V w n P s", positive=True
)
ZERO = sympy.Integer(0)


@dataclass(frozen=True, slots=True)
class Cost:
    """One piece of work; every field but `form` is a sympy expression (or a number after `at`)."""

    matrix_flops: Any = ZERO
    other_flops: Any = ZERO
    bytes_moved: Any = ZERO
    resident_bytes: Any = ZERO
    fresh_bytes: Any = ZERO
    launches: Any = ZERO
    form: str = "matmul"

    def __add__(self, other: Cost) -> Cost:
        """Work done one after the other; the form is that of the larger part, which the caller chooses as left."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in NUMBERS}
        return replace(self, **sums)

    def at(self, sizes: dict[str, float]) -> Cost:
        """The cost in numbers."""
        values = tuple(sorted(sizes.items()))
        numbers: dict[str, Any] = {name: evaluate(getattr(self, name), values) for name in NUMBERS}
        return replace(self, **numbers)


NUMBERS = tuple(item.name for item in fields(Cost) if item.name != "form")


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
