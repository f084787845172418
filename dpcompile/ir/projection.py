"""Tails that work row by row: a scaled gradient plus directions times inner products with the gradient.

A parameter behind weight standardisation or weight normalisation has, in every row o (output channel), the gradient

    (L g)_o = D_o g_o + sum over i, j of e_io R_ijo <f_jo, g_o>

where g_o is the row of the contraction's gradient, and everything else is free of the batch. D and R are polynomials in
numbers per row (a standard deviation, a gain); the directions e and the functionals f are values of the weight's shape (the
weight, a row of ones).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx


@dataclass(frozen=True, slots=True)
class Factor:
    """One number per row: a batch-free node that holds them (or one for all rows), or with `is_sum` the sum over a row of the
    product of some nodes of the weight's shape."""

    nodes: tuple[fx.Node, ...]
    is_sum: bool = False


@dataclass(frozen=True, slots=True)
class Monomial:
    """A product of powers of row factors, zero where a mask is not as it says, times nodes of the weight's shape.

    powers: (factor, exponent), no exponent zero. masks: (bool per row, its value where the monomial is not zero).
    direction: nodes of the weight's shape that are multiplied elementwise; none stands for a row of ones.
    """

    powers: tuple[tuple[Factor, int], ...] = ()
    masks: tuple[tuple[fx.Node, bool], ...] = ()
    direction: tuple[fx.Node, ...] = ()


Polynomial = tuple[tuple[Monomial, float], ...]
"""A sum of monomials, each with a number."""


@dataclass(frozen=True, slots=True)
class Functional:
    """<f, g_b> for every row. output: a value of the forward pass that already holds f applied to the input, plus `bias`, laid
    out like the output gradient."""

    vector: Polynomial
    output: fx.Node | None = None
    bias: fx.Node | None = None

    @property
    def is_plain_sum(self) -> bool:
        """Whether f is a row of ones."""
        return self.vector == ((Monomial(), 1.0),)

    @property
    def is_computed(self) -> bool:
        """Whether f has to be applied to the input once more."""
        return self.output is None and not self.is_plain_sum


@dataclass(frozen=True, slots=True)
class Projection:
    """One site's tail in that form.

    rows, columns: sizes of g. scale: D; empty where the parameter has one number per row, which is then sum_j R_0j <f_j, g>.
    functionals: f. directions: e. gains: R by direction and functional. seen: polynomials E with D <e_i, g> = sum_j E_ij
    <f_j, g>.
    """

    rows: int
    columns: int
    scale: Polynomial
    functionals: tuple[Functional, ...]
    directions: tuple[tuple[fx.Node, ...], ...]
    gains: tuple[tuple[Polynomial, ...], ...]
    seen: tuple[tuple[Polynomial, ...], ...]
    has_rows_only: bool = False

    @property
    def computed(self) -> int:
        """How many functionals need a contraction of their own."""
        return sum(functional.is_computed for functional in self.functionals)
