"""Losses, attention, pooling, resizing, creation of constants, and the recurrent operations of this package."""

from __future__ import annotations

import math
from typing import Any

import torch

from dpcompile.ir.axis import (
    BATCH_SIZE,
    SHARED,
    SUMMED,
    Batched,
    Constant,
    Mixes,
    Position,
    Shared,
    State,
    Summed,
    Uniform,
)
from dpcompile.ir.graph import size_expression
from dpcompile.kernels.ctc import LOSS, LOSS_BACKWARD
from dpcompile.kernels.recurrent_ops import EXAMPLE_DIMS
from dpcompile.rules.families import MEETS_SUM, SUM_WAY_OUT, linear_in, trailing
from dpcompile.rules.linalg import leading
from dpcompile.rules.pointwise import random_like
from dpcompile.rules.rule import LAID, Result, Rule, Use, alike, is_fixed, moved, refuse_numbers

aten = torch.ops.aten
REDUCED = 'use reduction="none" and reduce over each example\'s own elements'


def nll_loss(use: Use) -> Result:
    """Per-element losses; a reduced loss mixes, with ignore_index even its denominator does."""
    refuse_numbers(use)
    if use["weight"] is not None and not is_fixed(use, use["weight"]):
        raise Mixes("class weights depend on the batch")
    state = aligned_first(use, "self", "target")
    if use["reduction"] == 0:
        return state, SHARED
    if use["reduction"] == 2:
        return SUMMED, SUMMED
    raise Mixes("the mean runs over the elements of all examples", REDUCED)


def nll_loss_backward(use: Use) -> Result:
    """The gradient has the layout of the log-probabilities."""
    refuse_numbers(use)
    if use["reduction"] != 0:
        raise Mixes("the loss is reduced over the elements of all examples", REDUCED)
    if use["weight"] is not None and not is_fixed(use, use["weight"]):
        raise Mixes("class weights depend on the batch")
    return aligned_first(use, "grad_output", "self", "target")


def aligned_first(use: Use, *names: str) -> State:
    """Operands whose examples lie along the first dimension, folded alike."""
    states = [use.state(use[name]) for name in names]
    laid = [state for state in states if isinstance(state, LAID)]
    if any(state.dim != 0 for state in laid) or len({(s.outer, s.inner) for s in laid}) > 1 or not laid:
        raise Mixes("the examples of outputs and targets lie along different axes")
    if not all(isinstance(state, (*LAID, Constant)) for state in states):
        raise Mixes("outputs or targets do not hold one row per example")
    return Batched(0, laid[0].outer, laid[0].inner)


def attention(use: Use) -> Result:
    """Scaled dot-product attention: query, key, value, output and their gradients hold the examples first, or as heads (what
    torch makes of three dimensions from 2.15 on); it attends within each of both.

    The mask (or bias) broadcasts against [B, heads, T, S]; seeds and sequence offsets are shared.
    """
    refuse_numbers(use)
    mask = next((use[name] for name in ("attn_mask", "attn_bias") if use.has(name)), None)
    operands = [node for node in use.tensors() if node is not mask and use.shape(node)]
    found = [state for state in map(use.state, operands) if isinstance(state, LAID)]
    if mask is not None and isinstance(use.state(mask), LAID):
        found.append(moved(use.state(mask), use.state(mask).dim + 4 - len(use.shape(mask))))  # type: ignore[arg-type, union-attr]
    wrong = any(
        not isinstance(use.state(node), (*LAID, Shared, Constant)) for node in [*operands, *([mask] if mask is not None else [])]
    )
    if wrong or not found or len({(s.dim, s.outer, s.inner) for s in found}) > 1 or found[0].dim not in (0, 1):
        raise Mixes("the operands of attention hold their examples along different axes")
    return attention_results(use, Batched(found[0].dim, found[0].outer, found[0].inner))


