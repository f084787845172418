"""The exponential of a matrix, whose gradient is one operation.

torch writes the gradient as the corner of the exponential of a block matrix that holds the incoming gradient. That is
linear in the gradient as a whole, but not operation by operation, as a sum over examples asks for: the exponential of a
parameter (orthogonal weights) would be refused.

    exp([[a, g], [0, a]]) = [[exp(a), d exp(a) . g], [0, exp(a)]]
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from dpcompile.kernels.recurrent_ops import LIBRARY


def matrix_exp_backward(grad: Tensor, a: Tensor) -> Tensor:
    """The gradient of exp(a) for the incoming gradient, both f[..., n, n]."""
    size, adjoint = a.shape[-1], a.mH
    grad, adjoint = torch.broadcast_tensors(grad, adjoint)
    above = torch.cat([adjoint, grad], -1)
    below = torch.cat([torch.zeros_like(adjoint), adjoint], -1)
    whole = torch.ops.aten.linalg_matrix_exp(torch.cat([above, below], -2))
    return whole[..., :size, size:].contiguous()


def result_of(grad: Tensor, a: Tensor) -> Tensor:
    """What a trace sees of the gradient."""
    return grad.new_empty(torch.broadcast_shapes(grad.shape, a.shape))


def run(grad: Tensor, a: Tensor) -> Tensor:
    """The operation itself; it has no derivative of its own."""
    with torch.no_grad():
        return matrix_exp_backward(grad, a)


LIBRARY.define(
    "matrix_exp_backward" + torch.library.infer_schema(matrix_exp_backward, mutates_args=()), tags=torch.Tag.pt2_compliant_tag
)
LIBRARY.impl("matrix_exp_backward", run, "CompositeExplicitAutograd")
torch.library.register_fake("dpcompile::matrix_exp_backward", result_of, lib=LIBRARY)


class MatrixExponential(torch.autograd.Function):
    """exp(a) for a: f[..., n, n]."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        """The exponential."""
        ctx.save_for_backward(a)
        return torch.ops.aten.linalg_matrix_exp(a)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Its gradient; in elementary operations where a derivative of it is asked for."""
        (a,) = ctx.saved_tensors
        return matrix_exp_backward(grad, a) if torch.is_grad_enabled() else torch.ops.dpcompile.matrix_exp_backward(grad, a)


def matrix_exp(a: Tensor) -> Tensor:
    """torch.linalg.matrix_exp."""
    return cast(Tensor, MatrixExponential.apply(a))  # type: ignore[no-untyped-call]
