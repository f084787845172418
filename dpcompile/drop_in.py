"""A private drop-in for a model: the loss stays outside, and `backward()` leaves the clipped sum in `p.grad`.

    module = private.as_module(loss_reduction="mean")
    out = module(x)
    criterion(out, y).backward()       # p.grad += sum over examples of clip_factor * gradient
    module.last_step.norms             # f32[B] of the last backward

Forward runs the model itself, without autograd. Backward receives the gradient of the loss with respect to
the outputs and runs the compiled step of `dpcompile.cotangents` from the same state of the random
generators and buffers. Its per-example gradients are those of the outside loss exactly when that loss is a
sum (or mean) over examples of terms that depend on one example's output each.

NOT verified: the loss is never seen. A loss that looks at several examples at once (a contrastive loss, a
mean over all tokens of a ragged batch, division by a count that depends on the batch) makes what one
example sends back depend on others, and then the sum is not bounded by the clip norm under add/remove.
Whatever depends on the data must go through the module's output: what submodules and methods compute from the
parameters (`module.encode(x)`) is refused while gradients are enabled. `module.model`, and what `module.modules()`
gives, are the model's own, and what is differentiated through them is not clipped. Where that matters, give the loss
to `dpcompile` and call its step.

Inputs, parameters and buffers must not change between forward and backward. Torch counts writes to a tensor, but not
those through `.data`, through a NumPy array on the same memory or under inference mode: such a write is not seen.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dpcompile.batch import Batch, flatten_batch
from dpcompile.certificate import Certificate
from dpcompile.cotangents import check_same_draws, cotangent_batch, example_axes
from dpcompile.ir.errors import InvalidInput
from dpcompile.parts import StandIn
from dpcompile.pipeline import Compiled, Options
from dpcompile.recall import Recall
from dpcompile.report.text import Report
from dpcompile.step import Step
from dpcompile.torch_private import flatten
from dpcompile.trees import find_tensors, with_tensors

NOT_VERIFIED = "the loss is outside of the module and not verified: it must be a sum or mean of one term per example"
REDUCTIONS = ("mean", "sum")


class PrivateSteps(Protocol):
    """What the drop-in needs of a PrivateModule."""

    max_grad_norm: Any
    batch_dim: Any
    options: Options
    pending: weakref.ref[Pending] | None

    @property
    def model(self) -> nn.Module: ...
    def compiled(self, batch: Batch) -> Compiled: ...
    def run(self, compiled: Compiled, flat: Batch, counted: Tensor) -> Step: ...
    def empty_step(self, batch: Batch) -> Step: ...
    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def report(self) -> Report: ...
    def certificate(self, assumed: tuple[str, ...] = ()) -> Certificate: ...


@dataclasses.dataclass(eq=False)
class Pending:
    """One forward that waits for its backward; dies with the autograd graph of its outputs.

    compiled: None for an empty batch. outputs: the floating-point ones, detached; dims: their example axes.
    """

    module: DropIn
    compiled: Compiled | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor]
    dims: tuple[int, ...]
    recall: Recall
    done: bool = False


class ClippedBackward(torch.autograd.Function):
    """Outputs as they were computed; the gradient of every parameter is its clipped sum."""

    @staticmethod
    def forward(ctx: Any, pending: Pending, outputs: list[Tensor], *parameters: Tensor) -> tuple[Tensor, ...]:
        """Hand the outputs on."""
        ctx.pending = pending
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """Clipped sums in the order of the parameters, in their dtypes."""
        pending: Pending = ctx.pending
        step = pending.module.step_of(pending, cotangents)
        return (None, None, *pending.module.delivered(step))


class DropIn(StandIn):
    """The model with a private backward; names of parameters, buffers and state are the model's own.

    Without autograd (`torch.no_grad()`) it is the model. One forward per backward. `last_step` holds losses
    (here inner products of outputs and cotangents), norms, clip factors and flags of the last backward, but
    no `grads`.
    """

    inner: PrivateSteps
    private: PrivateSteps

    def __init__(self, private: PrivateSteps, inner: PrivateSteps, loss_reduction: str, output_dim: Any) -> None:
        super().__init__()
        if loss_reduction not in REDUCTIONS:
            names = ", ".join(REDUCTIONS)
            raise InvalidInput(f"loss_reduction={loss_reduction!r} does not exist; use one of {names}")
        self.model = private.model
        self.__dict__.update(private=private, inner=inner)  # not submodules: the model is one already
        self.loss_reduction, self.output_dim = loss_reduction, output_dim
        self.last_step: Step | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output; its autograd graph ends in the private backward."""
        parameters = [parameter for _, parameter in self.inner.trainable()]
        if not torch.is_grad_enabled() or not parameters:
            return self.model(*args, **kwargs)
        self.check_free()
        given = [leaf for leaf in flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        check_detached(given)
        size = flatten_batch(args, kwargs, self.prefix(args)).size
        recall = Recall(self.model, given)
        with torch.no_grad():
            returned = self.model(*args, **kwargs)
        recall.keep_changed_buffers()
        outputs = differentiable(find_tensors(returned))
        dims = example_axes(outputs, size, self.output_dim)
        compiled = self.compiled_for(cotangent_batch(args, kwargs, outputs, dims, self.prefix(args))) if size else None
        recall.keep_left_buffers()
        detached = [tensor.detach() for tensor in outputs]
        pending = Pending(self, compiled, args, kwargs, detached, dims, recall)
        own = {id(tensor) for tensor in (*given, *self.model.parameters(), *self.model.buffers())}
        fresh = [d if id(tensor) in own else tensor for d, tensor in zip(detached, outputs, strict=True)]
        tracked = ClippedBackward.apply(pending, fresh, *parameters)  # type: ignore[no-untyped-call]
        self.private.pending = weakref.ref(pending)
        return with_tensors(returned, dict(zip(map(id, outputs), tracked, strict=True)))

    def check_free(self) -> None:
        """Refuse a second forward, of this drop-in or another one, while the outputs of the last one can be differentiated."""
        waiting = self.private.pending() if self.private.pending is not None else None
        if waiting is not None and not waiting.done:
            raise InvalidInput(
                "a second forward before the backward of the first: every example would be clipped once per "
                "forward and contribute several times the clip norm. Call backward first; evaluate under "
                "torch.no_grad(); or delete the first output if it is not needed"
            )

    def prefix(self, args: tuple[Any, ...]) -> Any:
        """batch_dim for the model's own arguments: a tuple may name the target too, which stays outside."""
        dim = self.private.batch_dim
        return dim[: len(args)] if isinstance(dim, tuple) and not isinstance(dim[-1], dict) else dim

    def compiled_for(self, batch: Batch) -> Compiled:
        """The compiled step; random models run in eager, which draws what the model itself draws."""
        compiled = self.inner.compiled(batch)
        if not compiled.runner.random:
            return compiled
        if compiled.plan.at_a_time(batch.size) < batch.size:
            raise InvalidInput(
                f"the plan takes {compiled.plan.microbatch} examples at a time and draws for each such chunk, but forward drew "
                "for the whole batch; leave microbatch= and memory_budget= out, in place of a method for single examples take "
                'another (strategy="auto"), or call the step of dpcompile(model, loss=...)'
            )
        if compiled.runner.backend == "inductor":
            self.inner.options = dataclasses.replace(self.inner.options, backend="eager")
            compiled = self.inner.compiled(batch)
        return compiled

    def step_of(self, pending: Pending, cotangents: tuple[Tensor, ...]) -> Step:
        """The private step that belongs to a forward, for these cotangents."""
        if pending.done:
            raise InvalidInput(
                "a second backward of one forward: every example would contribute twice the clip norm. Run "
                "forward again, or add the losses and call backward once"
            )
        pending.recall.check_unchanged()
        pending.done = True
        size = pending.outputs[0].shape[pending.dims[0]]
        cotangents = tuple(c * size if self.loss_reduction == "mean" else c for c in cotangents)
        prefix = self.prefix(pending.args)
        flat = cotangent_batch(pending.args, pending.kwargs, cotangents, pending.dims, prefix)
        counted = self.counted(size, flat.tensors[0].device)
        if pending.compiled is None:
            step = self.inner.empty_step(flat)
        else:
            self.inner.max_grad_norm = self.private.max_grad_norm
            with pending.recall.restored():
                step = self.inner.run(pending.compiled, flat, counted)
            if pending.compiled.runner.random:
                check_same_draws(step.losses, pending.outputs, cotangents, pending.dims)
        self.last_step = dataclasses.replace(step, grads={})
        return step

    def counted(self, size: int, device: torch.device) -> Tensor:
        """bool[size]: the examples that count; all of them."""
        return torch.ones(size, dtype=torch.bool, device=device)

    def delivered(self, step: Step) -> tuple[Tensor | None, ...]:
        """What autograd adds into p.grad, in the order of the parameters and in their dtypes."""
        return tuple(step.grads[name].to(parameter.dtype) for name, parameter in self.inner.trainable())

    def report(self) -> Report:
        """What was chosen, and that the loss is not verified."""
        report = self.inner.report()
        return dataclasses.replace(report, notes=(*report.notes, NOT_VERIFIED))

    def certificate(self) -> Certificate:
        """What was shown of the step behind `backward()`; that the loss is not verified is among the assumptions."""
        return self.inner.certificate((NOT_VERIFIED,))


def differentiable(outputs: list[Tensor]) -> list[Tensor]:
    """The floating-point outputs; refuses complex ones, whose gradient would be lost."""
    if any(tensor.is_complex() for tensor in outputs):
        raise InvalidInput(
            "the model returns a complex tensor, and the private backward takes gradients of real outputs only; return "
            "torch.view_as_real(z), or give the loss to dpcompile and call its step"
        )
    return [tensor for tensor in outputs if tensor.is_floating_point()]


def check_detached(tensors: list[Tensor]) -> None:
    """Refuse inputs that wait for a gradient, which would silently never come."""
    if any(tensor.requires_grad for tensor in tensors):
        raise InvalidInput(
            "an input requires grad, but the private backward ends at the module's inputs; detach() it, or "
            "compile the whole model"
        )
