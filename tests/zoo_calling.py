"""Rows of the zoo: ways of calling a model, criteria of torch.nn, and models that draw random numbers."""

from __future__ import annotations

from dataclasses import replace

import torch
import zoo_layers as layers
from torch import nn
from zoo_case import (
    Case,
    booleans,
    criterion,
    floats,
    inputs,
    integers,
    label_lists,
    labels,
    layer,
    probabilities,
    seeded,
    sequence_first,
    shared,
    signs,
    squares,
)
from zoo_layers import Using

CALLING = (
    layer(
        "token loss",
        "cross entropy over tokens with ignore_index",
        lambda: Using(lambda m, x: m.o(m.e(x)).transpose(1, 2), e=nn.Embedding(11, 5), o=nn.Linear(5, 3)),
        integers(11, 7),
        labels(3, 7),
        loss=nn.CrossEntropyLoss(),
    ),
    Case(
        "nested inputs",
        seeded(layers.NestedInputs),
        squares,
        lambda size, dtype: ({"left": [inputs(floats(3))(size, dtype)[0]], "right": inputs(floats(5))(size, dtype)[0]},),
        "dictionaries, lists and keyword arguments",
        kwargs=lambda size, dtype: {"weight": inputs(floats())(size, dtype)[0], "power": 2},
    ),
    layer("model returns losses", "loss=None", layers.ReturnsLosses, floats(5), integers(3), loss=None),
    layer(
        "loss with parameters",
        "parameters owned by the loss",
        lambda: nn.Linear(3, 5),
        floats(3),
        integers(7),
        loss=seeded(lambda: layers.PrototypeLoss(7, 5))(),
    ),
    layer(
        "shared input",
        "a tensor without example axis",
        lambda: Using(lambda m, x, w: m.a(x) * w, a=nn.Linear(3, 5)),
        floats(3),
        shared(5),
        batch_dim=(0, None),
    ),
    layer(
        "sequence-first transformer",
        "batch_dim=1 for the input and 0 for the target",
        lambda: Using(
            lambda m, x: m.o(m.t(x)[0]),
            t=nn.TransformerEncoderLayer(6, 2, 10, dropout=0.0),
            o=nn.Linear(6, 5),
        ),
        sequence_first(floats(7, 6)),
        integers(5),
        loss=nn.CrossEntropyLoss(),
        batch_dim=(1, 0),
    ),
)

CRITERIA = (
    criterion("cross entropy", nn.CrossEntropyLoss(), (5,), integers(5)),
    criterion(
        "cross entropy, weighted",
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 5.0, 7.0])),
        (5,),
        integers(5),
    ),
    criterion("cross entropy, smoothed", nn.CrossEntropyLoss(label_smoothing=0.1), (5,), integers(5)),
    criterion(
        "cross entropy, summed over tokens",
        nn.CrossEntropyLoss(reduction="sum", ignore_index=2),
        (5, 7),
        integers(5, 7),
    ),
    criterion(
        "cross entropy, weighted tokens",
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 5.0, 7.0]), ignore_index=2, label_smoothing=0.1),
        (5, 7),
        integers(5, 7),
    ),
    criterion("cross entropy, probabilities", nn.CrossEntropyLoss(), (5, 7), probabilities(5, 7)),
    criterion(
        "cross entropy, weighted and smoothed probabilities",
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 5.0, 7.0]), label_smoothing=0.1, reduction="sum"),
        (5, 7),
        probabilities(5, 7),
    ),
    criterion("multi-label margin", nn.MultiLabelMarginLoss(), (5,), label_lists(5)),
    criterion("negative log likelihood", nn.NLLLoss(ignore_index=1), (5, 7), integers(5, 7)),
    criterion("binary cross entropy", nn.BCELoss(), (5,), booleans(5)),
    criterion(
        "binary cross entropy on logits",
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0, 5.0, 7.0])),
        (5,),
        booleans(5),
    ),
    criterion("squared error", nn.MSELoss(), (5, 2), floats(5, 2)),
    criterion("squared error, summed", nn.MSELoss(reduction="sum"), (5, 2), floats(5, 2)),
    criterion("absolute error", nn.L1Loss(), (5,), floats(5)),
    criterion("smooth absolute error", nn.SmoothL1Loss(beta=0.7), (5,), floats(5)),
    criterion("Huber", nn.HuberLoss(delta=0.7), (5,), floats(5)),
    criterion("Kullback-Leibler, mean", nn.KLDivLoss(reduction="mean"), (5,), probabilities(5)),
    criterion("Kullback-Leibler, batchmean", nn.KLDivLoss(reduction="batchmean"), (5,), probabilities(5)),
    criterion("Poisson", nn.PoissonNLLLoss(), (5,), floats(5, positive=True)),
    criterion("soft margin", nn.SoftMarginLoss(), (5,), signs(5)),
    criterion("multi-label soft margin", nn.MultiLabelSoftMarginLoss(), (5,), booleans(5)),
    criterion("multi margin", nn.MultiMarginLoss(), (5,), integers(5)),
    criterion("hinge embedding", nn.HingeEmbeddingLoss(), (5,), signs(5)),
)

RANDOM = tuple(
    replace(case, random=True)
    for case in (
        layer(
            "dropout",
            "the same mask in norm and sum",
            lambda: nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.5), nn.Linear(7, 3)),
            floats(5),
        ),
        layer(
            "dropout behind an embedding",
            "rows that belong to one example each",
            lambda: nn.Sequential(nn.Embedding(11, 5), nn.Dropout(0.4)),
            lambda size, dtype, generator: torch.arange(size) % 11,
        ),
        layer(
            "channel dropout",
            "one draw per channel",
            lambda: nn.Sequential(nn.Conv2d(2, 5, 3), nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(45, 3)),
            floats(2, 5, 5),
        ),
        layer(
            "noise",
            "randn_like",
            lambda: Using(lambda m, x: m.a(x) + 0.5 * m.b(x + torch.randn_like(x)), a=nn.Linear(5, 3), b=nn.Linear(5, 3)),
            floats(5),
        ),
    )
)
