"""What a call of the program leaves outside of its modules: nothing that a trace would freeze, and no tensor without data.

The program has run once before it was traced, so that what it keeps once and for all was there already. What a trace and a
further run change nevertheless it changes at every call.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from dpcompile import torch_private
from dpcompile.analysis.examples import example_dims, take
from dpcompile.analysis.plain_run import run_plainly
from dpcompile.batch import Batch
from dpcompile.capture import user_line
from dpcompile.fingerprint import Same, fakes_left
from dpcompile.guards import guard_key
from dpcompile.ir.errors import CaptureError, refusal
from dpcompile.ir.graph import JointGraph
from dpcompile.losses import Program
from dpcompile.python_state import drawn

GENERATORS = (random.Random, np.random.Generator, np.random.RandomState)
TRACING = ("torch._subclasses", "torch.fx.experimental")
"""Where torch defines what a tensor without data raises when its value is read."""


def check_outside(
    program: Program, batch: Batch, joint: JointGraph, before: tuple[Any, ...], generators: Sequence[OwnGenerator]
) -> None:
    """Refuse a program that keeps something from call to call; `before` and `generators` are from ahead of the trace."""
    for generator in generators:
        generator.check()
    check_real(program, batch)
    constants = {id(getattr(joint.module, node.target)) for node in joint.graph.find_nodes(op="get_attr")}
    for path in differences(before, guard_key(program, batch), constants, ()):
        raise CaptureError(
            refusal(
                f"every call changes what the next one finds: {named(path)}",
                "",
                "the program counts, or keeps something, outside of the attributes of its modules; a trace runs Python once, so "
                "that it would stay what it is from step to step",
                "change it outside of forward and loss, or keep a number in a buffer that does not depend on the batch",
            )
        )


def named(path: tuple[str, ...]) -> str:
    """A path in the fingerprint as the user knows it."""
    _, *rest = path or ("",)
    return ".".join("loss" if place == 0 and part == "function" else part for place, part in enumerate(rest)) or "an attribute"


def check_real(program: Program, batch: Batch) -> None:
    """Refuse a program whose losses or gradients have no data once it was traced."""
    try:
        run = run_plainly(program, batch.layout, take(batch.tensors, example_dims(batch), [0]), 1)
    except Exception as error:  # what it raises by itself is reported where the model is compared with its graph
        if type(error).__module__.startswith(TRACING):
            raise fakes_left(user_line(error)) from error
        return
    if any(torch_private.is_fake(tensor) for tensor in (run.losses, *run.gradients.values())):
        raise fakes_left("")


@dataclass(frozen=True)
class OwnGenerator:
    """A generator of Python's or NumPy's that the program can reach, and its state before the trace."""

    generator: Any
    state: bytes

    def check(self) -> None:
        """Refuse a program that has drawn from it."""
        if pickle.dumps(self.generator) != self.state:
            raise CaptureError(drawn(f"a {type(self.generator).__module__}.{type(self.generator).__name__} of its own"))


def generators_of(stand_in: Any) -> Iterator[OwnGenerator]:
    """The generators in a fingerprint."""
    if isinstance(stand_in, (tuple, frozenset)):
        for part in stand_in:
            yield from generators_of(part)
    elif isinstance(stand_in, Same) and isinstance(stand_in.value, GENERATORS):
        yield OwnGenerator(stand_in.value, pickle.dumps(stand_in.value))


def differences(before: Any, after: Any, constants: set[int], path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Paths of what differs in two fingerprints, where it is a value or a tensor that the graph holds as a constant."""
    if before == after:
        return
    if isinstance(before, Same):
        if not isinstance(after, Same) or id(before.value) in constants:
            yield path
    elif not isinstance(before, tuple) or not isinstance(after, tuple) or len(before) != len(after):
        yield path
    elif is_tensor(before) and is_tensor(after):
        if id(before[0].value) in constants:
            yield path
    else:
        name = (before[0],) if len(before) == 2 and isinstance(before[0], str) and before[0] == after[0] else ()
        for old, new in zip(before, after, strict=True):
            yield from differences(old, new, constants, (*path, *name))


def is_tensor(stand_in: tuple[Any, ...]) -> bool:
    """Whether this stands for a tensor and how often it was written to."""
    return len(stand_in) == 2 and isinstance(stand_in[0], Same) and isinstance(stand_in[0].value, Tensor)
