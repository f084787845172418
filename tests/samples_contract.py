"""Samples of contractions and of normalisation layers."""

from __future__ import annotations

from typing import Any

import torch
from meaning import N, Operand, Sample, Size, batched, call, constant, positive, shared, summed, uniform

aten = torch.ops.aten
MUST: dict[str, Any] = {"must": True}
CAUTIOUS: dict[str, Any] = {"cautious": True}
MATRICES: tuple[tuple[Operand, Operand], ...] = (
    (batched(N, 5), shared(5, 3)), (shared(3, 5), batched(5, N)), (batched(N, 5, inner=2), shared(5, 3)), (batched(N, 5, outer=2), shared(5, 3)),
    (batched(3, N), batched(N, 2)), (batched(3, N, inner=2), batched(N, 2, inner=2)), (batched(3, N, inner=2), batched(N, 2, outer=2)),
    (batched(N, 5), batched(5, N)), (batched(N, 1), batched(1, N)), (uniform(N, 5), shared(5, 3)), (uniform(3, N), batched(N, 2)),
    (uniform(3, N), uniform(N, 2)), (constant(1.0, N, 5), shared(5, 3)), (shared(3, 5), constant(1.0, 5, N)), (constant(1.0, 3, N), batched(N, 2)),
    (constant(2.0, 3, N), constant(1.0, N, 2)), (constant(1.0, 3, 5), shared(5, 2)),
    (constant(2.0, N, 5), constant(1.0, 5, 3)), (summed(3, 5), shared(5, 2)), (shared(3, 5), summed(5, 2)), (summed(3, 5), summed(5, 2)),
    (batched(N, 5), summed(5, 2)), (summed(3, 5), batched(5, N)),
)  # fmt: skip
BATCHES: tuple[tuple[Operand, Operand], ...] = (
    (batched(N, 3, 5), batched(N, 5, 2)), (batched(N, 3, 5, inner=2), batched(N, 5, 2, inner=2)), (batched(N, 3, 5, inner=2), batched(N, 5, 2, outer=2)),
    (batched(4, N, 5), shared(4, 5, 2)), (shared(4, 3, 5), batched(4, 5, N)), (batched(4, 3, N), batched(4, N, 2)), (batched(4, N, 5), batched(4, 5, N)),
    (batched(4, 3, N, inner=2), batched(4, N, 2, outer=2)), (uniform(N, 3, 5), batched(N, 5, 2)), (uniform(N, 3, 5), uniform(N, 5, 2)),
    (constant(1.0, N, 3, 5), batched(N, 5, 2)), (summed(4, 3, 5), shared(4, 5, 2)), (summed(4, 3, 5), summed(4, 5, 2)), (batched(4, N, 5), summed(4, 5, 2)),
    (batched(4, 3, N, inner=2), batched(4, N, 2, inner=2)), (constant(1.0, 4, N, 5), shared(4, 5, 2)),
)  # fmt: skip


def with_bias(op: Any, bias: tuple[int, ...], pairs: tuple[tuple[Operand, Operand], ...]) -> list[Sample]:
    """The product with a shared bias, and single ones with others."""
    return [call(op, shared(*bias), *pair) for pair in pairs if len(bias) == 1 or pair[1].shape[-1] == 2]


CONVOLVED = ([2], [1], [1], False, [0], 1)
TRANSPOSED = ([2], [1], [1], True, [1], 1)


def images(*examples: int | None, outer: int = 1, inner: int = 1) -> Operand:
    """Images of three channels and seven pixels."""
    return batched(*examples, 3, 7, outer=outer, inner=inner)


def backward(g: Operand, x: Operand, weight: Operand, **options: Any) -> Sample:
    """The backward of a convolution of three channels into two."""
    return call(aten.convolution_backward.default, g, x, weight, [2], *CONVOLVED, [True, True, True], **options)


