"""Reductions and operations along a dimension. Only sums are linear and may run over the batch."""

from __future__ import annotations

import torch

from dpcompile.ir.axis import Mixes
from dpcompile.rules.rule import LAID, Result, Rule, Use, along, linear_in, reduction

aten = torch.ops.aten


def mean(use: Use) -> Result:
    """A mean over the batch divides by the batch size."""
    try:
        return reduction()(use)
    except Mixes as error:
        raise Mixes("a mean over the batch divides every example's value by the number of examples", error.way_out) from None


def cumulative_backward(use: Use) -> Result:
    """Softmax backward: along one dimension, linear in the gradient."""
    return along("dim", "grad_output")(use)


def sort(use: Use) -> Result:
    """Sorting within the example."""
    return along("dim", "self")(use)


def norm_backward(use: Use) -> Result:
    """Any remaining operation along the example's dimensions."""
    return along("dim", "self")(use)


def searchsorted(use: Use) -> Result:
    """Buckets from shared boundaries."""
    boundaries = use["sorted_sequence"]
    if isinstance(use.state(boundaries), LAID):
        raise Mixes("the sorted sequence differs from example to example")
    return use.state(use["self"])


sums, other, softmax = reduction(linear=True), reduction(), along()
all_elements = reduction(dims=None)

RULES: dict[object, Rule] = {
    aten.sum.dim_IntList: linear_in("self")(sums),
    aten.sum.default: linear_in("self")(reduction(linear=True, dims=None)),
    aten.mean.dim: linear_in("self")(mean), aten.mean.default: linear_in("self")(reduction(dims=None)),
    aten.amax.default: other, aten.amin.default: other, aten.max.dim: other, aten.min.dim: other,
    aten.argmax.default: other, aten.argmin.default: other, aten.logsumexp.default: other,
    aten.var.correction: other, aten.std.correction: other, aten.var_mean.correction: other, aten.prod.dim_int: other,
    aten.any.dim: other, aten.all.dim: other, aten.any.dims: other, aten.all.dims: other, aten.median.dim: other,
    aten.linalg_vector_norm.default: other, aten.norm.ScalarOpt_dim: other, aten.count_nonzero.dim_IntList: other,
    aten.max.default: all_elements, aten.min.default: all_elements, aten.any.default: all_elements,
    aten.all.default: all_elements, aten.var.default: all_elements, aten.prod.default: all_elements,
    aten.norm.Scalar: all_elements, aten.median.default: all_elements,
    aten._softmax.default: softmax, aten._safe_softmax.default: softmax, aten._log_softmax.default: softmax,
    aten.cumsum.default: linear_in("self")(softmax), aten.cumprod.default: softmax, aten.logcumsumexp.default: softmax,
    aten.cummax.default: softmax, aten.cummin.default: softmax,
    aten.sort.default: sort, aten.sort.stable: sort, aten.topk.default: sort, aten.kthvalue.default: other,
    aten.argsort.default: sort, aten.glu.default: softmax, aten.glu_backward.default: softmax,
    aten._softmax_backward_data.default: linear_in("grad_output")(cumulative_backward),
    aten._log_softmax_backward_data.default: linear_in("grad_output")(cumulative_backward),
    aten.renorm.default: along(), aten.searchsorted.Tensor: searchsorted,
}  # fmt: skip
