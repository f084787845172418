"""Calibration of convolutions: square images, square kernels, stride 1 and 2, one group, some groups, depthwise."""

from __future__ import annotations

from typing import Any

import torch

from dpcompile.kernels import convolution, own_gradient
from dpcompile.kernels.extra_dimension import materialize_extra_dimension
from dpcompile.kernels.geometry import Geometry
from dpcompile.kernels.workspace import Workspace
from dpcompile.measure.linear_subjects import HEAVY
from dpcompile.measure.subject import Sizes, Subject, full
from dpcompile.strategies import fused, gram, materialize, sums
from dpcompile.strategies.extra_dimension import EXTRA
from dpcompile.strategies.own_gradient import GROUPED_GRADIENT_WORK, SINGLE_WORK

FEW = 64
"""Examples, for ways that take a call for each."""
IMAGES = {"B": (1, 512), "side": (2, 64), "C": (3, 1024), "D": (8, 1024), "kernel": (1, 8), "stride": (1, 2), "grouping": (1, 8)}


def usual(channels: int) -> int:
    """Three channels of an image, or a multiple of sixteen: libraries have kernels of their own for these."""
    return 3 if channels < 8 else max(16, round(channels / 16) * 16)


def completed(drawn: dict[str, int]) -> dict[str, int] | None:
    """Sizes per group; every eighth draw is depthwise, every eighth has four groups."""
    return with_groups({**drawn, "C": usual(drawn["C"]), "D": max(usual(drawn["D"]), 16)})


def completed_any(drawn: dict[str, int]) -> dict[str, int] | None:
    """The same with any number of channels in six of ten draws."""
    return with_groups(drawn) if drawn["channels"] == 1 else completed(drawn)


def with_groups(drawn: dict[str, int]) -> dict[str, int]:
    """All sizes for these numbers of channels."""
    kernel = drawn["kernel"] - 1 + drawn["kernel"] % 2  # odd
    stride = drawn["stride"] if kernel > 1 else 1
    groups = {1: drawn["C"], 2: 4}.get(drawn["grouping"], 1)
    C = -(-drawn["C"] // groups) * groups
    D = C if drawn["grouping"] == 1 else -(-drawn["D"] // groups) * groups
    out = (drawn["side"] - 1) // stride + 1
    sizes = {"T": out**2, "T_in": drawn["side"] ** 2, "d": C // groups * kernel**2, "p": D // groups, "G": groups, "K": kernel**2}
    return {**drawn, **sizes, "C": C, "D": D, "kernel": kernel, "stride": stride, "P": D * C // groups * kernel**2}


def completed_weight_gradient(drawn: dict[str, int]) -> dict[str, int] | None:
    """Only what torch's own weight gradient is taken for."""
    sizes = completed(drawn)
    assert sizes is not None
    way = convolution.way_to_contract(geometry(sizes), (sizes["D"], sizes["C"] // sizes["G"]), sizes["T"])
    return sizes if way == "weight gradient" else None


def completed_few_groups(drawn: dict[str, int]) -> dict[str, int] | None:
    """One group: what several groups do is a product per group and a weighted sum."""
    return completed({**drawn, "grouping": 8})


def completed_groups(drawn: dict[str, int]) -> dict[str, int] | None:
    """One group or four."""
    return completed({**drawn, "grouping": max(drawn["grouping"], 2)})


def completed_depthwise(drawn: dict[str, int]) -> dict[str, int] | None:
    """One channel per group."""
    return completed({**drawn, "grouping": 1})


def completed_unfolded(drawn: dict[str, int]) -> dict[str, int] | None:
    """Only what unfolding copies."""
    return completed({**drawn, "kernel": max(drawn["kernel"], 3)})


def geometry(sizes: Sizes) -> Geometry:
    """Padding that keeps the size."""
    kernel = sizes["kernel"]
    both = (kernel, kernel), (sizes["stride"],) * 2, (kernel // 2,) * 2
    return Geometry(*both, (1, 1), False, (0, 0), sizes["G"])


def images(sizes: Sizes, device: torch.device) -> tuple[Any, ...]:
    """x, g and the geometry."""
    out = round(sizes["T"] ** 0.5)
    x = full(device, sizes["B"], sizes["C"], sizes["side"], sizes["side"])
    return x, full(device, sizes["B"], sizes["D"], out, out), geometry(sizes)


def unfolded(sizes: Sizes, device: torch.device) -> tuple[Any, ...]:
    """The unfolded input, g and the geometry."""
    x, g, how = images(sizes, device)
    return convolution.unfold(x, how), g, how


def with_factors(sizes: Sizes, device: torch.device) -> tuple[Any, ...]:
    """x, g, clip factors and the geometry."""
    x, g, how = images(sizes, device)
    return x, g, full(device, sizes["B"]), how


def unfolded_with_factors(sizes: Sizes, device: torch.device) -> tuple[Any, ...]:
    """The unfolded input, g, clip factors and the geometry."""
    x, g, how = unfolded(sizes, device)
    return x, g, full(device, sizes["B"]), how


CONVOLUTIONS = (
    Subject(gram.UNFOLD.work[0], IMAGES, lambda s, on: images(s, on)[::2], convolution.unfold, completed_unfolded, share=HEAVY),
    Subject(gram.UNFOLDED_COST.work[0], IMAGES, unfolded, convolution.sqnorm_gram_unfolded, completed, share=HEAVY),
    Subject(
        materialize.UNFOLD,
        IMAGES,
        lambda s, on: (Workspace(convolution.materialize_unfold), *images(s, on)),
        lambda kernel, *operands: kernel(*operands),
        completed,
        share=HEAVY,
    ),
    Subject(materialize.GROUPED, IMAGES, images, convolution.materialize_grouped, completed_groups, share=2 * HEAVY),
    Subject(materialize.DEPTHWISE, IMAGES, images, convolution.materialize_grouped, completed_depthwise, share=HEAVY),
    Subject(EXTRA, IMAGES, images, materialize_extra_dimension, completed, share=HEAVY),
    Subject(
        GROUPED_GRADIENT_WORK,
        {**IMAGES, "channels": (1, 2)},
        images,
        own_gradient.materialize_grouped_gradient,
        completed_any,
        share=3 * HEAVY,
    ),
    Subject(
        SINGLE_WORK,
        {**IMAGES, "B": (1, FEW), "channels": (1, 2)},
        lambda s, on: (Workspace(own_gradient.materialize_single), *images(s, on)),
        lambda kernel, *operands: kernel(*operands),
        completed_any,
        share=3 * HEAVY,
    ),
    Subject(fused.CONVOLUTION, IMAGES, images, convolution.sqnorm_materialized, completed, share=HEAVY),
    Subject(
        sums.UNFOLDED_PRODUCT, IMAGES, unfolded_with_factors, convolution.contract_unfolded, completed_few_groups, share=HEAVY
    ),
    Subject(sums.WEIGHT_GRADIENT, IMAGES, with_factors, convolution.contract, completed_weight_gradient, share=HEAVY),
)
