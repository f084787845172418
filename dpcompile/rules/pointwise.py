"""Pointwise operations: recognised by torch's own tag, plus those that carry no tag, plus the linear ones.

A linear pointwise operation also serves sums over examples, which is what the tails of parameter gradients are.
"""

from __future__ import annotations

import math

import torch

from dpcompile import torch_private
from dpcompile.ir.axis import Batched, Constant, Mixes, Shared, Summed, Uniform
from dpcompile.rules.families import MEETS_SUM, SUM_WAY_OUT, additive_in, linear_in, pointwise, same_as
from dpcompile.rules.rule import Result, Rule, Use, aligned, alike, differing, refuse_numbers

aten = torch.ops.aten


def clone(use: Use) -> Result:
    """Copies and casts keep the state of what they copy; a constant is what its type can hold."""
    state = same_as("self")(use)
    return stored(state, use) if isinstance(state, Constant) else state


def floating_sums(rule: Rule) -> Rule:
    """A sum over examples that is rounded to integers, or made true and false, is no sum any more."""

    def wrapped(use: Use) -> Result:
        dtype = use.node.meta["val"].dtype
        if isinstance(use.state(use["self"]), Summed) and not (dtype.is_floating_point or dtype.is_complex):
            raise Mixes(MEETS_SUM, SUM_WAY_OUT)
        return rule(use)

    return wrapped


def stored(state: Constant, use: Use) -> Constant:
    """The constant after a conversion to the type of the result."""
    fake = use.node.meta["val"]
    if fake.dtype.is_floating_point or fake.dtype.is_complex or state.value == 0:
        return state
    return Constant(math.nan)


def copy(use: Use) -> Result:
    """src in the shape of self."""
    refuse_numbers(use)
    state, shape = use.state(use["src"]), use.result_shape()
    if isinstance(state, Constant):
        return stored(state, use)
    common = aligned(use, [(state, use.shape(use["src"]))], shape)
    return alike(use, shape) if isinstance(common, Shared) else common


def random_like(use: Use) -> Result:
    """Random values in the shape of an operand are drawn per element."""
    refuse_numbers(use)
    fakes = use.node.meta["val"]
    shape = use.result_shape() if isinstance(fakes, torch.Tensor) else use.result_shape(0)
    state = aligned(use, [(use.state(node), use.shape(node)) for node in use.tensors()], shape)
    state = differing(use, state, shape)
    return Batched(state.dim, state.outer, state.inner) if isinstance(state, Uniform) else state


def native_dropout(use: Use) -> Result:
    """Dropout draws its mask per element, also where its input is the same for all examples."""
    state = random_like(use)
    assert not isinstance(state, tuple)
    return state, state


def noisy_rrelu(use: Use) -> Result:
    """A slope per element, drawn in training."""
    return (random_like(use),) * 2 if use["training"] else pointwise(use)  # type: ignore[return-value]


multilinear = linear_in("self", "other")(pointwise)
linear_self = linear_in("self")(pointwise)
linear_copy = linear_in("self")(clone)
linear_cast = floating_sums(linear_copy)
additive = additive_in("self", "other")(pointwise)

DRAWN = (
    aten.bernoulli.Tensor, aten.poisson.default, aten.binomial.default, aten._standard_gamma.default, aten.exponential.default,
    aten.uniform.default, aten.normal_functional.default, aten.cauchy.default, aten.geometric.default, aten.log_normal.default,
    aten.random.default, aten.random.to,
)  # fmt: skip
"""Draws in the shape of an operand, some of them around its values."""

RULES: dict[object, Rule] = {
    aten.mul.Tensor: multilinear,
    aten.mul.Scalar: linear_self,
    aten.div.Tensor: linear_in("self")(pointwise),
    aten.div.Scalar: linear_self,
    aten.neg.default: linear_self,
    aten.add.Tensor: additive,
    aten.add.Scalar: additive,
    aten.sub.Tensor: additive,
    aten.rsub.Tensor: additive,
    aten.where.self: additive,
    aten.masked_fill.Scalar: additive_in("self", "value")(pointwise),
    aten.masked_fill.Tensor: additive_in("self", "value")(pointwise),
    aten.clone.default: linear_copy,
    aten._to_copy.default: linear_cast,
    aten.contiguous.default: linear_copy,
    aten.copy.default: linear_in("src")(copy),
    aten.log_sigmoid_forward.default: pointwise,
    aten.real.default: linear_self,
    aten._conj.default: linear_self,
    aten._neg_view.default: linear_self,
    aten._conj_physical.default: linear_self,
    aten.resolve_conj.default: linear_self,
    aten.complex.default: additive_in("real", "imag")(pointwise),
    aten.polar.default: pointwise,
    aten.imag.default: linear_self,
    aten.native_dropout.default: native_dropout,
    aten.bernoulli.default: random_like,
    aten.bernoulli.p: random_like,
    aten.rand_like.default: random_like,
    aten.randn_like.default: random_like,
    aten.randint_like.default: random_like,
    aten.randint_like.low_dtype: random_like,
    **dict.fromkeys(DRAWN, random_like),
    aten._standard_gamma_grad.default: pointwise,
    aten._dirichlet_grad.default: pointwise,
    aten.rrelu_with_noise_backward.default: linear_in("grad_output")(pointwise),
    aten.rrelu_with_noise_functional.default: noisy_rrelu,
    aten.native_dropout_backward.default: linear_in("grad_output")(pointwise),
    aten.hardswish.default: pointwise,
    aten.leaky_relu.default: pointwise,  # torch 2.11 tags it not
    aten._prelu_kernel.default: pointwise,
    aten._prelu_kernel_backward.default: linear_in("grad_output")(pointwise),
}


def is_pointwise(target: object) -> bool:
    """Whether torch itself tags the operation as pointwise (equal(), which reads all elements, is tagged by mistake)."""
    if not isinstance(target, torch_private.OpOverload) or target._schema.is_mutable:
        return False
    return torch.Tag.pointwise in target.tags and torch.Tag.data_dependent_output not in target.tags


def elementwise_loss(use: Use) -> Result:
    """A loss with its `reduction` argument: elementwise only when nothing is reduced."""
    if use["reduction"] != 0:
        raise Mixes("the loss is reduced over the whole batch", 'use reduction="none" and reduce per example')
    return pointwise(use)


BACKWARD = (
    "elu", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log_sigmoid", "mish", "sigmoid", "silu",
    "softplus", "softshrink", "tanh", "threshold",
)  # fmt: skip
"""Activations whose backward operation multiplies the gradient, its first operand, element by element."""
for name in BACKWARD:
    operation = getattr(aten, f"{name}_backward").default
    RULES[operation] = linear_in(operation._schema.arguments[0].name)(pointwise)

LOSSES = (
    "mse_loss",
    "smooth_l1_loss",
    "huber_loss",
    "soft_margin_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
)
for name in LOSSES:
    for suffix in ("", "_backward"):
        if hasattr(aten, name + suffix):
            RULES[getattr(aten, name + suffix).default] = elementwise_loss
