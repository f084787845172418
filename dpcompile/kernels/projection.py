"""Squared norms behind tails that work row by row (`ir.projection`), from a few inner products per row.

With q_j = <f_j, g_b> for every row o, D the scale, e_i the directions and R the gains,

    |L g|^2 = sum_o D^2 |g|^2 + 2 sum_i (D <e_i, g>) (R q)_i + |sum_i e_i (R q)_i|^2 = sum_o D^2 |g|^2 + q^T M q,
    M = E^T R + R^T E + R^T F R,    D <e_i, g> = (E q)_i,    F_ij = <e_i, e_j>,

with one matrix M per row, free of the batch. The first term is an ordinary Gram norm of scaled output gradients. This is
elementary algebra on the backward of Salimans & Kingma 2016 (eq. 3) and of weight standardisation (Qiao et al. 2019).

Rounding: with h = sum_t |g_t| |a_t| (output gradient of the row, its window of the input), |q_j| is at most r_j = |f_j| h (for
an output of the forward pass that includes a bias, |bias| sum_t |g_t| more), and its error is at most gamma r_j; the rounding
of a weight that the forward pass has stored counts to r_j, with the terms that it is the sum of. M is computed in float64 but
for sums over rows; its own error is at most gamma times a matrix of magnitudes. Then the sum is off by at most gamma S,
S = sum over o, j, k of |M|_jk (2 |q_j| r_k + gamma r_j r_k), where |M| includes those magnitudes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dpcompile.kernels.gram import rounding_gamma
from dpcompile.kernels.reduction import inner, sqnorm, widen

Term = tuple[float, tuple[tuple[int, int], ...], tuple[tuple[int, bool], ...], tuple[int, ...]]
"""A monomial: number, ((factor, exponent), ...), ((mask, where), ...), planes."""
Terms = tuple[Term, ...]
STEPS = 64
"""Roundings of a coefficient, in float64."""
STORED = 16
"""Roundings of the forward pass's own weight, in units of the terms that it is the sum of."""
MORE = 8
"""Roundings of an inner product beyond those of its two sums."""


class Recipe(NamedTuple):
    """A projection with its nodes as places in lists: `vectors` (one number per row), `masks`, `planes` (of the weight's shape).

    A factor is a vector, or behind them a sum over rows: `sums` says of which planes' product. `is_per_row`: the parameter has
    one number per row. A NamedTuple, because it is an argument of nodes.
    """

    rows: int
    columns: int
    sums: tuple[tuple[int, ...], ...]
    scale: Terms
    vectors: tuple[Terms, ...]
    directions: tuple[tuple[int, ...], ...]
    gains: tuple[tuple[Terms, ...], ...]
    seen: tuple[tuple[Terms, ...], ...]
    is_per_row: bool


def projection_gamma(dtype: torch.dtype, positions: int, columns: int, unit: float) -> float:
    """gamma of this module's rounding: every term of q goes through columns + positions roundings, and those of its weights.
    unit: with which operands of the products or convolutions may be rounded."""
    return rounding_gamma(dtype, positions + columns + MORE, 4 * unit)


