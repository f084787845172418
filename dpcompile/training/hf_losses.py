"""Losses per example for models of transformers, whose own loss from `labels` is a mean over all tokens of the batch.

Each example counts the mean over its own labels that are not -100, so that long examples weigh as much as short ones, and no
example's loss depends on how many tokens the others have. Losses of routers (mixtures of experts) mix examples and are left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dpcompile.losses import PerExampleLoss, per_example_criterion


def next_token_losses(model: nn.Module, *, labels: Tensor, **inputs: Any) -> Tensor:
    """f[B]: cross entropy of each token i64[B, T] given those before it."""
    logits = logits_of(model, inputs)
    return per_example_criterion(nn.CrossEntropyLoss(), logits[:, :-1].transpose(1, 2), behind_prompt(labels, logits)[:, 1:])


def token_losses(model: nn.Module, *, labels: Tensor, **inputs: Any) -> Tensor:
    """f[B]: cross entropy of labels i64[B, T] at their own places."""
    logits = logits_of(model, inputs)
    return per_example_criterion(nn.CrossEntropyLoss(), logits.transpose(1, 2), behind_prompt(labels, logits))


def classification_losses(model: nn.Module, *, labels: Tensor, **inputs: Any) -> Tensor:
    """f[B] of labels i64[B] (classes), f[B, classes] (several classes at once) or f[B] (a number), as `problem_type` has it."""
    logits = logits_of(model, inputs)
    is_classes = not labels.is_floating_point()
    given = getattr(model.config, "problem_type", None)
    usual = "regression" if logits.shape[1] == 1 else "single_label" if is_classes else "multi_label"
    criteria = {"regression": nn.MSELoss(), "single_label": nn.CrossEntropyLoss(), "multi_label": nn.BCEWithLogitsLoss()}
    criterion = criteria[given.removesuffix("_classification") if given else usual]
    if isinstance(criterion, nn.MSELoss) and labels.dim() == 1:
        labels = labels[:, None]
    return per_example_criterion(criterion, logits, labels)


IGNORED = -100
"""The label of places that do not count."""
LOSSES: dict[str, PerExampleLoss] = {
    "ForCausalLM": next_token_losses,
    "ForMaskedLM": token_losses,
    "ForTokenClassification": token_losses,
    "ForSequenceClassification": classification_losses,
    "ForImageClassification": classification_losses,
    "ForVideoClassification": classification_losses,
    "ForAudioClassification": classification_losses,
}
"""By transformers' own word for what a model is for (`model.loss_type`)."""
NEXT_TOKEN = ("GPT2LMHeadModel", "OpenAIGPTLMHeadModel", "BertLMHeadModel")
"""Classes whose names do not say what they are for, so that transformers has no word for them."""


def usual_loss(model: nn.Module) -> PerExampleLoss | None:
    """The loss that stands for the model's own; None where there is none, or where the user has set `model.loss_function`."""
    is_encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if is_encoder_decoder or hasattr(model, "_loss_function"):
        return None
    below: Any = getattr(model, "get_base_model", None)  # of adapters of peft
    base = model if below is None else below()
    kind = "ForCausalLM" if type(base).__name__ in NEXT_TOKEN else getattr(base, "loss_type", None)
    return LOSSES.get(str(kind))


def behind_prompt(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels i64[B, T], with -100 for what an adapter of peft puts before every example (prompt tuning, p-tuning)."""
    return nn.functional.pad(labels, (max(0, logits.shape[1] - labels.shape[1]), 0), value=IGNORED)


def logits_of(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """The model's logits in float32 or wider."""
    logits: Tensor = model(**inputs).logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
