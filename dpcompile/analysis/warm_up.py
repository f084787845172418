"""One run of the program as the user wrote it before it is traced, so that caches outside of modules hold real tensors.

A function under functools.cache, a global dict or an attribute of a class keeps what the first call computes. If the trace
were this first call, tensors without data would stay in the user's objects for ever. What a run computes from shapes alone
then is a constant of the graph; what it computes from the batch or from parameters and outlives it must not become one, so
every such value is followed, and the run ends where Python would read a number of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from dpcompile import torch_private
from dpcompile.analysis.examples import example_dims, take
from dpcompile.analysis.plain_run import run_plainly
from dpcompile.batch import Batch
from dpcompile.ir.errors import CaptureError, refusal
from dpcompile.ir.graph import JointGraph
from dpcompile.losses import Program

OF_SHAPE = frozenset({"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like",
                      "new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided"})  # fmt: skip
"""Operations that take nothing but shape and type from a tensor."""
VALUES = frozenset({"_local_scalar_dense", "equal", "is_nonzero"})
"""Operations that give Python the value of a tensor."""
READING = frozenset({"tolist", "numpy", "__array__", "__dlpack__", "item", "is_nonzero",
                     "__bool__", "__float__", "__int__", "__index__", "__complex__"})  # fmt: skip
"""The same by ways that are no operations, or that a trace does not show."""


LEFT: dict[int, StorageWeakRef] = {}
"""Memory that such runs computed and that is still in use: a cache that one refused compilation filled does not pass in the
next one."""


class Stopped(RuntimeError):
    """Python asked for the value of a tensor that depends on the batch or on parameters."""


class Followed:
    """Memory that holds what was computed from the batch, the parameters or the buffers.

    Weak references keep an address from being used again, but not the memory itself.
    """

    def __init__(self, given: Iterable[Tensor]) -> None:
        self.given = {ref.cdata: ref for ref in map(reference, given)}
        self.computed: dict[int, StorageWeakRef] = {}

    def depends(self, values: Any) -> bool:
        """Whether one of these is given, or computed from what was."""
        places = [reference(value).cdata for value in torch_private.flatten(values)[0] if has_memory(value)]
        return any(place in self.given or place in self.computed or place in LEFT for place in places)

    def add(self, values: Any) -> None:
        """Follow results, views of what was given aside."""
        refs = [reference(value) for value in torch_private.flatten(values)[0] if has_memory(value)]
        self.computed |= {ref.cdata: ref for ref in refs if ref.cdata not in self.given}


def has_memory(value: Any) -> bool:
    """Whether this is an ordinary tensor."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not torch_private.is_fake(value)


def reference(tensor: Tensor) -> StorageWeakRef:
    """The memory of a tensor."""
    return StorageWeakRef(tensor.untyped_storage())


class NoReading(TorchFunctionMode):
    """End a run where Python reads a value that depends on the batch or on parameters."""

    def __init__(self, followed: Followed) -> None:
        super().__init__()
        self.followed = followed

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Any function of torch."""
        if getattr(function, "__name__", "") in READING and self.followed.depends(args):
            raise Stopped("Python reads the value of a tensor that an earlier call computed from the batch or from parameters")
        return function(*args, **(kwargs or {}))


def follower(followed: Followed) -> torch_private.Watch:
    """Follow the results of every operation; stop ahead of one that would write to the user's parameters."""

    def stop_at_writes(operation: Any, args: Any) -> None:
        written = [arg for arg, one in zip(args, operation._schema.arguments, strict=False) if one.is_write]
        if any(reference(arg).cdata in followed.given for arg in torch_private.flatten(written)[0] if has_memory(arg)):
            raise Stopped("forward writes to a parameter")

    def note(operation: Any, args: Any, found: Any) -> None:
        if operation.overloadpacket.__name__ not in OF_SHAPE and followed.depends(args):
            if operation.overloadpacket.__name__ in VALUES:
                raise Stopped("Python reads the value of a tensor")
            followed.add(found)

    return torch_private.Watch(stop_at_writes, note)


def warm_up(program: Program, batch: Batch) -> NoReading:
    """Run once on one example; whatever fails is left to the trace, which must not read what this run computed."""
    held = [*program.parameters(), *program.buffers(), *batch.tensors]
    followed = Followed(tensor for tensor in held if has_memory(tensor))
    with contextlib.suppress(Exception), NoReading(followed), follower(followed):
        run_plainly(program, batch.layout, take(batch.tensors, example_dims(batch), [0]), 1)
    LEFT.update(followed.computed)
    for place in [place for place, ref in LEFT.items() if ref.expired()]:
        del LEFT[place]
    return NoReading(Followed(()))


def check_followed(joint: JointGraph) -> None:
    """Refuse a graph with a constant that the run before computed from the batch or from parameters."""
    for node in joint.graph.find_nodes(op="get_attr"):
        tensor = getattr(joint.module, node.target)
        if has_memory(tensor) and reference(tensor).cdata in LEFT:
            raise CaptureError(
                refusal(
                    "forward or the loss keeps a tensor that it computed from the batch or from parameters, and uses it again",
                    node.meta.get("source_line", ""),
                    "it is kept outside of the modules' attributes (a global, a cached function, an attribute of a class), so "
                    "that later steps would use what an earlier one computed",
                    "compute it in every call; keep only what depends on shapes alone",
                )
            )
