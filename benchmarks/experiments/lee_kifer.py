"""Lee and Kifer, "Scaling up differentially private deep learning with fast per-example gradient clipping" (arXiv:2009.03106):
how many times faster than one example at a time, for their networks at B=128, and as the batch grows.

Full size: texts of 512 tokens, images of 3 x 256 x 256. Small size: 64 tokens, 3 x 32 x 32, VGG-11 with 512 hidden units. Their
reweighting is `reweight` here; their code's wrong norms (of convolutions, recurrent layers, ResNets) are not inherited.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.cases import OURS, Case, floats, per_class
from benchmarks.experiments import lee_kifer_networks as networks
from benchmarks.experiments.experiment import PEERS, Claim, Experiment, Medians, measured
from benchmarks.experiments.lee_kifer_plot import draw

BATCH, VOCABULARY = 128, 5000
GROWTH = (16, 32, 64, 128, 256, 512)
LEAST, MOST = 54, 94
"""Speed-ups over one example at a time that the abstract states, at B=128 on a GPU."""
Make = Callable[[], nn.Module]
Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
PAPERS = ("naive", "reweight", "ghost", "bookkeep")
METHODS = ("ordinary eager", "careful loop", *(name + OURS for name in PAPERS), *PEERS, "autotune" + OURS, "dpcompile eager")


def texts(length: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens i64[B, length] and two classes."""
    ids = torch.randint(0, VOCABULARY, (size, length), generator=generator)
    return ids, torch.randint(0, 2, (size,), generator=generator)


def points(size: str) -> dict[str, Case]:
    """{name: workload}: "LSTM B128"."""
    is_small = size == "small"
    side, length, hidden = (32, 64, 512) if is_small else (256, 512, 4096)
    rows: dict[str, tuple[Make, Draw]] = {
        "MLP": (networks.mlp, floats(28, 28)), "CNN": (networks.cnn, floats(28, 28)),
        "RNN": (networks.rnn, floats(28, 28)), "LSTM": (networks.lstm, floats(28, 28)),
        "Transformer": (partial(networks.Transformer, VOCABULARY), partial(texts, length)),
        "ResNet-18": (networks.resnet18, floats(3, side, side)),
        "VGG-11": (partial(networks.vgg11, side, hidden), floats(3, side, side)),
    }  # fmt: skip
    sizes = {name: GROWTH if name in ("MLP", "CNN", "LSTM") else (BATCH,) for name in rows}
    return {
        f"{name} B{batch}": Case(name, make, draw_batch, per_class, batch, 1.0)
        for name, (make, draw_batch) in rows.items()
        for batch in sizes[name]
    }


def speed_up(row: Medians, method: str) -> float:
    """How many times faster than the loop over single examples, or than `naive` if that is the faster one."""
    return min(row[name] for name in ("loop of single examples", "naive") if name in row) / row[method]


def reaches(found: Mapping[str, Medians], method: str) -> tuple[bool, str]:
    """Whether some network at B=128 is as much faster than one example at a time as the abstract says."""
    rows = {name: row for name, row in found.items() if name.endswith(f"B{BATCH}") and method in row}
    ratios = measured({name: speed_up(row, method) for name, row in rows.items()})
    return max(ratios.values()) >= LEAST, ", ".join(f"{name} {ratio:.1f}" for name, ratio in ratios.items())


def grows(found: Mapping[str, Medians], method: str) -> tuple[bool, str]:
    """Whether the speed-up is larger for 512 examples than for 16."""
    notes, is_larger = [], True
    for name in ("MLP", "CNN", "LSTM"):
        few, many = (speed_up(found[f"{name} B{batch}"], method) for batch in (GROWTH[0], GROWTH[-1]))
        notes.append(f"{name} {few:.1f} to {many:.1f}")
        is_larger &= many > few
    return is_larger, ", ".join(notes)


CLAIMS = tuple(
    claim
    for method in ("reweight", "auto")
    for claim in (
        Claim(f"{method}: {LEAST} to {MOST} times faster than one example at a time at B={BATCH} (on a GPU)",
              partial(reaches, method=method)),
        Claim(f"{method}: the speed-up grows with the batch size", partial(grows, method=method)),
    )
)  # fmt: skip
EXPERIMENT = Experiment("lee-kifer", "Lee and Kifer (arXiv:2009.03106)", points, METHODS, CLAIMS, draw)