class Numbers:
    """The row factors and planes of a recipe in numbers.

    Planes are split into row means m and what is left, w = m + c: numbers that nearly cancel, such as w - mean, then do so in
    the coefficients, which are in float64, and not in sums over rows.
    """

    def __init__(self, like: Tensor, vectors: Sequence[Tensor], masks: Sequence[Tensor], planes: Sequence[Tensor],
                 recipe: Recipe) -> None:  # fmt: skip
        self.columns = recipe.columns
        self.masks = [mask.reshape(-1).expand(recipe.rows) for mask in masks]
        self.planes = [widen(plane).reshape(recipe.rows, recipe.columns) for plane in planes]
        self.means = [plane.mean(1) for plane in self.planes]
        self.rests = [plane - mean[:, None] for plane, mean in zip(self.planes, self.means, strict=True)]
        self.one = like.new_ones(recipe.rows, dtype=torch.float64)
        plain = [vector.reshape(-1).double().expand(recipe.rows) for vector in vectors]
        self.factors = [*plain, *(self.product(along).double().sum(1) for along in recipe.sums)]

    def product(self, along: tuple[int, ...]) -> Tensor:
        """The elementwise product of planes f[O, n], two or more of them in float64."""
        total = self.planes[along[0]]
        for place in along[1:]:
            total = total.double() * self.planes[place]
        return total

    def monomial(self, term: Term) -> Tensor:
        """f64[O] of a term without its direction."""
        number, powers, masks, _ = term
        value = self.one * number
        for place, exponent in powers:
            value = value * self.factors[place] ** exponent
        for place, where in masks:
            kept = self.masks[place] if where else ~self.masks[place]
            value = torch.where(kept, value, torch.zeros_like(value))
        return value

    def total(self, terms: Terms) -> tuple[Tensor, Tensor]:
        """f64[O] of a polynomial without directions, and of its terms' absolute values."""
        parts = [self.monomial(term) for term in terms]
        values = torch.stack(parts) if parts else torch.zeros_like(self.one)[None]
        return values.sum(0), values.abs().sum(0)

    def table(self, tables: tuple[tuple[Terms, ...], ...]) -> tuple[Tensor, Tensor]:
        """f64[O, I, J] of polynomials by direction and functional, and of absolute values."""
        found = [[self.total(terms) for terms in row] for row in tables]
        exact, absolute = (matrices([[pair[k] for pair in row] for row in found]) for k in (0, 1))
        return exact, absolute

    def around_means(self, directions: tuple[tuple[int, ...], ...], values: Tensor) -> tuple[list[Tensor], Tensor]:
        """Vectors f[O, n] and numbers f64[O, I, J] with the same sum as numbers for these directions: rests in place of single
        planes, and a row of ones, the first, that takes their means."""
        ones = torch.zeros_like(values[:, 0])
        vectors, own = [], []
        for place, along in enumerate(directions):
            if len(along) <= 1:
                ones = ones + values[:, place] * (self.means[along[0]].double()[:, None] if along else 1.0)
            if along:
                vectors.append(self.rests[along[0]] if len(along) == 1 else self.product(along))
                own.append(values[:, place])
        return vectors, torch.stack([numbers.movedim(0, -1) for numbers in (ones, *own)]).movedim(-1, 0)

    def gram(self, vectors: Sequence[Tensor]) -> Tensor:
        """f64[O, I, I] inner products of a row of ones and these vectors."""
        ones = self.one * self.columns
        sums = [vector.sum(1).double() for vector in vectors]
        rows = [[ones, *sums]]
        for i, left in enumerate(vectors):
            squares = [sqnorm(left) if left is right else inner(left, right) for right in vectors]
            rows.append([sums[i], *squares])
        return matrices(rows)

    def reach(self, vector: Terms, share: float) -> Tensor:
        """f64[O]: at least the length of a functional, and `share` of the lengths of all terms that it is the sum of."""
        directions = tuple(dict.fromkeys(term[3] for term in vector))
        parts = [self.total(tuple(term for term in vector if term[3] == along)) for along in directions]
        vectors, values = self.around_means(directions, stacked([value for value, _ in parts])[..., None])
        lengths = stacked([self.one * math.sqrt(self.columns), *(sqnorm(v).sqrt() for v in vectors)])
        raw = [absolute * self.length(along) for (_, absolute), along in zip(parts, directions, strict=True)]
        return (values[..., 0].abs() * lengths).sum(-1) + share * torch.stack(raw).sum(0)

    def length(self, along: tuple[int, ...]) -> Tensor:
        """The length f64[O] of every row of a direction."""
        return sqnorm(self.product(along)).sqrt() if along else self.one * math.sqrt(self.columns)


