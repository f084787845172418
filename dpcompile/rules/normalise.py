"""Normalisation layers: per example, except where statistics are taken over the batch."""

from __future__ import annotations

from typing import Any

import torch

from dpcompile.ir.axis import SHARED, SUMMED, Batched, Mixes, Shared, State
from dpcompile.rules.families import linear_in
from dpcompile.rules.rule import LAID, Laid, Result, Rule, Use, is_fixed, refuse_numbers

aten = torch.ops.aten
BATCH_STATISTICS = "batch normalisation in training mode takes mean and variance over the examples of the batch"
BATCH_WAY_OUT = "use GroupNorm, LayerNorm or InstanceNorm, or put the layer in eval mode so that its statistics are fixed"


def examples(use: Use, *names: str) -> Laid:
    """The common layout of these operands."""
    found = [use.state(use[name]) for name in names if use[name] is not None]
    laid = [state for state in found if isinstance(state, LAID)]
    if not laid or len({(state.dim, state.outer, state.inner) for state in laid}) > 1:
        raise Mixes("the operands of a normalisation hold their examples along different axes")
    return laid[0]


def fixed(use: Use, *names: str) -> None:
    """These operands are the same for all examples."""
    if any(use[name] is not None and not is_fixed(use, use[name]) for name in names):
        raise Mixes("the scale or shift of a normalisation depends on the batch")


def leading(use: Use, state: Laid, name: str, count: int) -> None:
    """The examples must lie before the normalised dimensions."""
    if state.dim >= len(use.shape(use[name])) - count:
        raise Mixes("the normalisation runs over the examples", "normalise over the example's own dimensions")


def layer_norm(use: Use) -> Result:
    """native_layer_norm and _fused_rms_norm: result and statistics per example."""
    refuse_numbers(use, ("normalized_shape",))
    fixed(use, "weight", *(["bias"] if use.has("bias") else []))
    state = examples(use, "input")
    leading(use, state, "input", len(use["normalized_shape"]))
    return (state,) * len(use.node.meta["val"])


def layer_norm_backward(use: Use) -> Result:
    """Gradient of the input per example, of scale and shift summed."""
    refuse_numbers(use, ("normalized_shape",))
    fixed(use, "weight")
    state = examples(use, "grad_out", "input", "rstd", *(["mean"] if use.has("mean") else []))
    leading(use, state, "input", len(use["normalized_shape"]))
    return (Batched(state.dim, state.outer, state.inner),) + (SUMMED,) * (len(use.node.meta["val"]) - 1)


def group_norm(use: Use) -> Result:
    """Examples along the first dimension; mean and rstd are [N, groups]."""
    state = examples(use, "input")
    if state.dim != 0:
        raise Mixes("group normalisation over the examples")
    refuse_numbers(use, ("N",))
    fixed(use, "weight", "bias")
    return state, state, state


def group_norm_backward(use: Use) -> Result:
    """Gradient of the input per example, of scale and shift summed."""
    refuse_numbers(use, ("N",))
    fixed(use, "weight")
    state = examples(use, "grad_out", "input", "mean", "rstd")
    if state.dim != 0:
        raise Mixes("group normalisation over the examples")
    return Batched(0, state.outer, state.inner), SUMMED, SUMMED


def batch_norm(use: Use) -> Result:
    """Fixed statistics: pointwise. Batch statistics: legal only with the examples folded into the channels (InstanceNorm)."""
    refuse_numbers(use)
    state = examples(use, "input")
    training = use["training"] if use.has("training") else False
    if state.dim == 1:
        per_channel(use, state, "weight", "bias", "running_mean", "running_var")
        return channel_results(use, state)
    if training:
        raise Mixes(BATCH_STATISTICS, BATCH_WAY_OUT)
    fixed(use, "weight", "bias", "running_mean", "running_var")
    empty: State = Shared()
    return (state,) + (empty,) * (len(use.node.meta["val"]) - 1)


def per_channel(use: Use, state: Laid, *names: str) -> None:
    """Vectors over channels that hold the examples must hold them in the same way."""
    for name in names:
        if not use.has(name) or use[name] is None or use.shape(use[name]) == [0]:
            continue
        vector = use.state(use[name])
        if not isinstance(vector, LAID) or (vector.outer, vector.inner) != (state.outer, state.inner):
            raise Mixes("a scale or statistic per channel meets channels that hold the examples in another order")


def channel_results(use: Use, state: Laid) -> tuple[State, ...]:
    """Results when every channel belongs to one example: statistics are vectors over the folded channels."""
    vector = type(state)(0, state.outer, state.inner)
    fakes: Any = use.node.meta["val"]
    statistics = (vector if any(map(use.has_batch, use.result_shape(i))) else SHARED for i in range(1, len(fakes)))
    return state, *statistics


def batch_norm_backward(use: Use) -> Result:
    """As forward: summed gradients of scale and shift with fixed statistics, per example when folded into channels."""
    refuse_numbers(use)
    state = examples(use, "grad_out", "input")
    if state.dim == 1:
        per_channel(use, state, "weight", "running_mean", "running_var", "save_mean", "save_invstd")
        vector = Batched(0, state.outer, state.inner)
        return Batched(1, state.outer, state.inner), vector, vector
    if use["train"]:
        raise Mixes(BATCH_STATISTICS, BATCH_WAY_OUT)
    fixed(use, "weight", "running_mean", "running_var")
    return Batched(state.dim, state.outer, state.inner), SUMMED, SUMMED


def instance_like(use: Use) -> Result:
    """CUDA's cudnn and miopen variants take `training` and saved statistics like the native operation."""
    return batch_norm(use)


def weight_norm(use: Use) -> Result:
    """weight_norm of shared tensors is decided before any rule; a batched operand is refused."""
    raise Mixes("weight normalisation of a value that depends on the batch")


linear = linear_in("grad_out")
RULES: dict[object, Rule] = {
    aten.native_layer_norm.default: layer_norm,
    aten.native_layer_norm_backward.default: linear(layer_norm_backward),
    aten.native_group_norm.default: group_norm,
    aten.native_group_norm_backward.default: linear(group_norm_backward),
    aten.native_batch_norm.default: batch_norm,
    aten._native_batch_norm_legit.no_stats: batch_norm,
    aten._native_batch_norm_legit_functional.default: batch_norm,
    aten._native_batch_norm_legit_no_training.default: batch_norm,
    aten.cudnn_batch_norm.default: instance_like,
    aten.native_batch_norm_backward.default: linear(batch_norm_backward),
    aten._weight_norm_interface.default: weight_norm,
    aten._weight_norm_interface_backward.default: linear_in("grad_w")(weight_norm),
}
for _name, _rule in (("_fused_rms_norm", layer_norm), ("_fused_rms_norm_backward", linear(layer_norm_backward))):
    if hasattr(aten, _name):
        RULES[getattr(aten, _name).default] = _rule
