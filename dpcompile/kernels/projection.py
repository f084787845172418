"""Squared norms behind tails that work row by row (`ir.projection`), from a few inner products per row.

With q_j = <f_j, g_b> for every row o, D the scale, e_i the directions and R the gains,

    |L g|^2 = sum_o D^2 |g|^2 + 2 sum_i (D <e_i, g>) (R q)_i + |sum_i e_i (R q)_i|^2 = sum_o D^2 |g|^2 + q^T M q,
    M = E^T R + R^T E + R^T F R,    D <e_i, g> = (E q)_i,    F_ij = <e_i, e_j>,

with one matrix M per row, free of the batch. The first term is an ordinary Gram norm of scaled output gradients. This is
elementary algebra on the backward of Salimans & Kingma 2016 (eq. 3) and of weight standardisation (Qiao et al. 2019).

Rounding: with h = sum_t |g_t| |a_t| (output gradient of the row, its window of the input), |q_j| and what it is computed from
are at most r_j = |f_j| h (for an output of the forward pass that includes a bias, |bias| sum_t |g_t| more), and its error is at
most gamma r_j. Then the sum over o, j, k of M is off by gamma S at most, S = sum |M|_jk (2 |q_j| r_k + gamma r_j r_k). |M| is
computed from the absolute values of all terms of the polynomials, so that cancellation inside of them is covered as well.
Coefficients are computed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dpcompile.kernels.geometry import Geometry, windows
from dpcompile.kernels.gram import convolution_rounding, operand_rounding, rounding_gamma
from dpcompile.kernels.reduction import lengths, sqnorm, widen

Terms = tuple[tuple[float, tuple[tuple[int, int], ...], tuple[tuple[int, bool], ...], tuple[int, ...]], ...]
"""A polynomial: (number, ((factor, exponent), ...), ((mask, where), ...), planes)."""
STEPS = 64
"""Roundings of a coefficient and of the forward pass's own weight, beyond those of the sums."""


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


def projection_gamma(dtype: torch.dtype, positions: int, columns: int, device: torch.device) -> float:
    """gamma of this module's rounding: every term of q goes through columns + positions roundings, and those of its weights."""
    coarse = 4 * max(operand_rounding(), convolution_rounding(device))
    return rounding_gamma(dtype, positions + columns + STEPS, coarse)


