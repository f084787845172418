"""The convolutions of the founding papers' networks, each once, as sites for `make bench-cost`."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.cases import Case
from benchmarks.cost_grid import Layer
from benchmarks.experiments.beltran import EXPERIMENT as BELTRAN
from benchmarks.experiments.lee_kifer import EXPERIMENT as LEE_KIFER
from benchmarks.experiments.rochette import EXPERIMENT as ROCHETTE


def paper_convolutions() -> list[Layer]:
    """All that the small sizes of the experiments have; those that are alike in layer, image and batch size are one."""
    found: dict[str, Layer] = {}
    for experiment in (ROCHETTE, LEE_KIFER, BELTRAN):
        for case in experiment.points("small").values():
            if case.precision == "highest" and not case.as_published:
                found |= {f"{layer.name} B={layer.batch_size}": layer for layer in convolutions_of(case)}
    return list(found.values())


def convolutions_of(case: Case) -> Iterator[Layer]:
    """A network's two-dimensional convolutions, without their biases, on images of the sizes that reach them."""
    model, (x, _), shapes = case.model("cpu"), case.batch("cpu"), dict[nn.Conv2d, torch.Size]()
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: shapes.update({layer: inputs[0].shape[1:]})) for layer in layers
    ]
    with torch.no_grad():
        model(x[:1])
    for hook in hooks:
        hook.remove()
    for layer, shape in shapes.items():
        alone = copy.deepcopy(layer)
        alone.bias = None
        yield Layer(name_of(layer, shape), alone, case.batch_size, tuple(shape))


def name_of(layer: nn.Conv2d, shape: torch.Size) -> str:
    """All that times depend on but the batch size."""
    kind = type(layer).__name__ if type(layer) is not nn.Conv2d else "convolution"
    kernel, image = "x".join(map(str, layer.kernel_size)), "x".join(map(str, shape[1:]))
    steps = f"stride {layer.stride[0]}, padding {layer.padding[0]}, groups {layer.groups}"
    return f"{kind} {layer.in_channels}-{layer.out_channels}, {kernel}, {steps}, image {image}"