CONTRACTIONS: tuple[Sample, ...] = (
    *(call(aten.mm.default, *pair) for pair in MATRICES),
    call(aten.mm.default, summed(3, 5), shared(5, 2), must=True), call(aten.mm.default, shared(3, 5), summed(5, 2), must=True),
    call(aten.mm.default, constant(1.0, N, 5), shared(5, 3), must=True), call(aten.mm.default, constant(1.0, 3, N), batched(N, 2), must=True),
    *with_bias(aten.addmm.default, (1,), MATRICES),
    *(call(aten.addmm.default, bias, batched(N, 5), shared(5, 3)) for bias in (batched(N, 1), batched(N, 3), uniform(N, 3), summed(3), constant(1.0, 3), shared(3))),
    call(aten.addmm.default, shared(3), batched(N, 5), shared(5, 3), beta=Size()), call(aten.addmm.default, batched(N, 1, inner=2), batched(N, 5, outer=2), shared(5, 3)),
    call(aten.addmm.default, shared(2), batched(3, N), batched(N, 2)), call(aten.addmm.default, summed(2), batched(3, N), batched(N, 2)),
    call(aten.addmm.default, constant(1.0, 2), batched(3, N), batched(N, 2)), call(aten.addmm.default, batched(1, N), shared(3, 5), batched(5, N)),
    *(call(aten.bmm.default, *pair) for pair in BATCHES),
    call(aten.bmm.default, summed(4, 3, 5), shared(4, 5, 2), must=True),
    *with_bias(aten.baddbmm.default, (1, 1, 2), BATCHES),
    call(aten.baddbmm.default, batched(N, 1, 1), batched(N, 3, 5), batched(N, 5, 2)), call(aten.baddbmm.default, batched(N, 1), batched(4, N, 5), shared(4, 5, 2)),
    call(aten.baddbmm.default, batched(N, 3, 2, inner=2), batched(N, 3, 5, outer=2), batched(N, 5, 2, outer=2)),
    *(s for op, bias in ((aten.mv.default, []), (aten.addmv.default, [shared(1)])) for s in (
        call(op, *bias, batched(N, 5), shared(5)), call(op, *bias, shared(3, 5), summed(5)), call(op, *bias, batched(3, N), batched(N)),
        call(op, *bias, batched(N, 5, inner=2), shared(5)), call(op, *bias, summed(3, 5), shared(5)), call(op, *bias, batched(3, N, inner=2), batched(N, outer=2)),
        call(op, *bias, uniform(N, 5), shared(5)), call(op, *bias, summed(3, 5), summed(5)), call(op, *bias, batched(3, N, inner=2), batched(N, inner=2)),
        call(op, *bias, constant(1.0, N, 5), shared(5)), call(op, *bias, batched(3, N), constant(1.0, N)))),
    call(aten.mv.default, shared(3, 5), summed(5), must=True), call(aten.addmv.default, batched(N), batched(N, 5), shared(5)),
    call(aten.addmv.default, summed(3), shared(3, 5), shared(5)),
    *(call(aten.dot.default, *pair) for pair in (
        (batched(N), batched(N)), (batched(N, inner=2), batched(N, outer=2)), (batched(N), constant(1.0, N)), (batched(N), uniform(N)), (summed(5), shared(5)),
        (summed(5), summed(5)), (constant(1.0, N), constant(1.0, N)), (batched(N, inner=3), batched(N, inner=3)))),
    call(aten.dot.default, summed(5), shared(5), must=True),
    *(call(aten.convolution.default, x, w, b, *options) for options in (CONVOLVED, TRANSPOSED) for x, w, b in (
        (images(N), shared(3, 3, 2), None), (images(N, inner=2), shared(3, 3, 2), shared(3)), (images(N, outer=2), shared(3, 3, 2), shared(3)),
        (uniform(N, 3, 7), shared(3, 3, 2), shared(3)), (constant(1.0, N, 3, 7), shared(3, 3, 2), shared(3)), (constant(1.0, N, 3, 7), constant(1.0, 3, 3, 2), None),
        (images(N), summed(3, 3, 2), None), (shared(1, 3, 7), summed(3, 3, 2), None), (images(N), shared(3, 3, 2), summed(3)), (summed(1, 3, 7), shared(3, 3, 2), None), (batched(2, 3, N), shared(3, 3, 2), None))),
    call(aten.convolution.default, shared(1, 3, 7), batched(N, 3, 2), None, *CONVOLVED, cautious=True),
    call(aten.convolution.default, shared(1, 3, 7), batched(3, N, 2), None, *TRANSPOSED, cautious=True),
    call(aten.convolution.default, batched(1, N, 7, inner=3), batched(N, 3, 2, inner=2), None, [1], [0], [1], False, [0], Size()),
    backward(batched(N, 2, 4), images(N), shared(2, 3, 2)), backward(batched(N, 2, 4, inner=2), images(N, inner=2), shared(2, 3, 2)),
    backward(batched(N, 2, 4, outer=2), images(N, inner=2), shared(2, 3, 2)), backward(uniform(N, 2, 4), images(N), shared(2, 3, 2)),
    backward(batched(N, 2, 4), uniform(N, 3, 7), shared(2, 3, 2)), backward(constant(1.0, N, 2, 4), images(N), shared(2, 3, 2)),
    backward(summed(4, 2, 4), shared(4, 3, 7), shared(2, 3, 2), must=True), backward(summed(4, 2, 4), summed(4, 3, 7), shared(2, 3, 2)),
    backward(batched(N, 2, 4), images(N), summed(2, 3, 2)), backward(constant(1.0, N, 2, 4), constant(1.0, N, 3, 7), shared(2, 3, 2)),
    call(aten.convolution_backward.default, batched(N, 2, 4), images(N), shared(2, 3, 2), [2], *CONVOLVED, [False, True, True]),
    # sums over the expanded dimensions of three operands, as in nn.Bilinear and its backward
    *(call(aten._trilinear.default, *three, *dims) for *three, dims in (
        (batched(N, 3), shared(2, 3, 5), batched(N, 5), ([1, 3], [0], [1, 2], [2, 3])), (batched(N, 3), batched(N, 5), batched(N, 2), ([2, 3], [1, 3], [1, 2], [0])),
        (batched(N, 3), shared(2, 3, 5), batched(N, 5), ([1, 3], [0], [1, 2], [0])), (batched(N, 3, inner=2), shared(2, 3, 5), batched(N, 5, outer=2), ([1, 3], [0], [1, 2], [2, 3])),
        (batched(N, 3), summed(2, 3, 5), batched(N, 5), ([1, 3], [0], [1, 2], [2, 3])), (uniform(N, 3), shared(2, 3, 5), batched(N, 5), ([1, 3], [0], [1, 2], [2, 3])),
        (uniform(N, 3), shared(2, 3, 5), uniform(N, 5), ([1, 3], [0], [1, 2], [2, 3])), (constant(1.0, 4, 3), shared(2, 3, 5), shared(4, 5), ([1, 3], [0], [1, 2], [2, 3])))),
)  # fmt: skip


