"""The user's own program by ordinary autograd on a batch of one or two, and how it compares with the graph.

A Python branch on the number of examples, and `squeeze()` without a dimension, may leave no trace in a graph
that was traced for every batch size. Here the model itself runs on one example, and must agree with the
graph.
"""

from __future__ import annotations

import contextlib
import difflib
import linecache
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dpcompile import torch_private
from dpcompile.batch import Layout
from dpcompile.capture import preserved
from dpcompile.capture import user_line as line_of_error
from dpcompile.ir.errors import CaptureError, DPCompileError, refusal
from dpcompile.kernels.batch_norm import ContiguousNorms
from dpcompile.losses import Program, check_losses, public_name
from dpcompile.provenance import is_user_file
from dpcompile.python_state import Saved, path_of

FAILURES = (DPCompileError, RuntimeError, ValueError, TypeError, IndexError, AttributeError)
"""What a model raises by itself."""
Gradients = Mapping[str, Tensor | None]
Trace = list[tuple[str, tuple[Any, ...], str]]  # operation, numbers among its arguments, the user's line


@dataclass(frozen=True)
class PlainRun:
    """Losses f[B] and the gradient of their sum, by public parameter name (None where there is no path).

    written: tensors that forward put in the place of others in attributes of modules, by path.
    """

    losses: Tensor
    gradients: Gradients
    written: Mapping[str, Tensor]


def run_plainly(program: Program, layout: Layout, leaves: Sequence[Tensor], size: int) -> PlainRun:
    """One forward and backward; p.grad, buffers, module attributes and random state stay as they were."""
    trainable = fresh(program)
    with preserved(program) as before, kept_gradients(program), torch.enable_grad(), ContiguousNorms():
        losses = called(Backward(program, size), layout, leaves, trainable)
        written = written_tensors(program, before)
    named = {public_name(n): None if p.grad is None else p.grad.to_dense() for n, p in trainable.items()}
    return PlainRun(losses.detach(), named, written)


def check_runs(program: Program, layout: Layout, leaves: Sequence[Tensor], size: int) -> None:
    """Refuse a model that fails on the batch when it is run as the user wrote it: torch checks some things, types among them,
    only on numbers, which a trace does not have."""
    try:
        run_plainly(program, layout, leaves, size)
    except FAILURES as error:
        culprit = f"the model itself fails on this batch: {type(error).__name__}: {first_line(error)}"
        why = "this is what it does without dpcompile, too"
        raise CaptureError(refusal(culprit, line_of_error(error), why, "run loss(model, *batch) once in eager")) from error


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def written_tensors(program: Program, before: Saved) -> dict[str, Tensor]:
    """Attributes that held one tensor before and hold another now; what held none is taken for a cache."""
    names = {module: name for name, module in program.named_modules()}
    found: dict[str, Tensor] = {}
    for module, attributes in before:
        for attribute, now in vars(module).items():
            was = attributes.get(attribute)
            if isinstance(now, Tensor) and isinstance(was, Tensor) and now is not was:
                found[path_of(names[module], attribute)] = now.detach()
    return found


class Backward(nn.Module):
    """Forward and backward in one call, so that checkpoints recompute with the same parameters."""

    def __init__(self, program: Program, size: int) -> None:
        super().__init__()
        self.program, self.size = program, size

    def forward(self, *batch: Any, **kwargs: Any) -> Tensor:
        """Losses f[B]; the gradients are in the parameters."""
        losses = check_losses(self.program(*batch, **kwargs), self.size)
        losses.sum().backward()  # not autograd.grad, which reentrant checkpoints refuse
        return losses


class Forward(nn.Module):
    """The program alone, under the same names."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program

    def forward(self, *batch: Any, **kwargs: Any) -> Any:
        """Whatever the program returns."""
        return self.program(*batch, **kwargs)


def fresh(program: Program) -> dict[str, Tensor]:
    """The trainable parameters' values as leaves without gradients and hooks; no memory is copied."""
    return {n: p.detach().requires_grad_() for n, p in program.named_parameters() if p.requires_grad}


@contextlib.contextmanager
def kept_gradients(program: Program) -> Iterator[None]:
    """Put p.grad aside: a loss that reaches a parameter by closure would add to it."""
    kept = [(parameter, parameter.grad) for parameter in program.parameters()]
    try:
        for parameter, _ in kept:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient


