"""From a rewritten graph to a call: which tensors go in, in eager or compiled by inductor, and what comes out.

Non-finite examples cost the common case nothing: the fast graph runs, and only when a norm is not finite (a masked
example's too) the step is run once more with those examples replaced by a finite one of the same batch and masked
out, from the same state of the random generators. Zero times a finite value is exactly zero, so they contribute
exactly nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from dpcompile import torch_private
from dpcompile.ir.errors import DPCompileError
from dpcompile.ir.graph import JointGraph
from dpcompile.ir.randomness import has_draws
from dpcompile.kernels.copies import Copies
from dpcompile.kernels.fallback import ExampleLoop
from dpcompile.kernels.traceable import TRACEABLE
from dpcompile.losses import SELECTION, Program, public_name

BACKENDS = ("eager", "inductor", "auto")


@dataclass(frozen=True)
class Raw:
    """What one run of the graph returns, by role; own_gradients of a batch of one still lack the clip factor."""

    losses: Tensor
    norms: Tensor
    clip_factors: Tensor
    nonfinite: Tensor
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]
    own_gradients: dict[str, Tensor] = field(default_factory=dict)

    def add_to(self, total: dict[str, Tensor]) -> None:
        """Add one chunk's sums to those before it, or the only example's own gradient times its factor, unless that is 0."""
        for name, gradient in self.gradients.items():
            total[name] = total[name].add_(gradient) if name in total else gradient
        factor = self.clip_factors.item() if self.own_gradients else 0.0
        for name, gradient in self.own_gradients.items() if factor else ():  # 0 times what is not finite would be NaN
            total[name] = total[name].add_(gradient, alpha=factor) if name in total else gradient * factor

    def counting(self, mask: Tensor) -> Raw:
        """The same, and masked examples are not flagged."""
        flagged = self.nonfinite & mask
        return Raw(self.losses, self.norms, self.clip_factors, flagged, self.gradients, self.buffers, self.own_gradients)

    def without_sums(self) -> Raw:
        """The same without gradients, which another chunk's have been added to."""
        return Raw(self.losses, self.norms, self.clip_factors, self.nonfinite, {}, self.buffers)


class GraphCall:
    """Calls one graph with the program's parameters and buffers in place; chooses the backend once."""

    def __init__(self, joint: JointGraph, program: Program, backend: str) -> None:
        joint.module.recompile()
        self.joint = joint
        self.backend = resolve_backend(backend, joint, program)
        self.function: Callable[..., Any] = joint.module.forward  # not its call, which the user's hooks on all modules see
        if self.backend == "inductor":
            self.function = torch_private.compile_inductor(joint.fakes, inlined(joint))
        self.held = [owner_of(program, item.name) for item in joint.inputs if item.kind in ("parameter", "state")]

    def outputs(self, *tensors: Tensor) -> dict[tuple[str, str], Tensor]:
        """Outputs by kind and name for the tensors of a batch and of the step, in the order of the inputs.

        The graph holds its conversions of types already, so autocast around the call must not convert once more.
        """
        held = [owner._parameters[name] if name in owner._parameters else owner._buffers[name] for owner, name in self.held]
        with torch.no_grad(), without_autocast(tensors[0].device):
            values = self.function(*(t.detach() for t in held), *tensors)  # type: ignore[union-attr]
        named = zip(self.joint.outputs, values, strict=True)
        return own_memory({key: tensor for key, tensor in named if tensor is not None})


OWNED: Final = ("gradient", "buffer", "per_example_gradient")
"""Kinds of outputs that are added to or kept. What a batch of one returns as its own gradient is only read."""


def own_memory(outputs: dict[tuple[str, str], Tensor]) -> dict[tuple[str, str], Tensor]:
    """The outputs without two of those that are added to, or two numbers of one, in one place of memory.

    Parameters that are used alike (the two biases of a recurrent layer, of two layers that are added) have one gradient,
    which the graph computes once; whoever adds to one of them must not change the other. The gradient of a parameter whose sum
    is added to the losses is one number, expanded, and what is expanded cannot be added to.
    """
    seen: set[int] = set()
    for key, tensor in outputs.items():
        if key[0] not in OWNED:
            continue
        place = tensor.untyped_storage().data_ptr()
        is_expanded = any(step == 0 and size > 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True))
        if (place in seen or is_expanded) and tensor.numel():
            outputs[key] = tensor.clone()
        seen.add(place)
    return outputs


