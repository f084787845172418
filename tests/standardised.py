"""Layers whose weights are standardised or normalised before they are used, as papers and libraries write it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

Standardise = Callable[[Tensor, "Tensor | None"], Tensor]


def by_batch_norm(weight: Tensor, gain: Tensor | None) -> Tensor:
    """timm's StdConv2d (BiT), and ScaledStdConv2d where there is a gain (NFNet)."""
    scale = None if gain is None else gain.reshape(-1)
    flat = F.batch_norm(weight.reshape(1, weight.shape[0], -1), None, None, weight=scale, training=True, momentum=0.0, eps=1e-6)
    return flat.reshape_as(weight)


def by_layer_norm(weight: Tensor, gain: Tensor | None) -> Tensor:
    """Every row normalised as a vector."""
    flat = weight.flatten(1)
    return times(F.layer_norm(flat, flat.shape[1:], eps=1e-6).view_as(weight), gain)


def by_var_mean(weight: Tensor, gain: Tensor | None) -> Tensor:
    """The original BiT code."""
    var, mean = torch.var_mean(weight, dim=list(range(1, weight.dim())), keepdim=True, unbiased=False)
    return times((weight - mean) / torch.sqrt(var + 1e-6), gain)


def by_std(weight: Tensor, gain: Tensor | None) -> Tensor:
    """The original code of weight standardisation: the mean of the weight first, then the deviation of what is left."""
    weight = weight - weight.mean(list(range(1, weight.dim())), keepdim=True)
    deviation = weight.flatten(1).std(dim=1).view(-1, *[1] * (weight.dim() - 1)) + 1e-5
    return times(weight / deviation.expand_as(weight), gain)


def by_clamped_variance(weight: Tensor, gain: Tensor | None) -> Tensor:
    """NFNet's own: w * shift-and-scale, with the scale inside of both terms."""
    var, mean = torch.var_mean(weight, dim=list(range(1, weight.dim())), keepdim=True)
    scale = torch.rsqrt(torch.clamp(var * weight[0].numel(), min=1e-4))
    scale = scale if gain is None else scale * gain
    return weight * scale - mean * scale


def by_norm(weight: Tensor, gain: Tensor | None) -> Tensor:
    """w / |w| per row."""
    return times(weight / weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.dim() - 1)), gain)


def by_normalize(weight: Tensor, gain: Tensor | None) -> Tensor:
    """F.normalize of every row."""
    return times(F.normalize(weight.flatten(1), dim=1).view_as(weight), gain)


def centred(weight: Tensor, gain: Tensor | None) -> Tensor:
    """Without its mean, not scaled."""
    return times(weight - weight.mean(list(range(1, weight.dim())), keepdim=True), gain)


def by_exponential(weight: Tensor, gain: Tensor | None) -> Tensor:
    """A gain that is trained as its logarithm."""
    return times(by_norm(weight, None), None if gain is None else gain.exp())


def times(weight: Tensor, gain: Tensor | None) -> Tensor:
    """With a gain per row."""
    return weight if gain is None else weight * gain


FORMS: Mapping[str, Standardise] = {
    form.__name__: form
    for form in (
        by_batch_norm, by_layer_norm, by_var_mean, by_std, by_clamped_variance, by_norm, by_normalize, centred, by_exponential,
    )
}  # fmt: skip


class Standardised(nn.Module):
    """A linear layer or convolution with its weight standardised in forward."""

    def __init__(self, layer: Any, form: Standardise, has_gain: bool = False) -> None:
        super().__init__()
        self.layer, self.form = layer, form
        sizes = (layer.weight.shape[0], *[1] * (layer.weight.dim() - 1))
        self.gain = nn.Parameter(torch.rand(sizes) + 0.5) if has_gain else None

    def forward(self, x: Tensor) -> Tensor:
        """The layer with the standardised weight."""
        weight = self.form(self.layer.weight, self.gain)
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, self.layer.bias)
        result: Tensor = self.layer._conv_forward(x, weight, self.layer.bias)
        return result


def old_weight_norm(layer: nn.Module) -> nn.Module:
    """torch.nn.utils.weight_norm, built without autograd: its derived weight would refuse to be copied."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.nn.utils.weight_norm(layer)


def weight_norm(layer: nn.Module) -> nn.Module:
    """The parametrization."""
    found: nn.Module = parametrizations.weight_norm(layer)
    return found


Build = Callable[[], nn.Module]
LAYERS: Mapping[str, tuple[Build, tuple[int, ...]]] = {
    "conv2d": (lambda: nn.Conv2d(3, 5, 3), (3, 5, 7)),
    "without bias": (lambda: nn.Conv2d(3, 5, 3, bias=False), (3, 5, 5)),
    "stride and padding": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 7, 6)),
    "dilation": (lambda: nn.Conv2d(2, 3, (3, 2), dilation=2, padding=(2, 0)), (2, 5, 7)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(5, 5, 3, groups=5, padding=1), (5, 5, 5)),
    "depthwise, two each": (lambda: nn.Conv2d(3, 6, 3, groups=3, stride=2), (3, 7, 7)),
    "pointwise": (lambda: nn.Conv2d(5, 3, 1), (5, 3, 3)),
    "one position": (lambda: nn.Conv2d(3, 5, 3), (3, 3, 3)),
    "one channel": (lambda: nn.Conv2d(3, 1, 3), (3, 5, 5)),
    "conv1d": (lambda: nn.Conv1d(3, 5, 3, stride=2), (3, 11)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, padding=1), (2, 3, 2, 3)),
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "linear on sequences": (lambda: nn.Linear(5, 3), (11, 5)),
    "linear without bias": (lambda: nn.Linear(5, 3, bias=False), (11, 5)),
}
