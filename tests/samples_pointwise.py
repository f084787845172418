"""Samples of operations that work element by element, of copies, of draws in an operand's shape, and of plain losses."""

from __future__ import annotations

from typing import Any

import torch
from meaning import (
    N,
    Operand,
    Sample,
    Size,
    batched,
    booleans,
    call,
    complexes,
    constant,
    every_layout,
    normal,
    position,
    positive,
    shared,
    summed,
    uniform,
    zero_or_one,
)  # fmt: skip

from dpcompile.ir.axis import Position, Summed

aten = torch.ops.aten
UNARY = (aten.neg.default, aten.clone.default, aten._to_copy.default, aten.contiguous.default)
LINEAR_BINARY = (aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor)
SCALED = (aten.mul.Scalar, aten.div.Scalar)
NONE, MEAN, SUM = 0, 1, 2


def pairs(op: Any, *rest: Any) -> list[Sample]:
    """Calls of an operation on two operands that broadcast: agreeing, one-sided, crossing, folded differently."""
    x, folded = batched(N, 5), batched(N, 5, inner=3)
    samples = [
        call(op, x, batched(N, 5), *rest),
        call(op, x, shared(5), *rest),
        call(op, shared(3, 1), batched(3, N), *rest),
        call(op, batched(3, N, 5), batched(N, 5), *rest),
        call(op, x, uniform(N, 1), *rest),
        call(op, uniform(N, 5), shared(5), *rest),
        call(op, uniform(N, 5), uniform(N, 5), *rest),
        call(op, folded, batched(N, 5, inner=3), *rest),
        call(op, folded, batched(N, 1, outer=3), *rest),
        call(op, batched(N, 1), batched(N), *rest),
        call(op, batched(N, 1), batched(1, N), *rest),
        call(op, x, summed(5), *rest),
        call(op, summed(5), summed(5), *rest),
        call(op, summed(5), shared(5), *rest),
        call(op, shared(5), summed(5), *rest),
        call(op, x, constant(2.0, N, 5), *rest),
        call(op, constant(2.0, N, 5), shared(5), *rest),
        call(op, constant(0.0, N, 5), constant(2.0, 5), *rest),
        call(op, x, position(N, 1), *rest),
    ]
    same = summed(5)
    return [*samples, call(op, same, same, *rest)]


def with_numbers(op: Any) -> list[Sample]:
    """Calls on an operand and a number."""
    return [*every_layout(op, (5,), 2.0), call(op, batched(N, 5), Size()), call(op, shared(5), Size()),
            call(op, summed(5), 2.0), call(op, summed(5), Size())]  # fmt: skip


def loss(name: str, *more: Any) -> list[Sample]:
    """Calls of an elementwise loss and of its backward, reduced and not."""
    forward, backward = getattr(aten, name).default, getattr(aten, name + "_backward", None)
    draw = positive if name == "binary_cross_entropy" else normal
    weights = [None] if name.startswith("binary") else []
    x, y = batched(N, 5, draw=draw), batched(N, 5, draw=positive)
    samples = [call(forward, x, y, *weights, *weights[:"logits" in name], reduction, *more, cautious=reduction == SUM)
               for reduction in (NONE, MEAN, SUM)]  # fmt: skip
    samples += [call(forward, left, right, *weights, *weights[:"logits" in name], NONE, *more) for left, right in (
        (batched(3, N, draw=draw), batched(3, N, draw=positive)), (uniform(N, 5, draw=draw), uniform(N, 5, draw=positive)),
        (batched(N, 5, inner=3, draw=draw), batched(N, 5, outer=3, draw=positive)))]  # fmt: skip
    if not name.startswith("binary"):  # which want equal shapes
        samples += [call(forward, left, right, NONE, *more) for left, right in (
            (x, shared(5, draw=positive)), (x, summed(5, draw=positive)))]  # fmt: skip
    if backward is not None and backward.default is not None:
        back, g = backward.default, batched(N, 5)
        samples += [call(back, g, x, y, *weights, reduction, *more) for reduction in (NONE, MEAN)]
        samples += [call(back, batched(3, N), batched(3, N, draw=draw), batched(3, N, draw=positive), *weights, NONE, *more),
                    call(back, summed(5), shared(5, draw=draw), shared(5, draw=positive), *weights, NONE, *more),
                    call(back, uniform(N, 5), uniform(N, 5, draw=draw), shared(5, draw=positive), *weights, NONE, *more)]  # fmt: skip
    return samples


def random_like(op: Any, *rest: Any, draw: Any = normal) -> list[Sample]:
    """Draws in the shape of an operand."""
    operands: tuple[Operand, ...] = (
        batched(N, 5, draw=draw), batched(3, N, inner=2, draw=draw), uniform(N, 5, draw=draw),
        constant(0.4, N, 5), constant(0.4, 5), summed(5, draw=draw),
    )  # fmt: skip
    operands = operands[:-1] if op is aten.bernoulli.default else operands
    return [call(op, operand, *rest, drawn=True) for operand in operands]