def attention_results(use: Use, state: Batched) -> tuple[State, ...]:
    """Tensors with a batch-sized dimension are per example; seeds, offsets and sizes are not.

    The gradient of a bias that all examples share is a sum over them.
    """
    results: list[State] = []
    is_backward = "backward" in str(use.node.target)
    for fake in use.node.meta["val"]:
        if isinstance(fake, torch.Tensor) and any(use.has_batch(size) for size in sizes_of(fake)):
            results.append(Batched(use.axis(sizes_of(fake)), state.outer, state.inner))
        else:
            summed = is_backward and isinstance(fake, torch.Tensor) and fake.dim() > 0
            results.append(BATCH_SIZE if isinstance(fake, torch.SymInt) else SUMMED if summed else SHARED)
    return tuple(results)


def sizes_of(fake: torch.Tensor) -> list[Any]:
    """Sizes as expressions."""
    return [size_expression(size) for size in fake.shape]


def created(use: Use) -> Result:
    """full, zeros, ones, their _like forms, and what overwrites a whole tensor with a number: a constant."""
    name, dtype = use.node.target._schema.name, use.node.meta["val"].dtype  # type: ignore[union-attr]
    if "empty" in name:
        return Constant(math.nan)
    if "zero" in name:
        return Constant(0.0)
    if "ones" in name:
        return Constant(1.0)
    fill = use["s"] if "scalar_tensor" in name else use["value"] if name == "aten::fill" else use["fill_value"]
    if isinstance(fill, torch.fx.Node) and is_fixed(use, fill):
        return alike(use, use.result_shape())
    if not isinstance(fill, (int, float)):
        raise Mixes("a value that depends on the batch or its size fills a tensor", "use a constant")
    is_exact = dtype.is_floating_point or (float(fill).is_integer() and dtype != torch.bool) or fill in (0, 1)
    return Constant(float(fill) if is_exact else math.nan)


def arange(use: Use) -> Result:
    """Counting over the batch gives each example's position."""
    size = use.result_shape()[0]
    start, step = (use[name] if use.has(name) else default for name, default in (("start", 0), ("step", 1)))
    if size == use.symbol and start == 0 and step == 1:
        return Position(0)
    if not use.node.all_input_nodes:
        return SHARED
    raise Mixes("values are counted over the whole batch", "count within one example")


def random(use: Use) -> Result:
    """Random values of a batch-dependent size are drawn per example; those around a given mean lie like it."""
    if use.tensors():
        return random_like(use)
    refuse_numbers(use, ("size",))
    state = alike(use, use.result_shape())
    return Batched(state.dim, state.outer, state.inner) if isinstance(state, Uniform) else state


def random_rows(use: Use) -> Result:
    """Values drawn from the distribution in every last dimension, differently for every example."""
    state = leading((1,), self=1)(use)
    return Batched(state.dim, state.outer, state.inner) if isinstance(state, Uniform) else state


def margins(use: Use) -> Result:
    """multi_margin_loss and its backward: one value, or one row of gradients, per row of the scores."""
    refuse_numbers(use)
    if use["reduction"] != 0:
        raise Mixes("the loss is reduced over the rows of all examples", REDUCED)
    if use["weight"] is not None and not is_fixed(use, use["weight"]):
        raise Mixes("class weights depend on the batch")
    return aligned_first(use, *(name for name in ("grad_output", "self", "target") if use.has(name)))


def grid_sample(use: Use) -> Result:
    """Input and grid hold their examples along the first dimension."""
    refuse_numbers(use)
    states = [use.state(node) for node in use.tensors()]
    laid = [state for state in states if isinstance(state, LAID)]
    one_layout = laid and all(state.dim == 0 for state in laid) and len({(s.outer, s.inner) for s in laid}) == 1
    if not one_layout or not all(isinstance(state, (*LAID, Constant)) for state in states):
        raise Mixes("the examples of input and grid lie along different axes")
    fakes = use.node.meta["val"]
    state = Batched(0, laid[0].outer, laid[0].inner)
    return state if isinstance(fakes, torch.Tensor) else (state,) * len(fakes)


