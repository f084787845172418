"""Connectionist temporal classification: what compiles equals torch's own call on one example, what does not is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import errors, expect
from torch import Tensor, nn

from dpcompile import DPCompileError, dpcompile

LONG, CLASSES, WIDEST = 9, 5, 4
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def batch_of(size: int, blank: int = 0) -> Batch:
    """Sequences f[B, T, 3], targets i64[B, S] without blanks, and lengths of both, the shortest target empty."""
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(size, LONG, 3, generator=generator).double()
    targets = torch.randint(0, CLASSES - 1, (size, WIDEST), generator=generator)
    targets = targets + (targets >= blank)
    inputs = torch.randint(2 * WIDEST + 1, LONG + 1, (size,), generator=generator)
    return x, targets, inputs, torch.arange(size) % (WIDEST + 1)


def network() -> nn.Module:
    """A recurrent layer and classes for every step."""
    torch.manual_seed(0)
    return Recognised().double()


class Recognised(nn.Module):
    """Sequences f[B, T, 3] to scores f[B, T, classes]."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(3, 6, batch_first=True)
        self.classes = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """The scores."""
        scores: Tensor = self.classes(self.recurrent(x)[0])
        return scores


def loss_with(**options: Any) -> Callable[..., Tensor]:
    """A loss per example by F.ctc_loss."""

    def loss(model: nn.Module, x: Tensor, targets: Tensor, inputs: Tensor, lengths: Tensor) -> Tensor:
        return F.ctc_loss(model(x).log_softmax(2).transpose(0, 1), targets, inputs, lengths, reduction="none", **options)

    return loss


def by_module(model: nn.Module, x: Tensor, targets: Tensor, inputs: Tensor, lengths: Tensor) -> Tensor:
    """The same by nn.CTCLoss."""
    found: Tensor = nn.CTCLoss(reduction="none")(model(x).log_softmax(2).transpose(0, 1), targets, inputs, lengths)
    return found


def equally_long(model: nn.Module, x: Tensor, targets: Tensor, inputs: Tensor, lengths: Tensor) -> Tensor:
    """Lengths that are made in the loss."""
    full = torch.full((x.shape[0],), LONG)
    return F.ctc_loss(model(x).log_softmax(2).transpose(0, 1), targets, full, (targets > 2).sum(1), reduction="none")


LOSSES = {
    "first blank": (loss_with(), 0),
    "last blank": (loss_with(blank=CLASSES - 1), CLASSES - 1),
    "blank between": (loss_with(blank=2), 2),
    "zero for infinity": (loss_with(zero_infinity=True), 0),
    "module": (by_module, 0),
    "lengths made in the loss": (equally_long, 0),
}


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize(("loss", "blank"), LOSSES.values(), ids=LOSSES)
def test_the_step_equals_the_loop(loss: Callable[..., Tensor], blank: int, size: int) -> None:
    model, batch = network(), batch_of(size, blank)
    expected = expect(model, loss, batch)
    assert float(expected.norms.min()) > 0
    private = dpcompile(model, loss=loss, max_grad_norm=expected.max_grad_norm, example_batch=batch_of(3, blank))
    assert max(errors(private(*batch), expected).values()) < 1e-9


@pytest.mark.parametrize("options", [{"strategy": s} for s in ("gram", "materialize", "fused")] + [{"schedule": "two-pass"},
                                     {"schedule": "microbatch"}], ids=str)  # fmt: skip
def test_every_strategy_gives_the_same(options: dict[str, Any]) -> None:
    model, batch = network(), batch_of(7)
    expected = expect(model, loss_with(), batch)
    private = dpcompile(model, loss=loss_with(), max_grad_norm=expected.max_grad_norm, **options)
    assert max(errors(private(*batch), expected).values()) < 1e-9


def too_short(zero_infinity: bool) -> tuple[nn.Module, Callable[..., Tensor], Batch]:
    """A batch in which the second example has fewer steps than targets."""
    x, targets, inputs, lengths = batch_of(3)
    inputs, lengths = inputs.clone(), lengths.clone()
    inputs[1], lengths[1] = 2, 4
    return network(), loss_with(zero_infinity=zero_infinity), (x, targets, inputs, lengths)


