"""Per-example losses from what the user gives: a callable, a criterion of torch.nn, or nothing.

A criterion is computed with `reduction="none"` and reduced over each example's own elements:

    reduction   per example
    "sum"       sum over its elements
    "mean"      mean over its elements; for criteria with ignore_index over those not ignored
    "none"      as "mean"
    "batchmean" sum over its elements (KLDivLoss)

Class weights multiply and are not normalised; an example whose elements are all ignored has loss 0.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dpcompile.ir.errors import InvalidInput
from dpcompile.ir.graph import shape_text
from dpcompile.selection import Selection

CRITERIA = (
    nn.CrossEntropyLoss, nn.NLLLoss, nn.BCELoss, nn.BCEWithLogitsLoss, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss,
    nn.HuberLoss, nn.KLDivLoss, nn.PoissonNLLLoss, nn.SoftMarginLoss, nn.MultiLabelSoftMarginLoss,
    nn.MultiLabelMarginLoss, nn.MultiMarginLoss, nn.HingeEmbeddingLoss,
)  # fmt: skip

PerExampleLoss = Callable[..., Tensor]


class Criterion(Protocol):
    """What the criteria have in common."""

    reduction: str

    def __call__(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Losses under the criterion's reduction."""


def per_example_criterion(criterion: Criterion, outputs: Tensor, target: Tensor) -> Tensor:
    """Losses f[B] of a torch.nn criterion, reduced over each example's own elements."""
    reduction = criterion.reduction
    elementwise = copy.copy(criterion)
    elementwise.reduction = "none"
    values = elementwise(outputs, target)
    if values.dim() < 2:
        return values
    values = values.flatten(1)
    if reduction in ("sum", "batchmean"):
        return values.sum(1)
    ignore_index = getattr(criterion, "ignore_index", None)
    if ignore_index is None or target.is_floating_point():
        return values.mean(1)
    counted = (target != ignore_index).flatten(1).sum(1).clamp(min=1)
    return values.sum(1) / counted


SELECTION = "(selection)"
"""The name of the module that says which parts of the parameters are trained; no attribute of a model can be called so."""


class Program(nn.Module):
    """Model and loss as one module, so that parameters and buffers of both are found by name, and beside them what is trained
    of the parameters, if that is less than all."""

    def __init__(self, model: nn.Module, loss: nn.Module | Callable[..., Tensor] | None) -> None:
        super().__init__()
        self.model = model
        self.loss_name = name_beside(model)
        self.function = None if isinstance(loss, nn.Module) else loss
        if isinstance(loss, nn.Module):
            self.add_module(self.loss_name, loss)

    @property
    def selection(self) -> Selection | None:
        """Which parts of the parameters are trained; None: all of them."""
        found = self._modules.get(SELECTION)
        return found if isinstance(found, Selection) else None

    def trained_part(self, name: str, gradient: Tensor) -> Tensor:
        """A gradient with zeros where its parameter (by its public name) is not trained."""
        mask = None if self.selection is None else self.selection.mask(name)
        return gradient if mask is None else torch.where(mask, gradient, torch.zeros_like(gradient))

    def given_loss(self) -> nn.Module | Callable[..., Tensor] | None:
        """What the user gave: a module, a function or nothing."""
        return self._modules.get(self.loss_name, self.function)

    def forward(self, *batch: Any, **kwargs: Any) -> Any:
        """Per-example losses f[B] of a batch."""
        loss = self.given_loss()
        if loss is None:
            outputs = self.model(*batch, **kwargs)
            return outputs if isinstance(outputs, Tensor) else getattr(outputs, "loss", outputs)
        if isinstance(loss, CRITERIA):
            return per_example_criterion(loss, self.model(*batch[:-1], **kwargs), batch[-1])
        check_arguments(loss, self.model, batch, kwargs)
        return loss(self.model, *batch, **kwargs)


def name_beside(model: nn.Module) -> str:
    """What the loss's own parameters and buffers are called: "loss", or another word if the model has such names itself."""
    taken = {name.split(".")[0] for name, _ in (*model.named_parameters(), *model.named_buffers())}
    return next(name for name in ("loss", "criterion", *(f"criterion_{n}" for n in range(len(taken) + 1))) if name not in taken)


