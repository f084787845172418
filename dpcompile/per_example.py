"""Every example's own gradient: traced like a step, materialised instead of clipped and summed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dpcompile.batch import Batch
from dpcompile.capture import check_admitted
from dpcompile.guards import Traces, guard_key
from dpcompile.losses import Program
from dpcompile.pipeline import Options, compile_gradients
from dpcompile.runtime import GraphCall


def per_example_gradients(
    program: Program,
    trainable: Iterable[tuple[str, nn.Parameter]],
    batch: Batch,
    options: Options,
    traces: Traces[GraphCall],
) -> dict[str, Tensor]:
    """{name: f[B, *shape]} for the trainable parameters (name, parameter), in their order; float32 or wider.

    Parameters without a gradient path have zeros, and so has every parameter of an empty batch. NOT private.
    Takes B times the memory of the gradients. Buffers keep their values.
    """
    found: dict[str, Tensor] = {}
    if batch.size:
        call = traces.get(lambda: guard_key(program, batch), lambda: compile_gradients(program, batch, options))
        check_admitted(call.joint, batch.size)
        found = {name: value for (kind, name), value in call.outputs(*batch.tensors).items() if kind == "per_example_gradient"}
    return {name: found[name] if name in found else zeros(parameter, batch.size) for name, parameter in trainable}


def zeros(parameter: nn.Parameter, size: int) -> Tensor:
    """f[B, *shape] of zeros in the dtype of gradients."""
    wide = torch.promote_types(parameter.dtype, torch.float32)
    return torch.zeros(size, *parameter.shape, dtype=wide, device=parameter.device)
