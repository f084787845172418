"""Losses of the families, one value per example; each takes the fields that the models' output objects name."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def next_token(model: nn.Module, ids: Tensor) -> Tensor:
    """Cross entropy of the next token, averaged over each example's own tokens."""
    logits = model(ids).logits
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").mean(1)


def next_token_masked(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """The same with an attention mask for sequences of different lengths; padding does not count."""
    logits = model(ids, attention_mask=mask).logits
    values = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    counted = mask[:, 1:]
    return (values * counted).sum(1) / counted.sum(1).clamp(min=1)


def labelled_token(model: nn.Module, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy averaged over each example's own labelled tokens; an attention mask hides padding."""
    logits = model(ids, attention_mask=mask).logits
    values = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    return values.sum(1) / (labels != -100).sum(1).clamp(min=1)


def labelled_token_unmasked(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """The same for models that take no attention mask."""
    logits = model(ids).logits
    values = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    return values.sum(1) / (labels != -100).sum(1).clamp(min=1)


def translation(model: nn.Module, source: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of a decoder's next token, with an attention mask over the source."""
    logits = model(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), target[:, 1:], reduction="none").mean(1)


def transcription(model: nn.Module, features: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of a decoder's next token behind an encoder of sound."""
    logits = model(features, decoder_input_ids=target).logits
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), target[:, 1:], reduction="none").mean(1)


def caption(model: nn.Module, pixels: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of a decoder's next token behind an encoder of images."""
    logits = model(pixel_values=pixels, decoder_input_ids=target).logits
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), target[:, 1:], reduction="none").mean(1)


def one_class(model: nn.Module, values: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of logits f[B, classes], or of f[B, classes, H, W] averaged over each example's pixels."""
    losses = F.cross_entropy(model(values).logits, labels, reduction="none")
    return losses if losses.dim() == 1 else losses.flatten(1).mean(1)


def frames(model: nn.Module, sound: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of logits f[B, frames, classes] for one class per frame."""
    return F.cross_entropy(model(sound).logits.transpose(1, 2), labels, reduction="none").mean(1)


def hidden(model: nn.Module, *batch: Tensor) -> Tensor:
    """Half the squared norm of each example's last hidden state."""
    return model(*batch).last_hidden_state.square().flatten(1).sum(1) / 2


def question(model: nn.Module, ids: Tensor, pixels: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of a class for text and image together."""
    return F.cross_entropy(model(input_ids=ids, pixel_values=pixels).logits, labels, reduction="none")


def answer(model: nn.Module, ids: Tensor, pixels: Tensor) -> Tensor:
    """Cross entropy of the next token of a text behind an image."""
    logits = model(input_ids=ids, pixel_values=pixels).logits[:, -ids.shape[1] :]
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").mean(1)


def boxes(model: nn.Module, ids: Tensor, box: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of a class for words with their places on a page."""
    return F.cross_entropy(model(input_ids=ids, bbox=box).logits, labels, reduction="none")


def contrastive(model: nn.Module, ids: Tensor, pixels: Tensor) -> Tensor:
    """CLIP's own loss: every text against every image of the batch."""
    scores = model(input_ids=ids, pixel_values=pixels).logits_per_text
    return scores.logsumexp(1) - scores.diagonal()


def pairs(model: Any, ids: Tensor, pixels: Tensor) -> Tensor:
    """Both of CLIP's towers without the batch: squared distance of an example's own text and image."""
    outputs = model.text_model(ids).pooler_output, model.vision_model(pixels).pooler_output
    text, image = model.text_projection(outputs[0]), model.visual_projection(outputs[1])
    return (F.normalize(text, dim=-1) - F.normalize(image, dim=-1)).square().sum(1)


def forecast(model: nn.Module, past: Tensor, future: Tensor) -> Tensor:
    """Mean squared error of a forecast f[B, T, channels]."""
    return (model(past_values=past).prediction_outputs - future).square().flatten(1).mean(1)


def inner_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """The loss that the model computes itself from labels: a mean over the tokens of the whole batch."""
    return model(ids, labels=ids).loss


def tokens_per_example(logits: Tensor, labels: Tensor, vocab_size: int, **rest: object) -> Tensor:
    """What to put into `model.loss_function`: cross entropy of the next token over each example's own labelled tokens."""
    following = labels[:, 1:]
    values = F.cross_entropy(logits[:, :-1].transpose(1, 2), following, reduction="none", ignore_index=-100)
    return values.sum(1) / (following != -100).sum(1).clamp(min=1)


def span(model: nn.Module, ids: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Cross entropy of the first and the last token of an answer."""
    outputs = model(ids)
    first, last = (F.cross_entropy(scores, place, reduction="none") for scores, place in
                   ((outputs.start_logits, start), (outputs.end_logits, end)))  # fmt: skip
    return (first + last) / 2


def next_token_behind(model: nn.Module, ids: Tensor) -> Tensor:
    """Cross entropy of the next token for models that put tokens of their own before the sequence."""
    logits = model(ids).logits[:, -ids.shape[1] :]
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").mean(1)


def aligned(model: nn.Module, wave: Tensor, labels: Tensor) -> Tensor:
    """Temporal classification (CTC) of labels that end with padding, which is the blank 0."""
    log_probs = model(wave).logits.log_softmax(2).transpose(0, 1)
    lengths = torch.full((wave.shape[0],), log_probs.shape[0])
    return F.ctc_loss(log_probs, labels, lengths, (labels > 0).sum(1), reduction="none", zero_infinity=True)


def aligned_by_model(model: nn.Module, wave: Tensor, labels: Tensor) -> Tensor:
    """The loss that the model computes from labels, which it checks and joins in Python."""
    return model(wave, labels=labels).loss
