"""What the training layer costs over its floors: `python -m benchmarks.training`.

The floor is the compiled step, the drawing of as many normals, and the optimizer's update, each timed by itself; the layer is
the same through `make_private`: session, noise into the sums, division, accounting, update. Interleaved in one run, medians.
"""

from __future__ import annotations

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

ROUNDS = 40
BATCH = 256


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


def medians(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each call, taken in turns."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-3, ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= 0:
                samples[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in samples.items()}


def main() -> None:
    """Print a row for every model."""
    torch.set_num_threads(1)
    table = Table(title=f"training layer against its floors, B={BATCH}, torch {torch.__version__}, one thread, ms")
    for column in ("model", "compiled step", "normals", "update", "layer", "layer / floors"):
        table.add_column(column, justify="left" if column == "model" else "right")
    models = {"MLP 256": network(256), "MLP 1024": network(1024), "CNN 16": convolutional(16)}
    for name, model in models.items():
        found = medians(pieces(model))
        floors = found["compiled step"] + found["normals"] + found["update"]
        table.add_row(name, *(f"{seconds * 1e3:.2f}" for seconds in found.values()), f"{found['layer'] / floors:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
