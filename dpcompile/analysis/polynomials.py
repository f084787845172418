"""Arithmetic of polynomials in row factors and directions (`ir.projection`), without any rounding or division of numbers that
a program may train to zero."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from dpcompile.ir.projection import Factor, Monomial, Polynomial

Poly = Mapping[Monomial, float]
ONE: Poly = {Monomial(): 1.0}
ZERO: Poly = {}


class NoClosedForm(Exception):
    """A tail, or a value in it, that does not work row by row in a way that is known."""


def number(value: float) -> Poly:
    """A constant."""
    return {Monomial(): float(value)} if value else {}


def row_factor(node: fx.Node) -> Poly:
    """A number per row."""
    return {Monomial(powers=((Factor((node,)), 1),)): 1.0}


def direction(node: fx.Node) -> Poly:
    """A value of the weight's shape."""
    return {Monomial(direction=(node,)): 1.0}


def plus(left: Poly, right: Poly, sign: float = 1.0) -> Poly:
    """left + sign * right."""
    total = dict(left)
    for monomial, value in right.items():
        total[monomial] = total.get(monomial, 0.0) + sign * value
    return {monomial: value for monomial, value in total.items() if value}


def times(left: Poly, right: Poly) -> Poly:
    """The product, directions elementwise."""
    total: Poly = {}
    for m, a in left.items():
        for n, b in right.items():
            total = plus(total, {monomial_product(m, n): a * b})
    return total


def monomial_product(left: Monomial, right: Monomial) -> Monomial:
    """Exponents are added; a row where either is masked is masked."""
    powers = dict(left.powers)
    for factor, exponent in right.powers:
        powers[factor] = powers.get(factor, 0) + exponent
    masks = {*left.masks, *right.masks}
    along = tuple(sorted((*left.direction, *right.direction), key=str))
    return Monomial(ordered(powers), tuple(sorted(masks, key=str)), along)


def ordered(powers: Mapping[Factor, int]) -> tuple[tuple[Factor, int], ...]:
    """Powers in an order that does not depend on how the product was formed."""
    return tuple(sorted(((f, e) for f, e in powers.items() if e), key=str))


def power(poly: Poly, exponent: int) -> Poly | None:
    """A whole power of one monomial without direction; None for anything else."""
    if len(poly) != 1:
        return None
    ((monomial, value),) = poly.items()
    if monomial.direction or (monomial.masks and exponent <= 0):
        return None
    powers = tuple((factor, e * exponent) for factor, e in monomial.powers if exponent)
    return {Monomial(powers, monomial.masks): value**exponent}


def masked(poly: Poly, mask: fx.Node, where: bool) -> Poly:
    """Zero in rows where the mask is not `where`."""
    return times(poly, {Monomial(masks=((mask, where),)): 1.0})


def quotient(poly: Poly, divisor: Monomial, value: float) -> Poly | None:
    """poly / (value * divisor), if that divides by no factor by which the program does not divide, so that a gain of zero is no
    obstacle; else None."""
    found: Poly = {}
    for monomial, coefficient in poly.items():
        powers = dict(monomial.powers)
        for factor, exponent in divisor.powers:
            had = powers.get(factor, 0)
            if exponent > 0 and 0 <= had < exponent:
                return None
            powers[factor] = had - exponent
        quotient_of_one = Monomial(ordered(powers), monomial.masks, monomial.direction)
        found = plus(found, {quotient_of_one: coefficient / value})
    return found


def by_direction(poly: Poly) -> dict[tuple[fx.Node, ...], Poly]:
    """The polynomial's parts along each direction, as polynomials in row factors alone."""
    parts: dict[tuple[fx.Node, ...], Poly] = {}
    for monomial, value in poly.items():
        own = {Monomial(monomial.powers, monomial.masks): value}
        parts[monomial.direction] = plus(parts.get(monomial.direction, ZERO), own)
    return parts


def along(poly: Poly, nodes: tuple[fx.Node, ...]) -> Poly:
    """The polynomial times a direction."""
    return times(poly, {Monomial(direction=nodes): 1.0})


def row_sum(nodes: tuple[fx.Node, ...], columns: int) -> Poly:
    """The sum over a row of a product of nodes; of ones, their number."""
    return {Monomial(powers=((Factor(nodes, is_sum=True), 1),)): 1.0} if nodes else number(columns)


def frozen(poly: Poly) -> Polynomial:
    """The polynomial as data."""
    return tuple(sorted(poly.items(), key=str))