def public_name(name: str) -> str:
    """The user's name of a parameter of the program: the model's own, or `loss.` and the loss's own."""
    return name.removeprefix("model.")


def make_program(model: nn.Module, loss: nn.Module | Callable[..., Tensor] | None) -> Program:
    """Check the types of what the user gave and join them."""
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"model must be a torch.nn.Module, got {type(model).__name__}; wrap a function in a Module")
    lazy = [name for name, p in model.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        raise InvalidInput(
            f"{', '.join(lazy)} has no shape yet; call the model on one batch first, which materialises lazy modules"
        )
    if isinstance(loss, type):
        raise InvalidInput(f"loss is the class {loss.__name__} itself; make one: loss={loss.__name__}()")
    known = loss is None or isinstance(loss, CRITERIA) or (callable(loss) and not is_unknown_criterion(loss))
    if not known:
        names, given = ", ".join(criterion.__name__ for criterion in CRITERIA), getattr(loss, "__name__", type(loss).__name__)
        raise InvalidInput(
            f"loss must be None, a callable loss(model, *batch) -> f[B], or one of {names}; got {given}. "
            "Write loss=lambda model, x, y: ... with one value per example."
        )
    return Program(model, loss)


def is_unknown_criterion(loss: object) -> bool:
    """A criterion of torch.nn that takes other arguments than (outputs, target), or a function of torch, without the model."""
    is_function = str(getattr(loss, "__module__", "")).startswith("torch.nn.functional")
    return is_function or type(loss).__module__.startswith("torch.nn.modules.loss")


def check_target(program: Program, batch: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a batch of which too little or too much is left for the model when the criterion has its target."""
    loss, model = program.given_loss(), program.model
    try:
        signature = inspect.signature(model.forward)
    except (ValueError, TypeError):  # TorchScript, or written in C
        return
    if not isinstance(loss, CRITERIA) or model._forward_pre_hooks:  # a hook may change the arguments
        return
    try:
        signature.bind(*batch[:-1], **kwargs)
    except TypeError as error:
        raise InvalidInput(
            f"the last argument is the target of {type(loss).__name__}, and the model got the other {len(batch) - 1} of "
            f"{len(batch)}: forward{signature}, {error}. Call private(*inputs of the model, target), or write "
            "loss=lambda model, *batch: ..."
        ) from None


def check_arguments(loss: Callable[..., Tensor], model: nn.Module, batch: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a loss that cannot be called as loss(model, *batch)."""
    try:
        signature = inspect.signature(loss)
    except (ValueError, TypeError):  # written in C: nothing is known
        return
    try:
        signature.bind(model, *batch, **kwargs)
    except TypeError as error:
        raise InvalidInput(
            f"loss{signature} cannot be called as loss(model, *batch) with a batch of {len(batch) + len(kwargs)} ({error}). "
            "A function of outputs and targets becomes loss=lambda model, x, y: function(model(x), y)"
        ) from None


def check_losses(losses: object, batch_size: object) -> Tensor:
    """Refuse whatever is not one floating-point loss per example."""
    if not isinstance(losses, Tensor):
        raise InvalidInput(
            f"the loss must be a tensor with one value per example, got {type(losses).__name__}. "
            "Give loss=, or return the losses (or an object with .loss) from the model."
        )
    if losses.dim() == 0:
        raise InvalidInput(
            "the loss is a scalar, so it is already reduced over the batch and per-example gradients are lost. "
            'Use reduction="none" (and average over each example\'s own elements), or pass the torch.nn criterion itself. '
            "If the model computes it from labels, leave them out and write loss= on its outputs, or (transformers) set "
            "model.loss_function to a function that returns one value per example."
        )
    if losses.dim() != 1 or not bool(losses.shape[0] == batch_size):
        raise InvalidInput(
            f"the loss has shape {shape_text(losses)} but must have shape [B], one value per example. "
            "Average or sum over each example's own elements, for example losses.flatten(1).mean(1)."
        )
    if not losses.is_floating_point():
        raise InvalidInput(f"the losses have dtype {losses.dtype}, but gradients need a floating-point type.")
    if not losses.requires_grad:
        raise InvalidInput("the loss does not depend on any trainable parameter; check requires_grad and detach().")
    return torch.atleast_1d(losses)