def recurrent(dims_in: dict[str, int]) -> Rule:
    """A recurrent operation: sequences [T, B, .] and states [B, .]; weights are shared."""

    def rule(use: Use) -> Result:
        refuse_numbers(use)
        for argument in use.node.target._schema.arguments:  # type: ignore[union-attr]
            node = use[argument.name]
            if not isinstance(node, torch.fx.Node) or not isinstance(node.meta.get("val"), torch.Tensor):
                continue
            state = use.state(node)
            wanted = dims_in.get(argument.name)
            if wanted is None and not is_fixed(use, node):
                raise Mixes("the weights of a recurrent layer depend on the batch")
            if isinstance(state, Summed):
                raise Mixes(MEETS_SUM, SUM_WAY_OUT)
            elsewhere = [dim for dim, size in enumerate(use.shape(node)) if use.has_batch(size) and dim != wanted]
            if isinstance(state, Constant) and elsewhere:
                raise Mixes("the examples of a recurrent layer do not lie along its batch dimension")
            if isinstance(state, LAID) and (state.dim, state.outer, state.inner) != (wanted, 1, 1):
                raise Mixes("the examples of a recurrent layer do not lie along its batch dimension")
        fakes = use.node.meta["val"]
        fakes = fakes if isinstance(fakes, (tuple, list)) else [fakes]
        states: tuple[State, ...] = tuple(
            Batched(use.axis(sizes_of(f))) if any(map(use.has_batch, sizes_of(f))) else SHARED for f in fakes
        )
        return states if len(states) > 1 else states[0]

    return rule


def recurrent_rules() -> dict[object, Rule]:
    """A row for every recurrent operation of this package, from its own table of example dimensions."""
    rows: dict[object, Rule] = {}
    for name, dims in EXAMPLE_DIMS.items():
        wanted = {argument: dim for argument, dim in dims.arguments.items() if dim is not None}
        rows[getattr(torch.ops.dpcompile, name.split("::")[1]).default] = recurrent(wanted)
    return rows


def ctc(dims: dict[str, int], result: int) -> Rule:
    """The loss of temporal classification: every tensor holds one sequence, target or length per example along its own dim."""

    def rule(use: Use) -> Result:
        refuse_numbers(use)
        for name, dim in dims.items():
            state, shape = use.state(use[name]), use.shape(use[name])
            is_laid = isinstance(state, LAID) and (state.dim, state.outer, state.inner) == (dim, 1, 1)
            if not (is_laid or isinstance(state, Constant)) or shape[dim] != use.symbol or use.axis(shape) != dim:
                raise Mixes(f"{name} of ctc_loss does not hold one row per example along dimension {dim}",
                            "give log_probs [T, B, C], targets [B, S] and lengths [B]")  # fmt: skip
        return Batched(result)

    return rule


SEQUENCES = {"log_probs": 1, "targets": 0, "input_lengths": 0, "target_lengths": 0}


def overloads(*names: str) -> list[Any]:
    """All functional overloads of the named ATen operations that this version of torch has."""
    packets = [getattr(aten, name) for name in names if hasattr(aten, name)]
    found = [getattr(packet, overload) for packet in packets for overload in packet.overloads()]
    unused = ("generator", "quantized", "names")  # never traced
    return [op for op in found if not op._schema.is_mutable and not any(word in op._overloadname for word in unused)]


def window(op: Any, count: int) -> Rule:
    """Pooling, padding and resizing of the last dimensions: linear in the first operand but for maxima."""
    rule = trailing(count, SIZES)
    return rule if "max" in op._schema.name else linear_in(op._schema.arguments[0].name)(rule)