MASK = batched(N, 5, draw=booleans)
LOSS_SAMPLES = [sample for name, *more in (
    ("mse_loss",), ("smooth_l1_loss", 0.7), ("huber_loss", 0.7), ("soft_margin_loss",), ("binary_cross_entropy",),
    ("binary_cross_entropy_with_logits",)) for sample in loss(name, *more)]  # fmt: skip

ACTIVATION_BACKWARD: dict[Any, tuple[Any, ...]] = {
    aten.gelu_backward.default: (), aten.hardshrink_backward.default: (0.3,), aten.hardsigmoid_backward.default: (),
    aten.hardswish_backward.default: (), aten.hardtanh_backward.default: (-0.5, 0.7), aten.leaky_relu_backward.default: (0.1, False),
    aten.mish_backward.default: (), aten.sigmoid_backward.default: (), aten.silu_backward.default: (),
    aten.softplus_backward.default: (1.5, 20.0), aten.softshrink_backward.default: (0.3,), aten.tanh_backward.default: (),
    aten.threshold_backward.default: (0.3,),
}  # fmt: skip

POINTWISE: tuple[Sample, ...] = (
    *every_layout(aten.hardswish.default, (5, 3)), *every_layout(aten.leaky_relu.default, (5, 3)),
    *(s for op in UNARY for s in every_layout(op, (5, 3))),
    *(call(op, summed(5), must=True) for op in UNARY),
    call(aten._to_copy.default, constant(2.5, N, 5), dtype=torch.int64),
    *(call(aten._to_copy.default, summed(5), dtype=kind) for kind in (torch.int64, torch.bool)),
    call(aten._to_copy.default, summed(5), dtype=torch.complex128, must=True),
    call(aten._to_copy.default, constant(-0.5, 5), dtype=torch.bool),
    *(s for op in LINEAR_BINARY for s in pairs(op)),
    *pairs(aten.div.Tensor),
    call(aten.mul.Tensor, summed(5), shared(5), must=True),
    call(aten.mul.Tensor, shared(5), summed(5), must=True),
    call(aten.div.Tensor, summed(5), shared(5), must=True),
    call(aten.add.Tensor, summed(5), summed(5), must=True),
    call(aten.add.Tensor, summed(5), constant(0.0, 5), must=True),
    call(aten.sub.Tensor, summed(5), summed(5), must=True),
    call(aten.add.Tensor, summed(5, draw=complexes), 2j),
    *(call(op, batched(N, 5), Size()) for op in (*LINEAR_BINARY, aten.div.Tensor)),
    *(call(op, summed(5), Size()) for op in (aten.mul.Tensor, aten.div.Tensor)),
    *(s for op in (*SCALED, aten.add.Scalar) for s in with_numbers(op)),
    *(call(op, summed(5), 2.0, must=True) for op in SCALED),
    # where(condition, a, b)
    *(call(aten.where.self, *three) for three in (
        (MASK, batched(N, 5), batched(N, 5)), (MASK, shared(5), constant(0.0, N, 5)), (MASK, shared(5), shared(1)),
        (shared(5, draw=booleans), batched(N, 5), constant(0.0)), (MASK, summed(5), constant(0.0)),
        (shared(5, draw=booleans), summed(5), summed(5)), (shared(5, draw=booleans), summed(5), shared(5)),
        (uniform(N, 5, draw=booleans), shared(5), shared(5)),
        (batched(N, 1, draw=booleans), batched(1, N), shared(1)), (MASK, position(N, 5), constant(0.0)),
        (constant(1.0, N, 5, draw=booleans), constant(0.0, N, 5), constant(2.0, 5)))),
    call(aten.where.self, shared(5, draw=booleans), summed(5), constant(0.0), must=True),
    *(call(op, *three) for op, value in ((aten.masked_fill.Scalar, 0.5), (aten.masked_fill.Tensor, shared())) for three in (
        (batched(N, 5), MASK, value), (batched(N, 5), shared(5, draw=booleans), value), (uniform(N, 5), MASK, value),
        (batched(3, N), batched(3, N, draw=booleans), value), (summed(5), shared(5, draw=booleans), value),
        (summed(5), MASK, value), (batched(N, 5, inner=2), batched(N, 1, outer=2, draw=booleans), value),
        (batched(N, 1), batched(1, N, draw=booleans), value), (constant(2.0, N, 5), shared(5, draw=booleans), value),
        (constant(2.0, 5), MASK, value))),
    call(aten.masked_fill.Scalar, summed(5), shared(5, draw=booleans), 0.0, must=True),
    call(aten.masked_fill.Scalar, batched(N, 5), MASK, Size()),
    *(call(aten.copy.default, left, right) for left, right in (
        (batched(N, 5), batched(N, 5)), (batched(N, 5), shared(5)),
        (batched(3, N, 5), batched(N, 5)), (constant(0.0, N, 5), batched(N, 5)), (constant(0.0, N, 5), uniform(N, 1)),
        (batched(N, 5), constant(2.0, 5)), (shared(5), summed(5)), (summed(5), shared(5)), (batched(N, 3), position(N, 1)),
        (batched(N, 5, inner=2), batched(N, 5, inner=2)), (batched(5, N), batched(5, N)))),
    *every_layout(aten.log_sigmoid_forward.default, (5, 3)),
    *every_layout(aten.hardswish.default, (5, 3)), *every_layout(aten.leaky_relu.default, (5, 3)),
    *(call(aten.log_sigmoid_backward.default, *three) for three in (
        (batched(N, 5), batched(N, 5), batched(N, 5)), (batched(3, N), batched(3, N), batched(3, N)),
        (summed(5), shared(5), shared(5)), (batched(N, 5, inner=2), batched(N, 5, outer=2), batched(N, 5, inner=2)),
        (uniform(N, 5), uniform(N, 5), uniform(N, 5)))),
    *(s for op in (aten.real.default, aten.imag.default) for s in every_layout(op, (5, 3), draw=complexes)),
    # randomness: probabilities of zero and one show where values come from, others that every element is drawn
    *(s for s in every_layout(aten.bernoulli.default, (5,), draw=zero_or_one) if not isinstance(s.args[0].state, (Summed, Position)) and "Constant(2)" not in str(s)),
    *random_like(aten.bernoulli.default, draw=positive),
    *every_layout(aten.bernoulli.p, (5,), 1.0, drawn=True),
    *random_like(aten.bernoulli.p, 0.5),
    *(s for op in (aten.rand_like.default, aten.randn_like.default) for s in random_like(op)),
    *random_like(aten.randint_like.default, 7),
    *random_like(aten.randint_like.low_dtype, 2, 7),
    *every_layout(aten.native_dropout.default, (5,), 0.0, True),
    *random_like(aten.native_dropout.default, 0.5, True),
    call(aten.native_dropout.default, batched(N, 5), Size(lambda b: b / (b + 1)), True, drawn=True),
    *(call(aten.rrelu_with_noise_functional.default, x, noise, 0.1, 0.3, training, drawn=training) for training in (False, True)
      for x, noise in ((batched(N, 5), batched(N, 5)), (batched(3, N), batched(3, N)), (uniform(N, 5), constant(0.0, N, 5)),
                       (uniform(N, 5), uniform(N, 5)), (constant(-1.0, N, 5), constant(0.0, N, 5)), (summed(5), shared(5)))),
    *(call(aten.native_dropout_backward.default, g, mask, 2.0) for g, mask in (
        (batched(N, 5), MASK), (summed(5), shared(5, draw=booleans)), (uniform(N, 5), MASK), (batched(3, N), batched(3, N, draw=booleans)),
        (summed(5), batched(N, 5, draw=booleans)), (batched(N, 1), batched(1, N, draw=booleans)))),
    call(aten.native_dropout_backward.default, summed(5), shared(5, draw=booleans), 2.0, must=True),
    call(aten.native_dropout_backward.default, batched(3, N, inner=2), batched(3, N, inner=2, draw=booleans), 2.0),
    *(call(op, g, x, *rest, must=must, cautious=not must) for op, rest in ACTIVATION_BACKWARD.items() for g, x, must in (
        (batched(N, 5), batched(N, 5), True), (batched(3, N), batched(3, N), True), (summed(5), shared(5), True),
        (batched(N, 5), shared(5), True), (uniform(N, 5), uniform(N, 5), False), (shared(5), summed(5), False),
        (summed(5), batched(N, 5), False), (batched(N, 5, inner=2), batched(N, 5, outer=2), False))),
    *(call(aten.elu_backward.default, g, 1.5, 1.0, 1.0, False, x, must=must) for g, x, must in (
        (batched(N, 5), batched(N, 5), True), (batched(3, N), batched(3, N), True), (summed(5), shared(5), True),
        (uniform(N, 5), uniform(N, 5), False), (batched(N, 5, inner=2), batched(N, 5, outer=2), False))),
    call(aten.threshold_backward.default, summed(5), shared(5), 0.3, must=True),
    call(aten.threshold_backward.default, batched(N, 5), batched(N, 5), Size()),
    *(call(aten._prelu_kernel.default, x, w) for x, w in (
        (batched(N, 5), shared(1, 5)), (batched(3, N), shared(3, 1)), (batched(N, 5), batched(N, 1)), (uniform(N, 5), shared(1, 5)),
        (summed(5), shared(5)), (batched(N, 5, inner=2), batched(N, 1, outer=2)))),
    *(call(aten._prelu_kernel_backward.default, g, x, w) for g, x, w in (
        (batched(N, 5), batched(N, 5), shared(1, 5)), (batched(3, N), batched(3, N), shared(3, 1)), (summed(5), shared(5), shared(5)),
        (uniform(N, 5), uniform(N, 5), shared(1, 5)), (batched(N, 5, inner=2), batched(N, 5, outer=2), shared(1, 5)))),
    *LOSS_SAMPLES,
)  # fmt: skip
