"""`make bench-plan`: how long the plan of a transformer of twelve layers takes, capture and rewriting aside."""

from __future__ import annotations

import statistics
import time

import torch
import typer
from torch import Tensor, nn

from dpcompile import dpcompile
from dpcompile.plan.select import choose

LAYERS, WIDTH, TOKENS, BATCH, ROUNDS = 12, 256, 64, 64, 5


def squares(model: nn.Module, x: Tensor) -> Tensor:
    """A loss per example."""
    return model(x).flatten(1).square().sum(1)


def main() -> None:
    """Print the time of the fastest plan, and of the fastest that keeps half of what that one keeps."""
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
    private = dpcompile(model, squares, hardware="cpu", example_batch=(torch.randn(2, TOKENS, WIDTH),))
    outlook = private.ready().outlook
    free = choose(outlook.source.sites, outlook.hardware, BATCH)
    for name, limit in (("without a limit", float("inf")), ("within half of the memory", free.resident_bytes / 2)):
        samples = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            choose(outlook.source.sites, outlook.hardware, BATCH, limit=limit)
            samples.append(time.perf_counter() - started)
        print(f"{len(outlook.source.sites)} parameters, {name}: {statistics.median(samples):.2f} s")


if __name__ == "__main__":
    typer.run(main)