def called(module: nn.Module, layout: Layout, leaves: Sequence[Tensor], trainable: Mapping[str, Tensor]) -> Any:
    """Call a module around the program with these parameters; writes to buffers and to the batch go to
    copies.
    """
    program = module.get_submodule("program")
    frozen = {n: p.detach() for n, p in program.named_parameters() if not p.requires_grad}
    buffers = {n: b.detach().clone() for n, b in program.named_buffers()}
    args, kwargs = layout.rebuild([leaf.clone() for leaf in leaves])
    state = {f"program.{n}": t for n, t in {**trainable, **frozen, **buffers}.items()}
    with torch.compiler.set_stance("force_eager"):  # parts under torch.compile would be compiled anew for every size
        return functional_call(module, state, args, kwargs, tie_weights=True)


def norm(values: Tensor) -> float:
    """The norm of a tensor; where it is not finite, that of its finite entries."""
    found = float(torch.linalg.vector_norm(values))
    return found if math.isfinite(found) else float(finite(values).norm())


def finite(values: Tensor) -> Tensor:
    """In float64 (complex numbers as pairs), with infinite and NaN entries at zero."""
    real = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    return real.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def deviation(left: Tensor | None, right: Tensor | None) -> float:
    """The norm of a difference; a missing gradient is zero, infinite and NaN entries must be so in both."""
    if left is None or right is None:
        present = left if right is None else right
        return 0.0 if present is None else norm(present)
    if left.shape != right.shape:
        return math.inf
    found = float(torch.linalg.vector_norm(left - right))
    if math.isfinite(found):
        return found
    return float((finite(left) - finite(right)).norm()) if torch.equal(left.isfinite(), right.isfinite()) else math.inf


def errors_of_gradients(found: Gradients, expected: Gradients) -> dict[str, float]:
    """Per parameter the norm of the deviation, relative to the norm of the whole expected gradient."""
    deviations = {name: deviation(found.get(name), gradient) for name, gradient in expected.items()}
    if not any(deviations.values()):
        return deviations
    whole = math.hypot(*(norm(gradient) for gradient in expected.values() if gradient is not None))
    return {name: off / max(whole, sys.float_info.min) for name, off in deviations.items()}


def error_of_losses(found: Tensor, expected: Tensor) -> float:
    """The largest deviation, relative to the larger of 1 and the loss; infinite and NaN losses must be so in
    both.
    """
    if found.shape != expected.shape or not torch.equal(found.isfinite(), expected.isfinite()):
        return float("inf")
    scale = finite(expected).abs().clamp(min=1.0)
    return float(((finite(found) - finite(expected)).abs() / scale).max()) if found.numel() else 0.0


def line_of_branch(program: Program, layout: Layout, one: Sequence[Tensor], several: Sequence[Tensor]) -> str:
    """The user's line at which a run on one example and a run on several take different ways; empty if
    unknown.
    """
    left, right = record(program, layout, one), record(program, layout, several)
    for compared in (1, 2):  # the operations, then also the numbers among their arguments
        names = [step[:compared] for step in left], [step[:compared] for step in right]
        for kind, start, end, other, _ in difflib.SequenceMatcher(None, *names, autojunk=False).get_opcodes():
            if kind != "equal":
                return left[start][2] if end > start else right[other][2]
    return ""


def record(program: Program, layout: Layout, leaves: Sequence[Tensor]) -> Trace:
    """The operations of one forward pass."""
    steps: Trace = []

    def note(operation: Any, args: tuple[Any, ...]) -> None:
        numbers = tuple(a for a in args if isinstance(a, (int, float)))
        steps.append((str(operation), numbers, user_line()))

    with preserved(program), torch_private.Watch(note):
        called(Forward(program), layout, leaves, fresh(program))
    return steps


def user_line() -> str:
    """The innermost running line of the user's code."""
    frame = sys._getframe(1)
    while frame.f_back is not None and not is_user_file(frame.f_code.co_filename):
        frame = frame.f_back
    name, number = frame.f_code.co_filename, frame.f_lineno
    return f"{name}:{number}  {linecache.getline(name, number).strip()}" if is_user_file(name) else ""
