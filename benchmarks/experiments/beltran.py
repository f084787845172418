"""Rodriguez Beltran et al., "Towards efficient and scalable training of differentially private deep learning" (arXiv:2406.17298):
throughput relative to training without privacy, the largest physical batch, and compilations under Poisson sampling.

Full size: images of 3 x 224 x 224 in patches of 16, B=32. Small size: 3 x 64 x 64 in patches of 8, B=8, without the larger
networks. Weight-standardised convolutions are real ones everywhere. TF32 is measured on a GPU only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from benchmarks.cases import OURS, Case, floats, per_class
from benchmarks.experiments import beltran_networks as networks
from benchmarks.experiments.beltran_plot import draw
from benchmarks.experiments.capacity import capacity
from benchmarks.experiments.compilations import compilations
from benchmarks.experiments.experiment import PEERS, Claim, Experiment, Medians, measured

METHODS = ("ordinary eager", "ordinary inductor", "dpcompile eager", "dpcompile inductor", "ghost" + OURS, "bookkeep" + OURS,
           "autotune" + OURS, *PEERS)  # fmt: skip
SMALL = ("ViT-Tiny", "ViT-Small", "BiT-R50x1")
BFLOAT16_TOLERANCE = 0.1
"""Products of bfloat16 operands, in units of one example's contribution; float32 is held to the usual bound."""
TF32_TOLERANCE = 0.02
"""Operands rounded to ten bits."""
WANTED_SHARE = 0.85
"""Of the throughput without privacy that ViT-Base is to reach."""


def points(size: str) -> dict[str, Case]:
    """{name: workload}: "ViT-Tiny float32"."""
    side, patch, batch = (64, 8, 8) if size == "small" else (224, 16, 32)
    makes: dict[str, Callable[[], nn.Module]] = {
        **{name: partial(networks.VisionTransformer, *row, side, patch) for name, row in networks.TRANSFORMERS.items()},
        **{name: partial(networks.bit_resnet, *row) for name, row in networks.RESNETS.items()},
    }
    chosen = {name: make for name, make in makes.items() if size == "full" or name in SMALL}
    inputs = floats(3, side, side)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {}
    for name, make in chosen.items():
        found[f"{name} float32"] = Case(name, make, inputs, per_class, batch, 1.0)
        if device == "cuda":
            found[f"{name} TF32"] = Case(name, make, inputs, per_class, batch, 1.0, tolerance=TF32_TOLERANCE, precision="high")
        half = functools.partial(lambda m: networks.HalfPrecision(m(), device), make)
        found[f"{name} bfloat16"] = Case(name, half, inputs, per_class, batch, 1.0, tolerance=BFLOAT16_TOLERANCE)
    return found


def share(row: Medians) -> float:
    """Throughput of the better backend in units of the better ordinary step's."""
    ordinary = min(row[name] for name in ("ordinary eager", "ordinary inductor") if name in row)
    return ordinary / min(row[name] for name in ("auto", "dpcompile inductor") if name in row)


def is_near(found: Mapping[str, Medians]) -> tuple[bool, str]:
    """Whether the transformers reach the wanted share of the throughput without privacy."""
    shares = measured({name: share(row) for name, row in found.items() if name.startswith("ViT")})
    return min(shares.values()) >= WANTED_SHARE, ", ".join(f"{name} {value:.2f}" for name, value in shares.items())


def hooks_cost(found: Mapping[str, Medians]) -> tuple[bool, str]:
    """Whether Opacus' hooks are 2.6 to 8 times slower than training without privacy, as the abstract says."""
    ratios = measured({name: row["Opacus hooks"] / row["ordinary eager"] for name, row in found.items() if "Opacus hooks" in row})
    return all(2.6 <= value <= 8 for value in ratios.values()), ", ".join(f"{name} {value:.1f}" for name, value in ratios.items())


CLAIMS = (
    Claim("per-example gradients by Opacus' hooks cost 2.6 to 8 times ordinary training (on a GPU)", hooks_cost),
    Claim(f"dpcompile reaches {WANTED_SHARE} of the throughput without privacy on ViTs (our aim)", is_near),
)
EXTRAS = (compilations("ViT-Tiny float32", points), capacity(points))
EXPERIMENT = Experiment("beltran", "Rodriguez Beltran et al. (arXiv:2406.17298)", points, METHODS, CLAIMS, draw, EXTRAS)
