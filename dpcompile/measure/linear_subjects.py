"""Calibration of matrix products, reductions and lookups."""

from __future__ import annotations

import torch
from torch import Tensor

from dpcompile.kernels import dense, embedding, layout, masked, reduction, scale
from dpcompile.kernels.workspace import Workspace
from dpcompile.measure.subject import Sizes, Subject, full, indices
from dpcompile.strategies import cross, fused, gram, materialize, outer, rows, sums
from dpcompile.strategies import masked as masked_outer

HEAVY = 3.0
"""Share of the time for kernels with many sizes to vary."""

BATCH, POSITIONS, WIDTHS = (1, 256), (2, 2048), (8, 4096)
SEQUENCES = {"B": BATCH, "T": POSITIONS, "d": WIDTHS, "p": WIDTHS}
LOOKUPS = {"B": BATCH, "T": POSITIONS, "w": (8, 2048), "V": (16, 65536)}


def with_parameters(sizes: dict[str, int]) -> dict[str, int]:
    """P of a matrix."""
    return {**sizes, "P": sizes["p"] * sizes["d"]}


def pair(sizes: Sizes, device: torch.device) -> tuple[Tensor, ...]:
    """a: f[B, T, d], g: f[B, T, p]."""
    return full(device, sizes["B"], sizes["T"], sizes["d"]), full(device, sizes["B"], sizes["T"], sizes["p"])


def gradients(sizes: Sizes, device: torch.device) -> tuple[Tensor, ...]:
    """f[B, P] and factors f[B]."""
    return full(device, sizes["B"], sizes["P"]), full(device, sizes["B"])


def lookups(sizes: Sizes, device: torch.device) -> tuple[Tensor, ...]:
    """ids: int[B, T] and g: f[B, T, w]."""
    shape = sizes["B"], sizes["T"]
    return indices(device, sizes["V"], *shape), full(device, *shape, sizes["w"])


def scaled(sizes: Sizes, device: torch.device) -> tuple[Tensor, ...]:
    """g and x: f[B, T, n], mean and rstd: f[B, T, 1]."""
    shape = sizes["B"], sizes["T"]
    return tuple(full(device, *shape, width) for width in (sizes["P"], sizes["P"], 1, 1))


def channels(sizes: Sizes, device: torch.device) -> tuple[Tensor, ...]:
    """g and x: f[B, C, T], mean and rstd: f[B, 1]."""
    shape = sizes["B"], sizes["P"], sizes["T"]
    return full(device, *shape), full(device, *shape), full(device, sizes["B"], 1), full(device, sizes["B"], 1)


def elements(sizes: dict[str, int]) -> dict[str, int]:
    """Elements per example that are reduced to P."""
    return {**sizes, "n": sizes["P"] * sizes["T"]}


LINEAR = (
    Subject(
        outer.WORK,
        {"B": BATCH, "d": WIDTHS, "p": WIDTHS},
        lambda s, on: (full(on, s["B"], s["d"]), full(on, s["B"], s["p"])),
        dense.sqnorm_outer,
    ),
    Subject(
        masked_outer.WORK,
        {"B": BATCH, "d": WIDTHS, "p": WIDTHS},
        lambda s, on: (
            full(on, s["B"], s["d"]),
            full(on, s["B"], s["p"]),
            torch.ones(s["p"], s["d"], dtype=torch.bool, device=on),
        ),
        masked.sqnorm_masked,
    ),
    Subject(gram.DENSE_COST.work[0], SEQUENCES, pair, dense.sqnorm_gram, share=HEAVY),
    Subject(
        materialize.DENSE,
        SEQUENCES | {"T": (1, 2048)},
        lambda s, on: (Workspace(dense.materialize), *pair(s, on)),
        lambda kernel, a, g: kernel(a, g),
        with_parameters,
        share=HEAVY,
    ),
    Subject(fused.DENSE, SEQUENCES, pair, dense.sqnorm_materialized, with_parameters, share=HEAVY),
    Subject(
        sums.PRODUCT,
        SEQUENCES | {"T": (1, 2048)},
        lambda s, on: (*pair(s, on), full(on, s["B"])),
        dense.contract,
        with_parameters,
        share=HEAVY,
    ),
    Subject(materialize.NORM, {"B": BATCH, "P": (8, 2**22)}, lambda s, on: gradients(s, on)[:1], reduction.sqnorm),
    Subject(sums.WEIGHTED, {"B": BATCH, "P": (8, 2**22)}, gradients, reduction.weighted_sum),
    Subject(
        materialize.REDUCED,
        {"B": BATCH, "T": (1, 4096), "P": (8, 4096)},
        lambda s, on: (full(on, s["B"] * s["T"], s["P"]), 0, 1, s["T"], (0,), (s["P"],)),
        layout.total_per_example,
        elements,
    ),
    Subject(materialize.LAYER_SCALED, {"B": BATCH, "T": POSITIONS, "P": (8, 2048)}, scaled, scale.layer_scale, elements),
    Subject(materialize.CHANNEL_SCALED, {"B": BATCH, "T": POSITIONS, "P": (8, 1024)}, channels, scale.channel_scale, elements),
    Subject(rows.WORK, LOOKUPS, lookups, embedding.sqnorm_rows),
    Subject(
        sums.SCATTER,
        LOOKUPS,
        lambda s, on: (*lookups(s, on), full(on, s["B"]), s["V"]),
        embedding.contract_rows,
        lambda s: {**s, "P": s["V"] * s["w"]},
    ),
    Subject(
        materialize.TABLE,
        {**LOOKUPS, "B": (1, 64), "V": (16, 4096), "w": (8, 256)},
        lambda s, on: (*lookups(s, on), s["V"]),
        embedding.materialize_rows,
        lambda s: {**s, "P": s["V"] * s["w"]},
    ),
    Subject(
        cross.MIXED_PAIR,
        {"B": (1, 64), "T": (8, 512), "w": (8, 1024), "V": (16, 16384)},
        lambda s, on: (*lookups(s, on), full(on, s["B"], s["T"], s["w"]), full(on, s["B"], s["T"], s["V"])),
        embedding.cross_rows_dense,
        lambda s: {**s, "S": s["T"]},
    ),
)
