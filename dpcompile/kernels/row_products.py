"""What projected norms (`kernels.projection`) take from a batch: scaled rows, lengths and sums of windows, inner products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpcompile.kernels.geometry import Geometry, windows
from dpcompile.kernels.projection import matmul, stacked
from dpcompile.kernels.reduction import lengths, widen


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
    matrices: M, |M| and reaches of `projection.coefficients`.
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
    q, r = stacked(found), stacked(bounds)
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
    return matmul(matrix, x.permute(1, 2, 0)).permute(2, 0, 1)
