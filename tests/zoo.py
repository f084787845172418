"""The zoo: every model that must compile, tiny, seeded, with its loss and its batches.

A case is one row. LAYERS hold one idea each and are cheap enough for every strategy; NETWORKS are whole
architectures. Models that draw random numbers are apart (`zoo_calling.RANDOM`): no loop can redo their draws.
Sizes are primes that differ within a case where the layer allows it, so that no two axes are confused.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
import zoo_layers as layers
import zoo_networks as networks
import zoo_transformers as transformers
from torch import Tensor, nn
from zoo_calling import CALLING, CRITERIA
from zoo_case import (
    classifier,
    floats,
    integers,
    labels,
    layer,
    prefix_mask,
)
from zoo_dense import DENSE, REUSED
from zoo_layers import Using
from zoo_sequences import ATTENTION, RECURRENT
from zoo_small import CONVOLUTIONS, EMBEDDINGS, NORMS


def next_token(model: nn.Module, ids: Tensor) -> Tensor:
    """Cross entropy of the next token, averaged over each example's own tokens."""
    logits = model(ids).logits
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").mean(1)


def masked_token(model: nn.Module, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy averaged over each example's own labelled tokens; an attention mask hides padding."""
    logits = model(ids, attention_mask=mask).logits
    values = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    return values.sum(1) / (labels != -100).sum(1).clamp(min=1)


def translation(model: nn.Module, source: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of a decoder's next token."""
    logits = model(input_ids=source, decoder_input_ids=target).logits
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), target[:, 1:], reduction="none").mean(1)


def image_class(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of an object that holds logits."""
    return F.cross_entropy(model(images).logits, labels, reduction="none")


def encoder(pre_norm: bool, batch_first: bool) -> nn.Module:
    """torch's own transformer encoder without dropout, on f[B, T, 6] in either layout."""
    block = nn.TransformerEncoderLayer(6, 2, 10, dropout=0.0, norm_first=pre_norm, batch_first=batch_first)
    whole = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    return Using(lambda m, x: m.t(x) if batch_first else m.t(x.transpose(0, 1)).transpose(0, 1), t=whole)


NETWORKS = (
    classifier("MLP", "the smallest network", lambda: networks.mlp(7, 3, 5), floats(7)),
    classifier(
        "MLP, first layer frozen",
        "no work for a frozen layer",
        lambda: layers.frozen_first(networks.mlp(7, 3, 5)),
        floats(7),
    ),
    classifier("CNN", "convolutions with GroupNorm", networks.cnn, floats(3, 11, 13)),
    classifier("ResNet-18", "residual blocks", networks.ResNet18, floats(3, 11, 13)),
    classifier("WideResNet-16", "pre-activation blocks", networks.WideResNet, floats(3, 11, 13)),
    classifier("ViT", "class token, positions, fused attention", networks.ViT, floats(3, 8, 8)),
    layer("ConvNeXt", "depthwise convolutions and layer scale", networks.ConvNeXt, floats(3, 14, 10)),
    layer(
        "UNet",
        "transposed convolutions and skips, one class per pixel",
        networks.UNet,
        floats(2, 8, 12),
        integers(3, 8, 12),
        loss=nn.CrossEntropyLoss(),
    ),
    *(
        layer(
            f"TransformerEncoder, {'pre' if pre else 'post'}-norm, {'batch' if first else 'sequence'} first",
            "torch's own encoder",
            partial(encoder, pre, first),
            floats(5, 6),
        )
        for pre in (True, False)
        for first in (True, False)
    ),
    *(
        layer(
            f"GPT-2, {attention}",
            "a tied language model",
            partial(transformers.gpt2, attention),
            integers(13, 7),
            loss=next_token,
        )
        for attention in ("eager", "sdpa")
    ),
    *(
        layer(
            f"BERT, {attention}",
            "masked tokens and an attention mask",
            partial(transformers.bert, attention),
            integers(13, 7),
            prefix_mask(7),
            labels(13, 7),
            loss=masked_token,
        )
        for attention in ("eager", "sdpa")
    ),
    *(
        layer(
            f"Llama, {attention}",
            "rotary positions and grouped-query attention",
            partial(transformers.llama, attention),
            integers(13, 7),
            loss=next_token,
        )
        for attention in ("eager", "sdpa")
    ),
    layer(
        "T5",
        "encoder, decoder and a bucketed position bias",
        transformers.t5,
        integers(13, 7),
        integers(13, 5),
        loss=translation,
    ),
    *(
        layer(
            f"transformers ViT, {attention}",
            "images",
            partial(transformers.vit, attention),
            floats(3, 8, 8),
            integers(5),
            loss=image_class,
        )
        for attention in ("eager", "sdpa")
    ),
)
LAYERS = REUSED + DENSE + NORMS + EMBEDDINGS + CONVOLUTIONS + RECURRENT + ATTENTION + CALLING + CRITERIA
ZOO = LAYERS + NETWORKS