class Numbers:
    """The row factors of a recipe with their absolute values, which a sum over a row does not have on its face."""

    def __init__(self, like: Tensor, vectors: Sequence[Tensor], masks: Sequence[Tensor], planes: Sequence[Tensor],
                 recipe: Recipe) -> None:  # fmt: skip
        self.columns = recipe.columns
        self.masks = [mask.reshape(-1).expand(recipe.rows) for mask in masks]
        self.planes = [widen(plane).reshape(recipe.rows, recipe.columns) for plane in planes]
        plain = [vector.reshape(-1).double().expand(recipe.rows) for vector in vectors]
        self.one = like.new_ones(recipe.rows, dtype=torch.float64)
        self.factors = [(value, value.abs()) for value in plain] + [self.row_sum(along) for along in recipe.sums]

    def row_sum(self, along: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """f64[O] sum of a product of planes over each row, and of its absolute value."""
        if not along:
            return self.one * self.columns, self.one * self.columns
        if len(along) == 2 and along[0] == along[1]:
            squares = sqnorm(self.planes[along[0]])
            return squares, squares
        product = self.product(along)
        magnitude: Tensor = torch.linalg.vector_norm(product, ord=1, dim=1)
        return product.sum(1).double(), magnitude.double()

    def product(self, along: tuple[int, ...]) -> Tensor:
        """The elementwise product of planes: f[O, n]."""
        total = self.planes[along[0]]
        for place in along[1:]:
            total = total * self.planes[place]
        return total

    def length(self, along: tuple[int, ...]) -> Tensor:
        """The length f64[O] of every row of a direction."""
        if len(along) == 1:
            return sqnorm(self.planes[along[0]]).sqrt()
        return self.row_sum((*along, *along))[0].sqrt()

    def monomial(self, term: tuple[float, tuple[tuple[int, int], ...], tuple[tuple[int, bool], ...], tuple[int, ...]],
                 is_absolute: bool = False) -> Tensor:  # fmt: skip
        """f64[O] of a term without its direction, or its absolute value."""
        number, powers, masks, _ = term
        value = self.one * (abs(number) if is_absolute else number)
        for place, exponent in powers:
            value = value * self.factors[place][is_absolute] ** exponent
        for place, where in masks:
            kept = self.masks[place] if where else ~self.masks[place]
            value = torch.where(kept, value, torch.zeros_like(value))
        return value

    def total(self, terms: Terms, is_absolute: bool = False) -> Tensor:
        """f64[O] of a polynomial without directions, or of its terms' absolute values."""
        parts = [self.monomial(term, is_absolute) for term in terms]
        return torch.stack(parts).sum(0) if parts else torch.zeros_like(self.one)

    def table(self, tables: tuple[tuple[Terms, ...], ...], is_absolute: bool = False) -> Tensor:
        """f64[O, I, J] of polynomials by direction and functional."""
        rows = [torch.stack([self.total(terms, is_absolute) for terms in row], -1) for row in tables]
        return torch.stack(rows, -2)

    def reach(self, vector: Terms) -> Tensor:
        """f64[O]: at least the length of a functional, and of all the terms that it is the sum of."""
        return torch.stack([self.monomial(term, True) * self.length(term[3]) for term in vector]).sum(0)


def coefficients(like: Tensor, vectors: Sequence[Tensor], masks: Sequence[Tensor], planes: Sequence[Tensor],
                 recipe: Recipe) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(D f64[O], M f64[O, J, J], |M|, reaches of the functionals f64[O, J]) on the device of `like`."""
    numbers = Numbers(like, vectors, masks, planes, recipe)
    matrices = []
    for is_absolute in (False, True):
        gains = numbers.table(recipe.gains, is_absolute)
        image = gram_of_directions(numbers, recipe, is_absolute)
        matrix = matmul(gains.mT, matmul(image, gains))
        if recipe.seen:
            mixed = matmul(numbers.table(recipe.seen, is_absolute).mT, gains)
            matrix = matrix + mixed + mixed.mT
        matrices.append(matrix)
    reaches = torch.stack([numbers.reach(vector) for vector in recipe.vectors], -1)
    return numbers.total(recipe.scale), matrices[0], matrices[1], reaches


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """Products of small matrices, one per row; elementwise, because that is faster and no precision setting touches it."""
    return (left.unsqueeze(-1) * right.unsqueeze(-3)).sum(-2)


def gram_of_directions(numbers: Numbers, recipe: Recipe, is_absolute: bool) -> Tensor:
    """<e_i, e_j> of every row, f64[O, I, I]."""
    if recipe.is_per_row:
        return numbers.one[:, None, None]
    known: dict[tuple[int, ...], Tensor] = {}
    for left in recipe.directions:
        for right in recipe.directions:
            along = tuple(sorted((*left, *right)))
            if along not in known:
                known[along] = numbers.row_sum(along)[is_absolute]
    rows = [torch.stack([known[tuple(sorted((*a, *b)))] for b in recipe.directions], -1) for a in recipe.directions]
    return torch.stack(rows, -2)


def vector(like: Tensor, vectors: Sequence[Tensor], masks: Sequence[Tensor], planes: Sequence[Tensor], recipe: Recipe,
           index: int) -> Tensor:  # fmt: skip
    """The functional of this index, f[O, n] in float32 or wider, on the device of `like`."""
    numbers = Numbers(like, vectors, masks, planes, recipe)
    total = torch.zeros_like(numbers.planes[0])
    for term in recipe.vectors[index]:
        own = numbers.monomial(term).to(total.dtype)[:, None]
        total = total + (own * numbers.product(term[3]) if term[3] else own)
    return total


def scaled_rows(g: Tensor, scale: Tensor, dim: int) -> Tensor:
    """g with its rows, along this dimension, times D f64[O]; float32 or wider."""
    g = widen(g)
    return g * scale.to(g.dtype).reshape(-1, *(1,) * (g.dim() - dim - 1))


def window_lengths(x: Tensor, geometry: Geometry) -> Tensor:
    """|a_t| of every group's window of x: f[B, C, *] as f[B, G, T], without unfolding the channels."""
    return window_totals(widen(x).square(), geometry).sqrt()


def window_totals(x: Tensor, geometry: Geometry) -> Tensor:
    """The sum over every group's window of x: f[B, C, *] as f[B, G, T]."""
    x = widen(x)
    sums = x.unflatten(1, (geometry.groups, -1)).sum(2)
    dims = len(geometry.kernel)
    return windows(sums, geometry).sum(list(range(2 + dims, 2 + 2 * dims))).flatten(2)


def row_lengths(a: Tensor) -> Tensor:
    """|a_t| of a: f[B, T, d] as f[B, 1, T]."""
    return lengths(a).unsqueeze(1)


def row_totals(a: Tensor) -> Tensor:
    """The sum of every row of a: f[B, T, d] as f[B, 1, T]."""
    return widen(a).sum(2).unsqueeze(1)


def applied(x: Tensor, vector: Tensor, geometry: Geometry, sizes: tuple[int, ...]) -> Tensor:
    """A functional under the windows of x: f[B, C, *] as f[B, O, T]; sizes: of the positions."""
    x = widen(x)
    weight = vector.reshape(vector.shape[0], -1, *geometry.kernel)
    zeros = [0] * len(geometry.kernel)
    options = (geometry.stride, geometry.padding, geometry.dilation, False, zeros, geometry.groups)
    out = torch.ops.aten.convolution(x, weight, None, *options)
    for dim, size in enumerate(sizes):
        out = out.narrow(2 + dim, 0, size)
    result: Tensor = out.flatten(2)
    return result


def applied_dense(a: Tensor, vector: Tensor) -> Tensor:
    """A functional at every position of a: f[B, T, d] as f[B, p, T]."""
    return torch.matmul(widen(a), vector.t()).transpose(1, 2)


def projected(rows: Tensor, lengths: Tensor, totals: Tensor | None, outputs: Sequence[Tensor], biases: Sequence[Tensor | None],
              matrices: tuple[Tensor, Tensor, Tensor], gamma: float) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(f64[B] sum of q^T M q over the rows, f64[B] S with |error| <= gamma * S).

    rows: output gradients f[B, O, ...positions]. lengths: |a_t| as f[B, G, T]; totals: sums over the windows in the same
    layout, if a row of ones is the last functional. outputs: f[B, O, ...positions] of the other functionals, with biases.
    matrices: M, |M| and reaches of `coefficients`.
    """
    rows = widen(rows).flatten(2)
    matrix, magnitude, reach = matrices
    reached = per_position(rows.abs(), lengths)
    found, bounds = [], []
    for index, (output, bias) in enumerate(zip(outputs, biases, strict=True)):
        own, bound = along_output(rows, output.flatten(2), bias)
        found.append(own)
        bounds.append(bound + reached * reach[:, index])
    if totals is not None:
        found.append(per_position(rows, totals))
        bounds.append(reached * reach[:, -1])
    q, r = torch.stack(found, -1), torch.stack(bounds, -1)
    squared = (matmul_vector(matrix, q) * q).sum((1, 2))
    first, second = matmul_vector(magnitude, q.abs()) * r, matmul_vector(magnitude, r) * r
    return squared, (2 * first + gamma * second).sum((1, 2))


def along_output(rows: Tensor, output: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | float]:
    """<f, g> as f64[B, O] from an output f a_t (+ bias), and by how much the bias extends the bound."""
    products = (rows * widen(output)).sum(2).double()
    if bias is None:
        return products, 0.0
    added = widen(bias).reshape(-1).double()
    return products - added * rows.sum(2).double(), 2 * added.abs() * rows.abs().sum(2).double()


def per_position(rows: Tensor, windows: Tensor) -> Tensor:
    """f64[B, O]: sum over t of rows f[B, O, T] times one number per group and position, f[B, G, T]."""
    G = windows.shape[1]
    grouped = rows.reshape(rows.shape[0] * G, rows.shape[1] // G, rows.shape[2])
    products = torch.bmm(grouped, windows.reshape(-1, windows.shape[2], 1))
    return products.reshape(rows.shape[0], rows.shape[1]).double()


def matmul_vector(matrix: Tensor, x: Tensor) -> Tensor:
    """One small matrix per row, f64[O, J, J], times x: f64[B, O, J]."""
    return (matrix * x.unsqueeze(-2)).sum(-1)
