"""Rows of the zoo: normalisations, embeddings and convolutions."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from zoo_case import (
    channels_last,
    floats,
    integers,
    layer,
)
from zoo_layers import Using, convolution


def flat_bags(mode: str) -> nn.Module:
    """Bags laid out in one vector of indices, with the places where they begin."""
    bags = nn.EmbeddingBag(7, 3, mode=mode)
    return Using(lambda m, x: m.e(x.reshape(-1), torch.arange(0, x.numel(), x.shape[1])), e=bags)


NORMS = (
    layer(
        "layer norm",
        "weight and bias of a normalisation",
        lambda: nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 3)),
        floats(7, 5),
    ),
    layer(
        "layer norm alone without bias",
        "elementwise parameters only",
        lambda: nn.LayerNorm(5, bias=False),
        floats(7, 5),
        contracts=False,
    ),
    layer(
        "layer norm over two axes",
        "parameters of two dimensions",
        lambda: nn.LayerNorm((7, 5)),
        floats(7, 5),
        contracts=False,
    ),
    layer(
        "group norm",
        "statistics of channel groups",
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)),
        floats(3, 5, 7),
    ),
    layer(
        "instance norm",
        "the batch folded into channels",
        lambda: nn.Sequential(nn.Conv2d(3, 5, 1), nn.InstanceNorm2d(5, affine=True)),
        floats(3, 5, 7),
    ),
    layer("RMS norm", "no mean", lambda: nn.Sequential(nn.RMSNorm(5), nn.Linear(5, 3)), floats(7, 5)),
    layer(
        "batch norm, evaluating",
        "batch norm with fixed statistics",
        lambda: batch_norm_in_use().eval(),
        floats(3, 5, 7),
    ),
    layer("PReLU", "one slope for all", lambda: nn.Sequential(nn.Linear(5, 3), nn.PReLU()), floats(7, 5)),
    layer(
        "PReLU per channel",
        "a slope per channel",
        lambda: nn.PReLU(3, init=0.2),
        floats(3, 5),
        contracts=False,
    ),
)

EMBEDDINGS = (
    layer("embedding", "rows by index", lambda: nn.Embedding(11, 3), integers(11, 7)),
    layer("embedding of one token", "T=1", lambda: nn.Embedding(11, 3), integers(11)),
    layer(
        "embedding with repeats",
        "the same row several times in one example",
        lambda: nn.Embedding(11, 3),
        integers(2, 7),
    ),
    layer(
        "embedding with padding",
        "a row without gradient",
        lambda: nn.Embedding(5, 3, padding_idx=1),
        integers(5, 7),
    ),
    layer(
        "sparse embedding",
        "a sparse gradient comes out dense",
        lambda: nn.Embedding(11, 3, sparse=True),
        integers(11, 7),
    ),
    *(
        layer(
            f"embedding bag, {mode}",
            "ragged bags with repeated indices",
            partial(flat_bags, mode),
            integers(4, 5),
        )
        for mode in ("sum", "mean", "max")
    ),
    *(
        layer(
            f"embedding bag of rows, {mode}",
            "bags of equal size",
            partial(nn.EmbeddingBag, 7, 3, mode=mode),
            integers(7, 5),
        )
        for mode in ("sum", "mean", "max")
    ),
)

CONVOLUTIONS = (
    layer("conv1d", "plain", lambda: convolution(3, 5, 3, kind=nn.Conv1d), floats(3, 11)),
    layer(
        "conv1d dilated",
        "stride and dilation",
        lambda: convolution(3, 5, 3, stride=2, dilation=2, padding=1, kind=nn.Conv1d),
        floats(3, 13),
    ),
    layer("conv2d", "plain, not square", lambda: convolution(3, 5, (3, 2)), floats(3, 7, 11)),
    layer("conv2d without bias", "no bias", lambda: convolution(3, 5, 3, bias=False), floats(3, 7, 5)),
    layer(
        "conv2d strided",
        "rows of the input that no window covers",
        lambda: convolution(3, 5, 3, stride=2),
        floats(3, 8, 11),
    ),
    layer(
        "conv2d dilated",
        "stride, padding and dilation, all different",
        lambda: convolution(2, 3, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 3)),
        floats(2, 7, 11),
    ),
    layer(
        "conv2d same",
        "padding='same' with dilation",
        lambda: convolution(2, 3, (3, 5), padding="same", dilation=(2, 1)),
        floats(2, 7, 5),
    ),
    layer("conv2d 1x1", "a linear layer over pixels", lambda: convolution(3, 5, 1), floats(3, 5, 7)),
    layer("conv2d covering", "a kernel as large as the input", lambda: nn.Conv2d(2, 3, (7, 5)), floats(2, 7, 5)),
    layer("conv2d grouped", "two groups", lambda: convolution(4, 6, 3, groups=2, padding=1), floats(4, 5, 7)),
    layer(
        "conv2d depthwise",
        "one group per channel",
        lambda: convolution(5, 5, 3, groups=5, padding=1),
        floats(5, 7, 11),
    ),
    layer(
        "conv2d depthwise multiplied",
        "two outputs per channel",
        lambda: convolution(3, 6, 3, groups=3),
        floats(3, 5, 7),
    ),
    *(
        layer(
            f"conv2d {mode} padding",
            "a padding mode that hook libraries ignore",
            partial(nn.Conv2d, 3, 5, 3, padding=1, padding_mode=mode),
            floats(3, 5, 7),
        )
        for mode in ("zeros", "reflect", "circular", "replicate")
    ),
    layer(
        "conv2d made channels_last",
        "a change of memory format in forward",
        lambda: Using(lambda m, x: m.c(x.to(memory_format=torch.channels_last)), c=nn.Conv2d(3, 5, 3, padding=1)),
        floats(3, 5, 7),
    ),
    layer(
        "conv2d on channels_last",
        "an input in another memory format",
        lambda: nn.Conv2d(3, 5, 3, padding=1),
        channels_last(floats(3, 5, 7)),
    ),
    layer(
        "conv2d on permuted",
        "an input with channels last in its shape",
        lambda: Using(lambda m, x: m.c(x.permute(0, 3, 1, 2)), c=nn.Conv2d(3, 5, 3, padding=1)),
        floats(5, 7, 3),
    ),
    layer(
        "conv3d",
        "three axes of space",
        lambda: convolution(2, 3, (1, 2, 3), padding=(0, 1, 1), kind=nn.Conv3d),
        floats(2, 3, 5, 4),
    ),
    layer(
        "conv3d grouped",
        "groups and stride",
        lambda: convolution(2, 4, 2, groups=2, stride=2, kind=nn.Conv3d),
        floats(2, 3, 5, 4),
    ),
    layer(
        "transposed conv1d",
        "a transposed convolution",
        lambda: convolution(3, 5, 3, stride=2, kind=nn.ConvTranspose1d),
        floats(3, 7),
    ),
    layer(
        "transposed conv2d",
        "output_padding",
        lambda: convolution(3, 2, 3, stride=2, padding=1, output_padding=1, kind=nn.ConvTranspose2d),
        floats(3, 5, 7),
    ),
    layer(
        "transposed conv2d grouped",
        "groups and dilation",
        lambda: convolution(4, 6, 3, groups=2, dilation=2, kind=nn.ConvTranspose2d),
        floats(4, 5, 7),
    ),
    layer(
        "transposed conv3d",
        "three axes of space",
        lambda: convolution(2, 3, 2, stride=2, kind=nn.ConvTranspose3d),
        floats(2, 3, 2, 5),
    ),
)


def batch_norm_in_use() -> nn.Module:
    """A network whose running statistics are not those of a new one."""
    norm = nn.BatchNorm2d(5)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return nn.Sequential(nn.Conv2d(3, 5, 1), norm)
