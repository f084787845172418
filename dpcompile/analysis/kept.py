"""What forward leaves in attributes for its next call: a cache that changes nothing, or state that a trace cannot carry.

A trace runs Python once, from the attributes that it finds, and its graph repeats this first call at every step. That is the
model if a second call, on other examples and after an update of the parameters, gives what a first one gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dpcompile.analysis.company import MOVED, RUNS, SINGLE
from dpcompile.analysis.examples import draw_examples, example_dims, take
from dpcompile.analysis.plain_run import (
    FAILURES,
    Backward,
    PlainRun,
    called,
    error_of_losses,
    errors_of_gradients,
    first_line,
    fresh,
    kept_gradients,
)
from dpcompile.analysis.rounding import UNITS
from dpcompile.batch import Batch
from dpcompile.capture import preserved
from dpcompile.ir.errors import CaptureError, refusal
from dpcompile.kernels.batch_norm import ContiguousNorms
from dpcompile.losses import Program


def check_kept(program: Program, batch: Batch, paths: Sequence[str]) -> None:
    """Refuse a model whose second call depends on what its first one wrote to these attributes."""
    if not paths:
        return
    examples, dims = draw_examples(batch, 0), example_dims(batch)
    earlier, later = (take(examples, dims, RUNS[run]) for run in (MOVED, SINGLE))
    with torch.inference_mode(False):
        try:
            expected = last_of(program, batch, [later])
            found = last_of(program, batch, [earlier, later])
        except (*FAILURES, KeyError) as error:
            raise kept(paths, f"fails ({first_line(error).split('. ')[0]})") from None
    errors = errors_of_gradients(found.gradients, expected.gradients).values()
    off = max(error_of_losses(found.losses, expected.losses), *errors)
    dtype = expected.losses.dtype
    if off > UNITS.get(dtype, 1) * torch.finfo(dtype).eps:  # the same operations on the same numbers
        raise kept(paths, f"gives losses or gradients that are off by {off:.1e} (relative)")


def last_of(program: Program, batch: Batch, calls: Sequence[Sequence[Tensor]]) -> PlainRun:
    """The last of several forwards and backwards one after the other, before which the parameters change; all is put back."""
    given = fresh(program)
    final = changed(given)
    with preserved(program), kept_gradients(program), torch.enable_grad(), ContiguousNorms():
        for number, leaves in enumerate(calls, 1):
            torch.manual_seed(0)
            parameters = final if number == len(calls) else given
            size = len(RUNS[SINGLE if number == len(calls) else MOVED])
            losses: Tensor = called(Backward(program, size), batch.layout, leaves, parameters)
    return PlainRun(losses.detach(), {name: p.grad for name, p in final.items()}, {})


def changed(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Other values on the scale of these, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(p.shape, generator=generator).to(p) for name, p in parameters.items()}
    return {n: (p + 0.3 * (p.abs() + 0.1) * noise[n]).detach().requires_grad_() for n, p in parameters.items()}


def kept(paths: Sequence[str], what: str) -> CaptureError:
    """The refusal of a model that goes on with what it kept."""
    return CaptureError(
        refusal(
            f"forward keeps {paths[0]}{' and more' if paths[1:] else ''} for its next call",
            "",
            f"a second call, on other examples and with changed parameters, {what} where a first call would not; a trace runs "
            "Python once, as a first call",
            "compute it in every call, or keep it outside of forward; some modules keep such values in eval mode only: call "
            "train() on these and leave the others in eval mode",
        )
    )
