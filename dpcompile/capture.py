"""Model, loss and one batch in; the joint forward and backward graph out, with one free batch size.

Two steps. The step (losses and `autograd.grad` of their sum) is traced at ATen level under fake tensors of
which only the example axis is symbolic, with a batch hint that differs from every static size. If the trace
holds mutations it is replayed through functionalisation, and trailing writes to buffers become outputs.
One graph then serves every batch size: afterwards the symbol must still be free, every condition on it that
tracing relied on is checked by a second capture on its other side, and anything else refuses.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
from torch import Tensor, fx, nn
from torch.func import functional_call, functionalize

from dpcompile import torch_private
from dpcompile.batch import Batch
from dpcompile.buffers import check_own_memory, take_buffer_updates, write_assigned
from dpcompile.conditions import SMALLEST, check_every_way, check_same, first_unmet, takes_known_way, way_of
from dpcompile.constants import check_constants
from dpcompile.hooks import global_hooks_skip
from dpcompile.ir.errors import CaptureError, DPCompileError, InvalidInput, refusal
from dpcompile.ir.graph import Input, JointGraph, size_expression
from dpcompile.kernels.bags import RegularBags
from dpcompile.kernels.recurrent import RecurrentSites
from dpcompile.losses import Program, check_losses, public_name
from dpcompile.provenance import (
    COTANGENT,
    SourceLines,
    annotated_modules,
    caller_within,
    is_user_file,
    lines_of_backward,
    record_places,
)
from dpcompile.python_state import (
    check_after,
    check_before,
    containers_of,
    grown,
    in_place,
    newly_registered,
    registered_in,
    restore,
    unwritten_tensors,
    without_python_draws,
    written,
)
from dpcompile.simplify import simplify
from dpcompile.sizes import batch_symbol, check_sizes
from dpcompile.substitutes import DenseGradients, Substitutes, traceable_modules
from dpcompile.views import Replay, relax_views

WRAPPERS = ("dpcompile.losses", "dpcompile.capture", "dpcompile.analysis.plain_run")
HINTS = (23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113)


def capture(program: Program, batch: Batch) -> JointGraph:
    """The joint graph of one step; raises CaptureError when it would not be right for every batch size."""
    tensors = [*dict(program.named_parameters()).values(), *batch.tensors]
    static = {int(size) for tensor in tensors for size in tensor.shape}
    hint = next(number for number in HINTS if number not in static)
    joint = capture_once(program, batch, hint)
    sizes, joint.ways = check_every_way(lambda other: capture_once(program, batch, other), joint, hint)
    joint.sizes = tuple(sizes)
    joint.conditions = len(torch_private.guards(joint.fakes))
    return joint


def admit(joint: JointGraph, program: Program, batch: Batch, size: int) -> None:
    """Make sure that a batch of this size takes a way that was traced, or trace it; raises CaptureError where its graph would be
    another one. The search for ways ends somewhere, so that every new size is looked at once more when it comes."""
    if size in joint.admitted or size < SMALLEST:
        return
    if not takes_known_way(joint.ways, size):
        other = capture_once(program, batch, size)
        check_same(joint, other, size, first_unmet(joint.ways, size))
        joint.ways.append(way_of(other))
    joint.admitted.add(size)


def check_admitted(joint: JointGraph, size: int) -> None:
    """Refuse a batch size that no traced way is known to take, where the captured graph is there no more to compare with."""
    if size >= SMALLEST and not takes_known_way(joint.ways, size):
        condition = first_unmet(joint.ways, size)
        raise CaptureError(
            refusal(f"a batch of {size} examples was not traced", condition.line, f"tracing relied on {condition}", FEWER)
        )


FEWER = "call it on fewer examples at a time"


def capture_once(program: Program, batch: Batch, hint: int) -> JointGraph:
    """One trace with this batch hint."""
    parameters = {n: p for n, p in program.named_parameters() if p.requires_grad}
    state = {n: p for n, p in program.named_parameters() if not p.requires_grad} | dict(program.named_buffers())
    if not parameters:
        raise InvalidInput("the model has no trainable parameter; set requires_grad=True where gradients are wanted")
    mode = torch_private.new_fakes(caller_within())
    dims = [dim for _, dim in batch.layout.tensor_dims()]
    fakes = [torch_private.fake(mode, t, d, hint) for t, d in zip(batch.tensors, dims, strict=True)]
    held = [torch_private.fake(mode, t, None, hint) for t in (*parameters.values(), *state.values())]
    step = Step(program, list(parameters), list(state), batch, dims)
    check_before(program)
    containers, registered = containers_of(program), registered_in(program)
    with preserved(program) as saved, without_python_draws():
        with unwritten_tensors(program):
            module = traced(step, mode, [*held, *fakes])
        check_after(program, saved)
        kept = (*written(program, saved), *grown(containers), *newly_registered(program, registered))
    inputs = [Input("parameter", public_name(n)) for n in parameters] + [Input("state", public_name(n)) for n in state]
    for (path, dim), leaf in zip(batch.layout.tensor_dims(), batch.tensors, strict=True):
        inputs.append(Input("shared" if dim is None else "batch", path, dim if leaf.dim() else None))
    symbol = batch_symbol(mode, fakes, dims)
    outputs = [("losses", "")] + [("gradient", public_name(n)) for n in parameters]
    names = frozenset(public_name(name) for name, _ in program.named_buffers())
    joint = JointGraph(module, inputs, outputs, symbol, mode, kept=kept, buffers=names)
    record_places(joint)
    check_constants(joint, program, batch)
    check_sizes(joint)
    take_buffer_updates(joint)
    check_own_memory(joint, program)
    simplify(joint.module)
    relax_views(joint.module)
    return joint


class Step:
    """The function that is traced: state and batch in, losses and summed gradients out."""

    def __init__(
        self,
        program: Program,
        parameters: list[str],
        state: list[str],
        batch: Batch,
        dims: Sequence[int | None],
    ):
        self.program, self.parameters, self.state, self.batch, self.dims = (
            program,
            parameters,
            state,
            batch,
            dims,
        )
        self.reentrant = False

    def __call__(self, *tensors: Tensor) -> tuple[Tensor | None, ...]:
        """Losses, then one summed gradient (or None) for every trainable parameter."""
        count = len(self.parameters)
        parameters = [tensor.detach().requires_grad_() for tensor in tensors[:count]]
        state = list(tensors[count : count + len(self.state)])
        leaves = list(tensors[count + len(self.state) :])
        batched = [(leaf, dim) for leaf, dim in zip(leaves, self.dims, strict=True) if dim is not None]
        size = batched[0][0].shape[batched[0][1]]
        for leaf, dim in batched[1:]:
            torch_private.require(leaf.shape[dim] == size)  # otherwise every input has a batch symbol of its own
        args, kwargs = self.batch.layout.rebuild(leaves)
        held = dict(zip([*self.parameters, *self.state], [*parameters, *state], strict=True))
        held = {f"program.{name}": tensor for name, tensor in held.items()}
        step = Differentiated(self.program, parameters, size, self.reentrant)
        with (
            annotated_modules(self.program),
            RecurrentSites(),
            RegularBags(),
            DenseGradients(),
            Substitutes(),
            traceable_modules(),
            SourceLines(),
        ):
            given = dict(held)
            outputs = functional_call(step, held, args, kwargs, tie_weights=True)
            write_assigned(given, held, {f"program.{name}" for name in self.parameters})
        return outputs


class Differentiated(nn.Module):
    """Forward and backward as one module call: checkpoints run parts of forward again during backward, and must then
    still find the traced parameters in their places."""

    def __init__(self, program: Program, parameters: list[Tensor], size: int, reentrant: bool) -> None:
        super().__init__()
        self.program, self.differentiated, self.size, self.reentrant = program, parameters, size, reentrant

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor | None, ...]:
        """Losses and their summed gradients."""
        losses = check_losses(self.program(*args, **kwargs), self.size)
        torch_private.keep_provenance(losses)
        with fx_traceback.annotate({COTANGENT: True}):
            ones = torch.ones_like(losses)
        with (
            lines_of_backward(),
            torch.autocast(losses.device.type, enabled=False),
        ):  # as torch advises: backward follows forward's types
            if not self.reentrant:
                return (
                    losses.detach(),
                    *torch.autograd.grad(losses, self.differentiated, ones, allow_unused=True),
                )
            losses.backward(ones)  # reentrant checkpoints refuse autograd.grad
            return (losses.detach(), *(parameter.grad for parameter in self.differentiated))


def traced(step: Step, mode: torch_private.Fakes, tensors: list[Tensor]) -> fx.GraphModule:
    """Trace, and replay through functionalisation if anything was mutated."""
    try:
        with torch_private.tracing_context(mode), torch_private.provenance(), torch.compiler.set_stance("force_eager"):
            module = first_trace(step, tensors)
        if any(is_mutation(node) for node in module.graph.nodes):
            with torch_private.tracing_context(mode):
                replay = Replay(module)
                module = torch_private.trace(
                    functionalize(lambda *args: replay.run(*args, enable_io_processing=False), remove="mutations"),
                    tensors,
                )
    except DPCompileError:
        raise
    except Exception as error:  # whatever the user's own forward or torch's tracing raises, with its reason kept
        if "mutating a non-functional tensor" in str(error):
            raise CaptureError(in_place("a tensor of its surroundings")) from error
        raise CaptureError(
            refusal(
                f"PyTorch could not trace the model: {type(error).__name__}: {first_line(error, tensors)}",
                user_line(error),
                "the joint graph is traced without data, with the batch size as an unknown",
                "run loss(model, *batch) once in eager to see whether the model itself fails; if it does not, "
                "avoid data-dependent Python branches and shapes at that line",
            )
        ) from error
    return module


def first_line(error: Exception, tensors: Sequence[Tensor]) -> str:
    """What an error says first, with B for torch's name of the batch size."""
    symbols = {str(symbol) for tensor in tensors for size in tensor.shape for symbol in size_expression(size).free_symbols}
    line = (str(error).splitlines() or [""])[0]
    return re.sub(rf"\b({'|'.join(map(re.escape, symbols))})\b", "B", line) if symbols else line


