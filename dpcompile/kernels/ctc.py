"""The loss of connectionist temporal classification, as two operations without results of a size that depends on data.

torch's own forward also returns its table of forward probabilities, whose size is that of the longest target; here the backward
makes it anew. Both call torch's kernels, so that every example has exactly the loss and gradient that torch gives it alone. As
in torch, the gradient takes the log-probabilities for results of log_softmax.

    ctc_loss           (log_probs f[T, B, C], targets i64[B, S], lengths i64[B] of inputs and targets) -> f[B]
    ctc_loss_backward  (gradient f[B], the same) -> f[T, B, C]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from dpcompile.ir.errors import UnsupportedOperation, refusal
from dpcompile.kernels.recurrent_ops import LIBRARY

aten = torch.ops.aten


def ctc_loss(
    log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor, blank: int, zero_infinity: bool
) -> Tensor:
    """Losses f[B]; an impossible alignment costs infinity, or nothing if `zero_infinity`."""
    losses = aten._ctc_loss.Tensor(log_probs, targets, input_lengths, target_lengths, blank, zero_infinity)[0]
    return torch.where(losses == torch.inf, 0.0, losses) if zero_infinity else losses


def loss_shape(
    log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor, blank: int, zero_infinity: bool
) -> Tensor:
    """What a trace sees of the losses."""
    return log_probs.new_empty(log_probs.shape[1])


def ctc_loss_backward(
    grad: Tensor,
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    zero_infinity: bool,
) -> Tensor:
    """The gradient of the log-probabilities f[T, B, C] for that of the losses f[B]."""
    call = (log_probs, targets, input_lengths, target_lengths)
    found = aten._ctc_loss.Tensor(*call, blank, zero_infinity)
    gradient: Tensor = aten._ctc_loss_backward.Tensor(grad, *call, *found, blank, zero_infinity)
    return gradient.contiguous()


def gradient_shape(
    grad: Tensor,
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    zero_infinity: bool,
) -> Tensor:
    """What a trace sees of the gradient."""
    return log_probs.new_empty(log_probs.shape)


def define(function: Callable[..., Tensor], shape: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Define and return `torch.ops.dpcompile.<name>`; it has no derivative of its own."""
    name = function.__name__

    def run(*args: Any) -> Tensor:
        with torch.no_grad():
            return function(*args)

    LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()), tags=torch.Tag.pt2_compliant_tag)
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"dpcompile::{name}", shape, lib=LIBRARY)
    overload: Callable[..., Tensor] = getattr(torch.ops.dpcompile, name).default
    return overload


LOSS = define(ctc_loss, loss_shape)
LOSS_BACKWARD = define(ctc_loss_backward, gradient_shape)


class CTCLoss(torch.autograd.Function):
    """The losses with their gradient."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, targets: Tensor, inputs: Tensor, lengths: Tensor, blank: int, zero: bool) -> Tensor:
        """Losses f[B]."""
        ctx.save_for_backward(log_probs, targets, inputs, lengths)
        ctx.options = blank, zero
        return LOSS(log_probs, targets, inputs, lengths, blank, zero)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the log-probabilities."""
        if torch.is_grad_enabled():
            raise UnsupportedOperation(refuse("second derivative of ctc_loss", "its gradient has no derivative", "leave it out"))
        gradient = LOSS_BACKWARD(grad, *ctx.saved_tensors, *ctx.options)
        return (gradient, None, None, None, None, None)


def refuse(culprit: str, why: str, way_out: str) -> str:
    """A refusal; the line is that of the call, which is not known here."""
    return refusal(culprit, "", why, way_out)


REDUCTIONS = ("none", "mean", "sum")


def traced_ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str | int = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """F.ctc_loss and torch.ctc_loss for a batch whose targets are padded to one length."""
    if log_probs.dim() != 3 or targets.dim() != 2:
        raise UnsupportedOperation(
            refuse(
                f"ctc_loss of log_probs {list(log_probs.shape)} and targets {list(targets.shape)}",
                "targets one behind the other (as by masked_select) belong to an example by what all others before it are long",
                "give log_probs [T, B, C] and targets padded to [B, S], in which what lies behind target_lengths is not read: "
                'F.ctc_loss(log_probs, labels.clamp(min=0), input_lengths, (labels >= 0).sum(1), reduction="none"); for '
                "Wav2Vec2ForCTC and its like, leave labels out of the call and write this as loss= on its logits",
            )
        )
    if not isinstance(input_lengths, Tensor) or not isinstance(target_lengths, Tensor):
        raise UnsupportedOperation(
            refuse(
                "ctc_loss with lengths as a list or a tuple",
                "its entries belong to places in one batch, and their number is that batch's size",
                "give a tensor of the batch, or torch.full((log_probs.shape[1],), length) where all are equally long",
            )
        )
    name = reduction if isinstance(reduction, str) else REDUCTIONS[reduction]
    losses = cast(Tensor, CTCLoss.apply(log_probs, targets, input_lengths, target_lengths, blank, zero_infinity))  # type: ignore[no-untyped-call]
    if name == "mean":
        return (losses / target_lengths.clamp(min=1)).mean()
    return losses.sum() if name == "sum" else losses