BATCH_NORMS = (aten.native_batch_norm.default, aten._native_batch_norm_legit_functional.default)


def gaps(*shape: int | None, **folded: int) -> Operand:
    """Statistics."""
    return batched(*shape, draw=positive, **folded)


def rms_norm_backward(g: torch.Tensor, x: torch.Tensor, sizes: Any, rstd: torch.Tensor, weight: torch.Tensor, mask: Any) -> Any:
    """What the operation means; it runs on a GPU only."""
    scaled, normalised = g * weight, x * rstd
    dx = rstd * (scaled - normalised * (scaled * normalised).mean(-1, keepdim=True))
    return dx, (g * normalised).flatten(0, -2).sum(0)


def cudnn_batch_norm(*args: Any) -> Any:
    """The native operation and some working memory; it runs on a GPU only."""
    return *aten.native_batch_norm.default(*args), torch.zeros(0)


NORMALISATIONS: tuple[Sample, ...] = (
    *(call(aten.native_layer_norm.default, x, sizes, *affine, 1e-5) for x, sizes, affine in (
        (batched(N, 3, 5), [5], (shared(5), shared(5))), (batched(3, N, 5), [5], (shared(5), None)), (batched(N, 3, 5), [3, 5], (None, None)),
        (batched(N, 5, inner=3), [5], (shared(5), shared(5))), (batched(N, 5, outer=3), [5], (shared(5), shared(5))), (uniform(N, 5), [5], (shared(5), None)),
        (constant(1.0, N, 5), [5], (shared(5), shared(5))), (summed(3, 5), [5], (shared(5), shared(5))), (batched(N, 5), [5], (summed(5), shared(5))),
        (batched(N, 5), [5], (shared(5), summed(5))))),
    call(aten.native_layer_norm.default, batched(3, N), [Size()], None, None, 1e-5), call(aten.native_layer_norm.default, batched(3, N, 5), [Size(), 5], None, None, 1e-5),
    *(call(aten.native_layer_norm_backward.default, g, x, [5], mean, rstd, w, b, [True, True, True], **more) for g, x, mean, rstd, w, b, more in (
        (batched(N, 3, 5), batched(N, 3, 5), batched(N, 3, 1), gaps(N, 3, 1), shared(5), shared(5), {}),
        (batched(3, N, 5), batched(3, N, 5), batched(3, N, 1), gaps(3, N, 1), shared(5), shared(5), {}),
        (batched(N, 5, inner=3), batched(N, 5, inner=3), batched(N, 1, inner=3), gaps(N, 1, inner=3), shared(5), shared(5), {}),
        (batched(N, 5, inner=3), batched(N, 5, inner=3), batched(N, 1, outer=3), gaps(N, 1, inner=3), shared(5), shared(5), {}),
        (batched(N, 5, inner=3), batched(N, 5, outer=3), batched(N, 1, outer=3), gaps(N, 1, outer=3), shared(5), shared(5), {}),
        (uniform(N, 5), batched(N, 5), batched(N, 1), gaps(N, 1), shared(5), shared(5), {}), (batched(N, 5), uniform(N, 5), uniform(N, 1), uniform(N, 1), shared(5), shared(5), {}),
        (constant(1.0, N, 5), batched(N, 5), batched(N, 1), gaps(N, 1), shared(5), shared(5), {}), (summed(3, 5), shared(3, 5), shared(3, 1), shared(3, 1), shared(5), shared(5), MUST),
        (batched(N, 5), batched(N, 5), batched(N, 1), gaps(N, 1), summed(5), shared(5), {}), (summed(3, 5), summed(3, 5), shared(3, 1), shared(3, 1), shared(5), shared(5), {}))),
    call(aten.native_layer_norm_backward.default, batched(3, N), batched(3, N), [Size()], shared(3, 1), shared(3, 1), None, None, [True, False, False]),
    *(call(aten._fused_rms_norm.default, x, sizes, w, 1e-5) for x, sizes, w in (
        (batched(N, 3, 5), [5], shared(5)), (batched(3, N, 5), [5], None), (batched(N, 5, inner=3), [5], shared(5)), (uniform(N, 5), [5], shared(5)), (summed(3, 5), [5], shared(5)),
        (batched(N, 5), [5], summed(5)), (constant(1.0, N, 5), [5], shared(5)))),
    call(aten._fused_rms_norm.default, batched(3, N), [Size()], None, 1e-5),
    *(call(aten._fused_rms_norm_backward.default, g, x, [5], rstd, w, [True, True], run=rms_norm_backward, **more) for g, x, rstd, w, more in (
        (batched(N, 3, 5), batched(N, 3, 5), gaps(N, 3, 1), shared(5), {}), (batched(3, N, 5), batched(3, N, 5), gaps(3, N, 1), shared(5), {}),
        (batched(N, 5, inner=3), batched(N, 5, inner=3), gaps(N, 1, inner=3), shared(5), {}), (batched(N, 5, inner=3), batched(N, 5, inner=3), gaps(N, 1, outer=3), shared(5), {}),
        (batched(N, 5, inner=3), batched(N, 5, outer=3), gaps(N, 1, outer=3), shared(5), {}), (uniform(N, 5), batched(N, 5), gaps(N, 1), shared(5), {}),
        (summed(3, 5), shared(3, 5), shared(3, 1), shared(5), MUST), (batched(N, 5), batched(N, 5), gaps(N, 1), summed(5), {}))),
    *(call(aten.native_group_norm.default, x, w, b, n, 4, 5, 2, 1e-5) for x, w, b, n in (
        (batched(N, 4, 5), shared(4), shared(4), Size()), (batched(N, 4, 5, inner=3), shared(4), None, Size(lambda b: 3 * b)), (batched(N, 4, 5, outer=3), None, None, Size(lambda b: 3 * b)),
        (uniform(N, 4, 5), shared(4), shared(4), Size()), (summed(3, 4, 5), shared(4), shared(4), 3), (batched(N, 4, 5), summed(4), shared(4), Size()),
        (batched(N, 4, 5), shared(4), summed(4), Size()), (constant(1.0, N, 4, 5), shared(4), shared(4), Size()))),
    call(aten.native_group_norm.default, batched(2, N, 5, inner=2), None, None, 2, Size(lambda b: 2 * b), 5, 1, 1e-5),
    call(aten.native_group_norm.default, batched(2, 4, N), shared(4), None, 2, 4, Size(), 2, 1e-5),
    *(call(aten.native_group_norm_backward.default, g, x, mean, rstd, w, n, 4, 5, 2, [True, True, True], **more) for g, x, mean, rstd, w, n, more in (
        (batched(N, 4, 5), batched(N, 4, 5), batched(N, 2), gaps(N, 2), shared(4), Size(), {}), (batched(N, 4, 5, inner=3), batched(N, 4, 5, inner=3), batched(N, 2, inner=3), gaps(N, 2, inner=3), shared(4), Size(lambda b: 3 * b), {}),
        (batched(N, 4, 5, inner=3), batched(N, 4, 5, outer=3), batched(N, 2, inner=3), gaps(N, 2, inner=3), shared(4), Size(lambda b: 3 * b), {}),
        (batched(N, 4, 5, inner=3), batched(N, 4, 5, inner=3), batched(N, 2, inner=3), gaps(N, 2, outer=3), shared(4), Size(lambda b: 3 * b), {}),
        (uniform(N, 4, 5), batched(N, 4, 5), batched(N, 2), gaps(N, 2), shared(4), Size(), {}), (batched(N, 4, 5), batched(N, 4, 5), batched(N, 2), gaps(N, 2), summed(4), Size(), {}),
        (summed(3, 4, 5), shared(3, 4, 5), shared(3, 2), shared(3, 2), shared(4), 3, MUST))),
    *(s for op in BATCH_NORMS for training in (True, False) for s in (
        call(op, batched(N, 3, 5), shared(3), shared(3), shared(3), shared(3, draw=positive), training, 0.1, 1e-5),
        call(op, batched(N, 3, 5, inner=2), shared(3), shared(3), shared(3), shared(3, draw=positive), training, 0.1, 1e-5),
        call(op, uniform(N, 3, 5), shared(3), shared(3), shared(3), shared(3, draw=positive), training, 0.1, 1e-5),
        call(op, batched(2, 3, N), shared(3), shared(3), shared(3), shared(3, draw=positive), training, 0.1, 1e-5),
        call(op, batched(N, 3, 5), shared(3), summed(3), shared(3), shared(3, draw=positive), training, 0.1, 1e-5),
        call(op, batched(1, N, 5, inner=3), uniform(N, inner=3), uniform(N, inner=3), uniform(N, inner=3), uniform(N, inner=3, draw=positive), training, 0.1, 1e-5),
        call(op, batched(1, N, 5, inner=3), uniform(N, outer=3), uniform(N, inner=3), uniform(N, inner=3), uniform(N, inner=3, draw=positive), training, 0.1, 1e-5))),
    call(aten.native_batch_norm.default, batched(1, N, 5, inner=3), None, None, None, None, True, 0.1, 1e-5),
    *(call(aten.cudnn_batch_norm.default, x, w, shared(3), shared(3), shared(3, draw=positive), training, 0.1, 1e-5, run=cudnn_batch_norm)
      for training in (True, False) for x, w in ((batched(N, 3, 5), shared(3)), (batched(N, 3, 5), summed(3)), (batched(2, 3, N), shared(3)), (batched(N, 3, 5, inner=2), shared(3)), (uniform(N, 3, 5), shared(3)))),
    *(call(aten._native_batch_norm_legit.no_stats, x, w, None, True, 0.1, 1e-5) for x, w in (
        (batched(N, 3, 5), shared(3)), (batched(1, N, 5, inner=3), None), (batched(1, N, 5, inner=3), uniform(N, inner=3)), (batched(1, N, 5, inner=3), uniform(N, outer=3)), (uniform(N, 3, 5), None))),
    *(call(aten._native_batch_norm_legit_no_training.default, x, w, w, shared(3), shared(3, draw=positive), 0.1, 1e-5) for x, w in (
        (batched(N, 3, 5), shared(3)), (batched(N, 3, 5, inner=2), None), (uniform(N, 3, 5), shared(3)), (batched(2, 3, N), None), (batched(N, 3, 5), summed(3)), (summed(2, 3, 5), None))),
    *(call(aten.native_batch_norm_backward.default, g, x, w, mean, var, save, save_rstd, train, 1e-5, [True, True, True], **more) for g, x, w, mean, var, save, save_rstd, train, more in (
        (batched(N, 3, 5), batched(N, 3, 5), shared(3), shared(3), shared(3, draw=positive), shared(0), shared(0), False, {}),
        (batched(N, 3, 5), batched(N, 3, 5), shared(3), shared(3), shared(3, draw=positive), shared(3), shared(3, draw=positive), True, {}),
        (batched(N, 3, 5, inner=2), batched(N, 3, 5, outer=2), shared(3), shared(3), shared(3, draw=positive), shared(0), shared(0), False, {}),
        (batched(N, 3, 5, inner=2), batched(N, 3, 5, inner=2), shared(3), shared(3), shared(3, draw=positive), shared(0), shared(0), False, {}),
        (batched(N, 3, 5), batched(N, 3, 5), summed(3), shared(3), shared(3, draw=positive), shared(0), shared(0), False, {}),
        (summed(2, 3, 5), shared(2, 3, 5), shared(3), shared(3), shared(3, draw=positive), shared(0), shared(0), False, MUST),
        (batched(2, 3, N), batched(2, 3, N), shared(3), shared(3), shared(3, draw=positive), shared(0), shared(0), False, {}),
        (batched(1, N, 5, inner=3), batched(1, N, 5, inner=3), uniform(N, inner=3), None, None, batched(N, inner=3), gaps(N, inner=3), True, {}),
        (batched(1, N, 5, inner=3), batched(1, N, 5, inner=3), uniform(N, outer=3), None, None, batched(N, inner=3), gaps(N, inner=3), True, {}),
        (batched(1, N, 5, inner=3), batched(1, N, 5, inner=3), None, None, None, batched(N, inner=3), gaps(N, outer=3), True, {}))),
    *(call(aten._weight_norm_interface.default, v, g, 0) for v, g in ((summed(3, 5), shared(3, 1)), (shared(3, 5), summed(3, 1)))),
    call(aten._weight_norm_interface.default, batched(N, 5), batched(N, 1), 0, cautious=True),
    *(call(aten._weight_norm_interface_backward.default, *four, 0, **more) for *four, more in (
        (summed(3, 5), shared(3, 5), shared(3, 1), shared(3, 1, draw=positive), MUST), (summed(3, 5), summed(3, 5), shared(3, 1), shared(3, 1, draw=positive), {}),
        (batched(N, 5), batched(N, 5), batched(N, 1), gaps(N, 1), CAUTIOUS))),
)  # fmt: skip