class Runner(GraphCall):
    """Calls one rewritten step."""

    def __init__(self, joint: JointGraph, program: Program, backend: str) -> None:
        super().__init__(joint, program, backend)
        self.random = has_draws(joint.graph.nodes)

    def __call__(self, tensors: Sequence[Tensor], mask: Tensor, max_grad_norm: Tensor) -> Raw:
        """Run the step on one chunk; `tensors` are the batch's, in order."""
        state = rng_state(tensors[0].device) if self.random else None
        raw = self.run(tensors, mask, max_grad_norm)
        if raw.own_gradients and not raw.gradients:  # a factor of 0 leaves the only example out, see `Raw.add_to`
            return raw.counting(mask)
        if not bool(raw.nonfinite.any()):
            return raw
        return self.without(raw, raw.nonfinite | ~mask, tensors, mask, max_grad_norm, state)

    def run(self, tensors: Sequence[Tensor], mask: Tensor, max_grad_norm: Tensor) -> Raw:
        """One call of the graph."""
        named = self.outputs(*tensors, mask, max_grad_norm)
        gradients = {name: v for (kind, name), v in named.items() if kind == "gradient"}
        own = {name: v for (kind, name), v in named.items() if kind == "own_gradient"}
        buffers = {name: v for (kind, name), v in named.items() if kind == "buffer"}
        losses, norms, factors, nonfinite = (named[k, ""] for k in ("losses", "norms", "clip_factors", "nonfinite"))
        return Raw(losses, norms, factors, nonfinite, gradients, buffers, own)

    def without(self, raw: Raw, bad: Tensor, tensors: Sequence[Tensor], mask: Tensor, max_grad_norm: Tensor,
                state: Any) -> Raw:  # fmt: skip
        """The same step with the bad examples' data replaced by a good one's, and masked out."""
        good = torch.nonzero(~bad).flatten()
        zeros = {name: torch.zeros_like(gradient) for name, gradient in (raw.gradients | raw.own_gradients).items()}
        flagged = raw.nonfinite & mask
        if len(good) == 0:
            return Raw(raw.losses, raw.norms, torch.zeros_like(raw.clip_factors), flagged, zeros, raw.buffers)
        source = torch.where(bad, good[0], torch.arange(len(bad), device=bad.device))
        dims = [item.dim for item in self.joint.inputs if item.kind in ("batch", "shared")]
        replaced = [t if d is None else t.index_select(d, source) for t, d in zip(tensors, dims, strict=True)]
        with restored_rng(state, tensors[0].device):
            again = self.run(replaced, mask & ~bad, max_grad_norm)
        gradients = zeros if bool(again.nonfinite.any()) else again.gradients
        return Raw(
            raw.losses,
            raw.norms,
            again.clip_factors,
            flagged | (again.nonfinite & mask),
            gradients,
            raw.buffers,
        )


def apply_buffers(program: Program, raw: Raw) -> None:
    """Write the new values of buffers (which do not depend on the batch) once per step."""
    if not raw.buffers:
        return
    buffers = {public_name(name): buffer for name, buffer in program.named_buffers()}
    with torch.no_grad():
        for name, new in raw.buffers.items():
            buffers[name].copy_(new)


def resolve_backend(backend: str, joint: JointGraph, program: nn.Module) -> str:
    """auto: inductor on a GPU, eager on a CPU (where compilation takes longer than most users wait)."""
    untraceable = [node.target for node in joint.graph.nodes if isinstance(node.target, (ExampleLoop, Copies))]
    if backend == "auto":
        on_gpu = any(parameter.is_cuda for parameter in program.parameters())
        return "inductor" if on_gpu and not untraceable else "eager"
    if backend == "inductor" and untraceable:
        why = "runs a copy of the model" if isinstance(untraceable[0], Copies) else "runs once"
        raise DPCompileError(
            f'backend="inductor" cannot compile {untraceable[0]!r}, which {why} per example; use backend="eager"'
        )
    return backend


def inlined(joint: JointGraph) -> torch.fx.GraphModule:
    """The graph with every kernel traced into ATen operations, for inductor to see."""

    class Inline(torch.fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            return super().call_function(TRACEABLE.get(target, target), args, kwargs)

    arguments = [node.meta["val"] for node in joint.graph.nodes if node.op == "placeholder"]
    with torch_private.tracing_context(joint.fakes), torch.no_grad():
        return torch_private.trace(lambda *args: Inline(joint.module).run(*args, enable_io_processing=False), arguments)


def owner_of(program: Program, name: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter or buffer, and its name there."""
    path = name if name.startswith((f"{program.loss_name}.", f"{SELECTION}.")) else f"model.{name}"
    owner, _, last = path.rpartition(".")
    return program.get_submodule(owner), last


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """No conversion of types by autocast on this device or the CPU; costs next to nothing where none is active."""
    active = [kind for kind in {"cpu", device.type} if torch.is_autocast_enabled(kind)]
    if not active:
        return contextlib.nullcontext()
    stack = contextlib.ExitStack()
    for kind in active:
        stack.enter_context(torch.autocast(kind, enabled=False))
    return stack


def rng_state(device: torch.device) -> Any:
    """The state of the random generators that a step may use."""
    return (torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None)


@contextlib.contextmanager
def restored_rng(state: Any, device: torch.device) -> Iterator[None]:
    """Draw from this state again; the generators then stand where the first run left them."""
    if state is not None:
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], device)
    yield