def coefficients(like: Tensor, vectors: Sequence[Tensor], masks: Sequence[Tensor], planes: Sequence[Tensor],
                 recipe: Recipe, gamma: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(D f64[O], M f64[O, J, J], |M| and its own error in units of gamma, reaches of the functionals f64[O, J]) on the device
    of `like`."""
    numbers = Numbers(like, vectors, masks, planes, recipe)
    gains, absolute = numbers.table(recipe.gains)
    if recipe.is_per_row:
        image, lengths, around = numbers.one[:, None, None], numbers.one[:, None, None], gains
        raw = image
    else:
        rests, around = numbers.around_means(recipe.directions, gains)
        image = numbers.gram(rests)
        lengths = outer_roots(image)
        raw = outer_roots(torch.diag_embed(stacked([numbers.length(along).square() for along in recipe.directions])))
    matrix = matmul(around.mT, matmul(image, around))
    in_sums = matmul(around.mT.abs(), matmul(lengths, around.abs()))
    in_terms = matmul(absolute.mT, matmul(raw, absolute))
    if recipe.seen:
        seen, seen_absolute = numbers.table(recipe.seen)
        mixed, of_terms = matmul(seen.mT, gains), matmul(seen_absolute.mT, absolute)
        matrix, in_terms = matrix + mixed + mixed.mT, in_terms + of_terms + of_terms.mT
    unit = 2.0**-53 if like.dtype == torch.float64 else 2.0**-24
    magnitude = matrix.abs() + in_sums + STEPS * 2.0**-53 / gamma * in_terms
    reaches = [numbers.reach(vector, STORED * unit / gamma) for vector in recipe.vectors]
    return numbers.total(recipe.scale)[0], matrix, magnitude, stacked(reaches)


def row_scale(like: Tensor, vectors: Sequence[Tensor], masks: Sequence[Tensor], planes: Sequence[Tensor],
              recipe: Recipe) -> Tensor:  # fmt: skip
    """D f64[O] alone, where rows are scaled and no more."""
    return Numbers(like, vectors, masks, planes, recipe).total(recipe.scale)[0]


def stacked(vectors: Sequence[Tensor]) -> Tensor:
    """Vectors f[..., O] as f[..., O, I] with the rows side by side in memory, along which tables of a few numbers per row are
    worked on: entry by entry that is four to ten times slower."""
    return torch.stack(list(vectors)).movedim(0, -1)


def matrices(entries: Sequence[Sequence[Tensor]]) -> Tensor:
    """Vectors f[O] by row and column as f[O, I, J], the rows of the weight side by side in memory."""
    flat = torch.stack([vector for row in entries for vector in row])
    return flat.unflatten(0, (len(entries), -1)).movedim(-1, 0)


def outer_roots(image: Tensor) -> Tensor:
    """|e_i| |e_j| of every row from the squares on the diagonal of f64[O, I, I]."""
    roots = image.diagonal(dim1=-2, dim2=-1).sqrt()
    return roots.unsqueeze(-1) * roots.unsqueeze(-2)


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """Products of small matrices f[O, I, K], f[O, K, J], one per row; elementwise, because that is faster and no precision
    setting touches it."""
    first, second = (matrix.movedim(0, -1).contiguous() for matrix in (left, right))
    return (first.unsqueeze(2) * second.unsqueeze(0)).sum(1).movedim(-1, 0)


def vector(like: Tensor, vectors: Sequence[Tensor], masks: Sequence[Tensor], planes: Sequence[Tensor], recipe: Recipe,
           index: int) -> Tensor:  # fmt: skip
    """The functional of this index, f[O, n] in float32 or wider, on the device of `like`."""
    numbers = Numbers(like, vectors, masks, planes, recipe)
    terms = recipe.vectors[index]
    directions = tuple(dict.fromkeys(term[3] for term in terms))
    parts = [numbers.total(tuple(term for term in terms if term[3] == along))[0] for along in directions]
    rests, values = numbers.around_means(directions, stacked(parts)[..., None])
    dtype = torch.promote_types(like.dtype, torch.float32)
    total = values[:, 0].to(dtype).expand(-1, recipe.columns)
    for place, rest in enumerate(rests, 1):
        total = total + values[:, place].to(dtype) * rest.to(dtype)
    return total
