"""What the training layer costs over its floors: `python -m benchmarks.training`.

The floor is the compiled step, the drawing of as many normals, and the optimizer's update, each timed by itself; the layer is
the same through `make_private`: session, noise into the sums, division, accounting, update. Interleaved in one run;
medians, and the median of the ratio within a round.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpcompile import dpcompile
from dpcompile.training import PrivacyEngine
from dpcompile.training.session import Physical

ROUNDS = 200
BATCH = 256
FLOORS = ("compiled step", "normals", "update")


def network(width: int) -> nn.Module:
    """An MLP on 784 inputs."""
    return nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def convolutional(width: int) -> nn.Module:
    """A small CNN on the same numbers as images."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, width, 5, stride=2), nn.ReLU(), nn.Conv2d(width, 2 * width, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(2 * width * 100, 10),
    )  # fmt: skip


def pieces(model: nn.Module) -> dict[str, Callable[[], object]]:
    """The floors and the layer, as calls."""
    x, y = torch.randn(BATCH, 784), torch.randint(0, 10, (BATCH,))
    private = dpcompile(model, loss=nn.CrossEntropyLoss())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH)
    module, noisy, _ = PrivacyEngine().make_private(module=private, optimizer=optimizer, data_loader=loader, noise_multiplier=1.0)
    mask, normals = torch.ones(BATCH, dtype=torch.bool), torch.empty(sum(p.numel() for p in model.parameters()))
    generator = torch.Generator().manual_seed(0)

    def layer() -> None:
        noisy.session.begin(Physical(noisy.session.completed, BATCH, 0, True, True))
        module(x, y)
        noisy.step()

    layer()
    return {
        "compiled step": lambda: private(x, y, mask=mask),
        "normals": lambda: normals.normal_(generator=generator),
        "update": optimizer.step,
        "layer": layer,
    }


def rounds(calls: dict[str, Callable[[], object]]) -> list[dict[str, float]]:
    """Seconds of each call in every round, in an order that is drawn anew each time."""
    order, found = list(calls), []
    generator = random.Random(0)
    for turn in range(-5, ROUNDS):
        generator.shuffle(order)
        seconds = {}
        for name in order:
            start = time.perf_counter()
            calls[name]()
            seconds[name] = time.perf_counter() - start
        found += [seconds] if turn >= 0 else []
    return found


def row(found: list[dict[str, float]]) -> list[str]:
    """Medians in ms, and the median and quartiles of layer over floors within a round."""
    ratios = [seconds["layer"] / sum(seconds[name] for name in FLOORS) for seconds in found]
    low, middle, high = statistics.quantiles(ratios, n=4)
    times = [f"{statistics.median(seconds[name] for seconds in found) * 1e3:.2f}" for name in (*FLOORS, "layer")]
    return [*times, f"{middle:.3f} ({low:.3f} to {high:.3f})"]


def main() -> None:
    """Print a row for every model."""
    torch.set_num_threads(1)
    table = Table(title=f"training layer against its floors, B={BATCH}, torch {torch.__version__}, one thread, ms")
    for column in ("model", *FLOORS, "layer", "layer / floors"):
        table.add_column(column, justify="left" if column == "model" else "right")
    models = {"MLP 256": network(256), "MLP 1024": network(1024), "CNN 16": convolutional(16)}
    for name, model in models.items():
        table.add_row(name, *row(rounds(pieces(model))))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