def test_an_impossible_alignment_costs_nothing_with_zero_infinity() -> None:
    model, loss, batch = too_short(True)
    expected = expect(model, loss, batch)
    assert float(expected.losses[1]) == float(expected.norms[1]) == 0
    private = dpcompile(model, loss=loss, max_grad_norm=expected.max_grad_norm)
    assert max(errors(private(*batch), expected).values()) < 1e-9


def test_an_impossible_alignment_contributes_nothing_without() -> None:
    model, loss, batch = too_short(False)
    step = dpcompile(model, loss=loss)(*batch)
    others = dpcompile(model, loss=loss)(*(tensor[[0, 2]] for tensor in batch))
    assert step.nonfinite.tolist() == [False, True, False]
    assert float(step.clip_factors[1]) == 0
    for name, gradient in others.grads.items():
        assert torch.allclose(step.grads[name], gradient, rtol=1e-9, atol=1e-12), name


def concatenated(model: nn.Module, x: Tensor, targets: Tensor, inputs: Tensor, lengths: Tensor) -> Tensor:
    """All targets one behind the other."""
    chosen = targets.masked_select(torch.arange(WIDEST) < lengths.unsqueeze(1))
    return F.ctc_loss(model(x).log_softmax(2).transpose(0, 1), chosen, inputs, lengths, reduction="none")


def listed(model: nn.Module, x: Tensor, targets: Tensor, inputs: Tensor, lengths: Tensor) -> Tensor:
    """Lengths in a list and a tuple."""
    long: Any = [9, 9, 9]
    wide: Any = (1, 2, 3)
    return F.ctc_loss(model(x).log_softmax(2).transpose(0, 1), targets, long, wide, reduction="none")


def held(model: nn.Module, x: Tensor, targets: Tensor, inputs: Tensor, lengths: Tensor) -> Tensor:
    """Lengths that do not come with the batch."""
    return F.ctc_loss(model(x).log_softmax(2).transpose(0, 1), targets, torch.tensor([9, 9, 9]), lengths, reduction="none")


def rolled(model: nn.Module, x: Tensor, targets: Tensor, inputs: Tensor, lengths: Tensor) -> Tensor:
    """Every example has its neighbour's targets."""
    return F.ctc_loss(model(x).log_softmax(2).transpose(0, 1), targets.roll(1, 0), inputs, lengths, reduction="none")


def averaged(model: nn.Module, x: Tensor, targets: Tensor, inputs: Tensor, lengths: Tensor) -> Tensor:
    """The mean over the batch."""
    return F.ctc_loss(model(x).log_softmax(2).transpose(0, 1), targets, inputs, lengths)


REFUSED = {
    concatenated: "one behind the other", listed: "list or a tuple", averaged: "already reduced over the batch",
    held: "ctc_loss does not hold|batch size", rolled: "rows|batch|example",
}  # fmt: skip


@pytest.mark.parametrize(("loss", "reason"), REFUSED.items(), ids=lambda case: getattr(case, "__name__", ""))
def test_what_mixes_examples_is_refused(loss: Callable[..., Tensor], reason: str) -> None:
    with pytest.raises(DPCompileError, match=reason):
        dpcompile(network(), loss=loss, check_examples=False)(*batch_of(3))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("padding", [-1, -100, 99])
def test_padding_that_is_no_class_stays_behind_the_targets(padding: int, size: int) -> None:
    x, targets, inputs, lengths = batch_of(size + 1)
    targets = torch.where(torch.arange(WIDEST) < lengths.unsqueeze(1), targets, padding)
    batch = (x[1:], targets[1:], inputs[1:], lengths[1:])
    expected = expect(network(), loss_with(), batch)
    private = dpcompile(network(), loss=loss_with(), max_grad_norm=expected.max_grad_norm)
    assert max(errors(private(*batch), expected).values()) < 1e-9
