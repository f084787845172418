"""Reductions and operations along a dimension. Only sums are linear and may run over the batch."""

from __future__ import annotations

import torch

from dpcompile.ir.axis import Constant, Mixes
from dpcompile.rules.families import along, linear_in, reduction
from dpcompile.rules.linalg import leading
from dpcompile.rules.rule import LAID, Result, Rule, Use, aligned, differing, is_fixed, refuse_numbers

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


def searchsorted(use: Use) -> Result:
    """Buckets from shared boundaries, or from each example's own."""
    refuse_numbers(use)
    boundaries, sorter = use["sorted_sequence"], use["sorter"]
    if len(use.shape(boundaries)) > 1:
        return leading((1,), sorted_sequence=1, self=1, sorter=1)(use)
    if not is_fixed(use, boundaries) or (sorter is not None and not is_fixed(use, sorter)):
        raise Mixes("the sorted sequence depends on the batch")
    return aligned(use, [(use.state(use["self"]), use.shape(use["self"]))], use.result_shape())


def bucketize(use: Use) -> Result:
    """Buckets from shared boundaries."""
    refuse_numbers(use)
    if not is_fixed(use, use["boundaries"]):
        raise Mixes("the boundaries of the buckets depend on the batch")
    shape = use.result_shape()
    return differing(use, aligned(use, [(use.state(use["self"]), use.shape(use["self"]))], shape), shape)


def renorm(use: Use) -> Result:
    """Every index of `dim` is normalised over all other dimensions, so that `dim` must hold the examples."""
    refuse_numbers(use)
    state, dim = use.state(use["self"]), use["dim"] % len(use.shape(use["self"]))
    if not isinstance(state, LAID) or state.dim != dim:
        raise Mixes(
            "renorm takes norms over all dimensions but one, the examples' among them", "give renorm the examples' dimension"
        )
    return state


def constant_kept(rule: Rule) -> Rule:
    """The mean or the extreme of equal numbers is that number, however many there are."""

    def wrapped(use: Use) -> Result:
        state, fakes = use.state(use["self"]), use.node.meta["val"]
        if isinstance(state, Constant) and isinstance(fakes, torch.Tensor):
            return state
        return rule(use)

    return wrapped


sums, other, softmax = reduction(linear=True), reduction(), along()
all_elements = reduction(dims=None)

RULES: dict[object, Rule] = {
    aten.sum.dim_IntList: linear_in("self")(sums),
    aten.sum.default: linear_in("self")(reduction(linear=True, dims=None)),
    aten.mean.dim: linear_in("self")(constant_kept(mean)),
    aten.mean.default: linear_in("self")(constant_kept(reduction(dims=None))),
    aten.amax.default: constant_kept(other), aten.amin.default: constant_kept(other), aten.max.dim: other, aten.min.dim: other,
    aten.argmax.default: other, aten.argmin.default: other, aten.logsumexp.default: other,
    aten.var.correction: other, aten.std.correction: other, aten.var_mean.correction: other, aten.prod.dim_int: other,
    aten.any.dim: other, aten.all.dim: other, aten.any.dims: other, aten.all.dims: other, aten.median.dim: other,
    aten.linalg_vector_norm.default: other, aten.norm.ScalarOpt_dim: other, aten.count_nonzero.dim_IntList: other,
    aten.count_nonzero.default: other,
    aten.nanmedian.dim: other, aten.mode.default: other, aten.aminmax.default: other, aten.std_mean.correction: other,
    aten.nansum.default: other, aten.nanmedian.default: all_elements,
    aten.max.default: all_elements, aten.min.default: all_elements, aten.any.default: all_elements,
    aten.all.default: all_elements, aten.var.default: all_elements, aten.prod.default: all_elements,
    aten.norm.Scalar: all_elements, aten.median.default: all_elements,
    aten._softmax.default: softmax, aten._safe_softmax.default: softmax, aten._log_softmax.default: softmax,
    aten.cumsum.default: linear_in("self")(softmax), aten.cumprod.default: softmax, aten.logcumsumexp.default: softmax,
    aten.cummax.default: softmax, aten.cummin.default: softmax,
    aten.sort.default: sort, aten.sort.stable: sort, aten.topk.default: sort, aten.kthvalue.default: other,
    aten.argsort.default: sort, aten.glu.default: softmax, aten.glu_backward.default: linear_in("grad_output")(softmax),
    aten._softmax_backward_data.default: linear_in("grad_output")(cumulative_backward),
    aten._log_softmax_backward_data.default: linear_in("grad_output")(cumulative_backward),
    aten.renorm.default: renorm, aten.searchsorted.Tensor: searchsorted,
    aten.bucketize.Tensor: bucketize,
}  # fmt: skip