def first_trace(step: Step, tensors: list[Tensor]) -> fx.GraphModule:
    """The trace as it comes; once more with a plain backward where a reentrant checkpoint asks for it."""
    try:
        return torch_private.trace(step, tensors)
    except RuntimeError as error:
        if "use_reentrant" not in str(error) or step.reentrant:
            raise
    step.reentrant = True
    return torch_private.trace(step, tensors)


def user_line(error: BaseException) -> str:
    """The innermost line of the user's code in a traceback."""
    found, step = "", error.__traceback__
    while step is not None:
        if is_user_file(step.tb_frame.f_code.co_filename):
            found = f"{step.tb_frame.f_code.co_filename}:{step.tb_lineno}"
        step = step.tb_next
    return found


def is_mutation(node: fx.Node) -> bool:
    """Whether a node writes to one of its inputs."""
    return isinstance(node.target, torch_private.OpOverload) and node.target._schema.is_mutable


@contextlib.contextmanager
def preserved(program: nn.Module) -> Iterator[list[tuple[nn.Module, dict[str, Any]]]]:
    """Undo whatever tracing leaves in the modules: cached fake tensors, train flags; gives what was there before."""
    containers = ("_parameters", "_buffers", "_modules")
    saved = [(m, dict(m.__dict__), {name: dict(m.__dict__[name]) for name in containers}) for m in program.modules()]
    held = containers_of(program)
    devices = list({p.device.index or 0 for p in program.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices), global_hooks_skip(is_wrapper):
        try:
            yield [(module, attributes) for module, attributes, _ in saved]
        finally:
            for _, container, before in held:
                restore(container, before)
            for module, attributes, dicts in saved:
                module.__dict__.clear()
                module.__dict__.update(attributes)
                for name, entries in dicts.items():
                    module.__dict__[name].clear()
                    module.__dict__[name].update(entries)


def is_wrapper(module: nn.Module) -> bool:
    """Whether a module is one of those around the user's program, which hooks on all modules are not meant for."""
    return type(module).__module__ in WRAPPERS