POOLS = ("max_pool2d_with_indices", "max_pool2d_with_indices_backward", "avg_pool2d", "avg_pool2d_backward",
         "_adaptive_avg_pool2d", "_adaptive_avg_pool2d_backward", "adaptive_max_pool2d", "adaptive_max_pool2d_backward",
         "upsample_nearest2d", "upsample_nearest2d_backward", "upsample_bilinear2d", "upsample_bilinear2d_backward",
         "upsample_bicubic2d", "upsample_bicubic2d_backward", "reflection_pad2d", "reflection_pad2d_backward",
         "replication_pad2d", "replication_pad2d_backward", "tril", "triu", "col2im",
         "_upsample_nearest_exact2d", "_upsample_nearest_exact2d_backward", "_upsample_bilinear2d_aa",
         "_upsample_bilinear2d_aa_backward")  # fmt: skip
POOLS_1D = ("avg_pool1d", "upsample_nearest1d", "upsample_nearest1d_backward", "upsample_linear1d",
            "upsample_linear1d_backward", "reflection_pad1d", "reflection_pad1d_backward", "replication_pad1d",
            "replication_pad1d_backward", "_upsample_nearest_exact1d", "_upsample_nearest_exact1d_backward")  # fmt: skip
POOLS_3D = ("max_pool3d_with_indices", "max_pool3d_with_indices_backward", "avg_pool3d", "avg_pool3d_backward",
            "_adaptive_avg_pool3d", "_adaptive_avg_pool3d_backward", "upsample_nearest3d", "upsample_nearest3d_backward",
            "upsample_trilinear3d", "upsample_trilinear3d_backward", "_upsample_nearest_exact3d",
            "_upsample_nearest_exact3d_backward", "im2col", "pixel_shuffle", "pixel_unshuffle", "replication_pad3d",
            "replication_pad3d_backward", "reflection_pad3d", "reflection_pad3d_backward", "max_unpool2d", "max_unpool3d",
            "adaptive_max_pool3d", "adaptive_max_pool3d_backward")  # fmt: skip
ATTENTION = ("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_backward",
             "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward",
             "_scaled_dot_product_efficient_attention", "_scaled_dot_product_efficient_attention_backward",
             "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_cudnn_attention_backward",
             "_scaled_dot_product_fused_attention_overrideable",
             "_scaled_dot_product_fused_attention_overrideable_backward")  # fmt: skip
SIZES = ("input_size",)
CREATED = ("full", "zeros", "ones", "empty", "new_full", "new_zeros", "new_ones", "new_empty", "full_like", "zeros_like",
           "ones_like", "empty_like", "scalar_tensor", "fill", "zero", "empty_strided", "new_empty_strided")  # fmt: skip

RULES: dict[object, Rule] = {
    **recurrent_rules(),
    LOSS: ctc(SEQUENCES, 0),
    LOSS_BACKWARD: linear_in("grad")(ctc({"grad": 0, **SEQUENCES}, 1)),
    **{op: window(op, 2) for op in overloads(*POOLS)},
    **{op: window(op, 1) for op in overloads(*POOLS_1D)},
    **{op: window(op, 3) for op in overloads(*POOLS_3D)},
    **dict.fromkeys(overloads(*ATTENTION), attention),
    **dict.fromkeys(overloads(*CREATED), created),
    **dict.fromkeys(overloads("arange"), arange),
    **dict.fromkeys(overloads("rand", "randn", "randint", "normal"), random),
    **dict.fromkeys(overloads("grid_sampler_2d", "grid_sampler_2d_backward"), grid_sample),
    **dict.fromkeys(overloads("grid_sampler_3d", "grid_sampler_3d_backward"), grid_sample),
    aten.multinomial.default: random_rows, aten._sample_dirichlet.default: random_rows,
    aten.multi_margin_loss.default: margins, aten.multi_margin_loss_backward.default: margins,
    aten.nll_loss_forward.default: nll_loss, aten.nll_loss2d_forward.default: nll_loss,
    aten.nll_loss_backward.default: nll_loss_backward, aten.nll_loss2d_backward.default: nll_loss_backward,
}  # fmt: skip
