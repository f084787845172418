"""`dpcompile(model, ...)` and the module that it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from dpcompile.batch import Batch, checked_mask, chunks, flatten_batch
from dpcompile.cost.hardware import HARDWARE, Hardware
from dpcompile.cotangents import cotangent_losses
from dpcompile.drop_in import DropIn
from dpcompile.guards import Traces, guard_key
from dpcompile.ir.errors import InvalidInput, StrategyError
from dpcompile.ir.printer import format_graph
from dpcompile.losses import make_program, public_name
from dpcompile.per_example import per_example_gradients
from dpcompile.pipeline import Compiled, Options, Stage, compile_step
from dpcompile.plan.plan import Plan
from dpcompile.report.text import Report
from dpcompile.runtime import BACKENDS, GraphCall, Raw
from dpcompile.step import Step
from dpcompile.verify import Verification, verify

Loss = nn.Module | Callable[..., Tensor] | None


def dpcompile(
    model: nn.Module,
    loss: Loss = None,
    *,
    max_grad_norm: float = 1.0,
    clipping: str = "flat",
    strategy: str | Mapping[str, str | tuple[str, str]] = "auto",
    schedule: str = "auto",
    plan: Plan | None = None,
    microbatch: int | None = None,
    hardware: str | Hardware | None = None,
    backend: str = "auto",
    batch_dim: Any = 0,
    example_batch: tuple[Any, ...] | None = None,
) -> PrivateModule:
    """Compile a model and a loss into a step that returns per-example norms and the sum of clipped gradients.

    loss: `loss(model, *batch, **kwargs) -> f[B]`; a criterion of torch.nn, applied to (model(*batch[:-1]), batch[-1])
    and reduced per example; or None if the model returns its per-example losses (f[B], or an object with .loss).
    max_grad_norm: clip norm C > 0. strategy: "auto", one norm strategy, or {parameter name or glob: norm or (norm, sum)}.
    schedule: "auto", "one-pass" or "microbatch" (chunks of at most `microbatch` examples, sums added). hardware: a name
    in HARDWARE or a row, for planning. backend: "eager", "inductor" or "auto" (inductor on a GPU). batch_dim: where the
    examples lie, an int or a pytree prefix with None for shared tensors. example_batch: trace now instead of at the
    first call.

    Raises InvalidInput and StrategyError here; the refusals of tracing and analysis come with the first call.
    """
    module = PrivateModule(
        model,
        loss,
        max_grad_norm,
        clipping,
        strategy,
        schedule,
        plan,
        microbatch,
        hardware,
        backend,
        batch_dim,
    )
    if example_batch is not None:
        module.compiled(flatten_batch(tuple(example_batch), {}, batch_dim))
    return module


class PrivateModule(nn.Module):
    """A model with its private step. Shares the model's parameters; its state_dict is the model's own."""

    def __init__(self, model: nn.Module, loss: Loss, max_grad_norm: float, clipping: str, strategy: Any, schedule: str,
                 plan: Plan | None, microbatch: int | None, hardware: str | Hardware | None, backend: str,
                 batch_dim: Any) -> None:  # fmt: skip
        super().__init__()
        self.program = make_program(model, loss)
        if clipping != "flat":
            raise StrategyError(f'clipping={clipping!r} does not exist; use clipping="flat"')
        if backend not in BACKENDS:
            raise StrategyError(f"backend={backend!r} does not exist; use one of {', '.join(BACKENDS)}")
        self.max_grad_norm = positive(max_grad_norm)
        self.microbatch = chunk_size(schedule, microbatch)
        self.batch_dim = batch_dim
        wanted = plan.strategies() if plan is not None else strategy
        row = hardware if isinstance(hardware, Hardware) else hardware_row(hardware, model)
        self.options = Options(wanted, schedule, self.microbatch, row, backend)
        self.steps: Traces[Compiled] = Traces()
        self.gradients: Traces[GraphCall] = Traces()

    @property
    def model(self) -> nn.Module:
        """The user's model."""
        return self.program.model

    def forward(self, *batch: Any, mask: Tensor | None = None, **kwargs: Any) -> Step:
        """One private step on a batch; `mask` bool[B] says which examples count (all by default)."""
        flat = flatten_batch(batch, kwargs, self.batch_dim)
        counted = checked_mask(mask, flat)
        if flat.size == 0:
            return self.empty_step(flat)
        return self.run(self.compiled(flat), flat, counted)

    def run(self, compiled: Compiled, flat: Batch, counted: Tensor) -> Step:
        """One step on a batch with at least one example, chunk by chunk; `counted` bool[B]."""
        limit = torch.as_tensor(positive(self.max_grad_norm), dtype=torch.float64, device=flat.tensors[0].device)
        raws = [compiled.runner(tensors, part, limit) for tensors, part in chunks(flat, counted, self.microbatch)]
        self.apply_buffers(raws[0])
        return self.joined(raws)

    def compiled(self, batch: Batch) -> Compiled:
        """The compiled step for everything about this batch but its size; traced anew when a guard changed."""
        key = (*guard_key(self.program, batch), ("backend", self.options.backend))
        return self.steps.get(key, lambda: compile_step(self.program, batch, self.options))

    def joined(self, raws: list[Raw]) -> Step:
        """The chunks of one step together; sums are added, per-example results concatenated."""
        grads = dict(raws[0].gradients)
        for raw in raws[1:]:
            for name, gradient in raw.gradients.items():
                grads[name] = grads[name] + gradient
        fields = ("losses", "norms", "clip_factors", "nonfinite")
        first = {f: getattr(raws[0], f) if len(raws) == 1 else torch.cat([getattr(r, f) for r in raws]) for f in fields}
        return Step(first["losses"], first["norms"], first["clip_factors"], self.complete(grads), first["nonfinite"])

    def complete(self, grads: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of all trainable parameters in the model's order; zero for those without a gradient path."""
        return {name: grads[name] if name in grads else zero_gradient(p) for name, p in self.trainable()}

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Trainable parameters of model and loss by their public names."""
        for name, parameter in self.program.named_parameters():
            if parameter.requires_grad:
                yield public_name(name), parameter

    def empty_step(self, batch: Batch) -> Step:
        """A step without examples: empty vectors, zero gradients; nothing is traced."""
        parameters = dict(self.trainable())
        dtype = next((torch.promote_types(p.dtype, torch.float32) for p in parameters.values()), torch.float32)
        empty = torch.zeros(0, dtype=dtype, device=batch.tensors[0].device)
        return Step(
            empty,
            empty.clone(),
            empty.clone(),
            self.complete({}),
            torch.zeros(0, dtype=torch.bool, device=empty.device),
        )

    def apply_buffers(self, raw: Raw) -> None:
        """Write the new values of buffers (which do not depend on the batch) once per step."""
        buffers = {public_name(name): buffer for name, buffer in self.program.named_buffers()}
        with torch.no_grad():
            for name, new in raw.buffers.items():
                buffers[name].copy_(new)

    def backward(self, *batch: Any, mask: Tensor | None = None, **kwargs: Any) -> Step:
        """The same step, its gradients added into `p.grad` in the parameters' dtypes, as autograd would."""
        step = self(*batch, mask=mask, **kwargs)
        for name, parameter in self.trainable():
            gradient = step.grads[name].to(parameter.dtype)
            parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)
        return step

    def ready(self) -> Compiled:
        """The latest compiled step."""
        if self.steps.latest is None:
            raise InvalidInput("nothing is compiled yet; call the module on a batch, or give dpcompile example_batch=")
        return self.steps.latest

    @property
    def graph_module(self) -> fx.GraphModule:
        """The rewritten graph as a torch.fx.GraphModule."""
        return self.ready().joint.module

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The graph after every pass."""
        return self.ready().stages

    @property
    def plan(self) -> Plan:
        """The plan of the latest compiled step."""
        return self.ready().plan

    def report(self) -> Report:
        """What was chosen for each parameter, at which predicted cost, and why not the others."""
        compiled = self.ready()
        return Report(compiled.plan, compiled.unused, compiled.notes, compiled.runner.backend, float(self.max_grad_norm))

    def print_readable(self, print_output: bool = True) -> str:
        """The rewritten graph as text, grouped by module; printed unless print_output is False."""
        text = format_graph(self.ready().joint, places=True)
        if print_output:
            print(text)
        return text

    def sensitivity(self) -> float:
        """How much `grads` can change in L2 norm when one example is added or removed: the clip norm.

        Sums, not means: divide by a public constant (never by the drawn batch size) after adding noise.
        """
        return float(self.max_grad_norm)

    def per_example_gradients(self, *batch: Any, mask: Tensor | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """{name: f[B, *shape]}: every example's own gradient, unclipped (NOT private)."""
        check_no_mask(mask)
        flat = flatten_batch(batch, kwargs, self.batch_dim)
        return per_example_gradients(self.program, self.trainable(), flat, self.options.backend, self.gradients)

    def as_module(self, loss_reduction: str = "mean", output_dim: Any = 0) -> DropIn:
        """A drop-in for the model: `out = module(x); criterion(out, y).backward()` leaves the clipped SUM in p.grad.

        loss_reduction: whether the criterion outside is a "mean" over the batch (the incoming gradient is then
        multiplied by B) or a "sum". output_dim: the example axis of the outputs, an int or a pytree prefix. The loss
        is outside and NOT verified: see dpcompile.drop_in. The loss given to dpcompile is not used.
        """
        inner = PrivateModule(self.model, cotangent_losses, self.max_grad_norm, "flat", "auto", "auto", None, None,
                              self.options.hardware, self.options.backend, self.batch_dim)  # fmt: skip
        inner.options, inner.microbatch = self.options, self.microbatch
        return DropIn(self, inner, loss_reduction, output_dim)

    def verify(
        self, *batch: Any, examples: int = 4, strict: bool = False, mask: Tensor | None = None, **kwargs: Any
    ) -> Verification:
        """Compare the step with a plain loop over a few single examples, and check independence on them."""
        check_no_mask(mask)
        return verify(self, flatten_batch(batch, kwargs, self.batch_dim), examples, strict)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters of model and loss by the names that `grads` uses."""
        for name, parameter in self.program.named_parameters("", recurse, remove_duplicate):
            yield ".".join(part for part in (prefix, public_name(name)) if part), parameter

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own state_dict, without a prefix."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load into the model."""
        return self.model.load_state_dict(*args, **kwargs)


def positive(max_grad_norm: Any) -> float:
    """The clip norm as a positive finite number."""
    number = float(max_grad_norm) if isinstance(max_grad_norm, (int, float, Tensor)) else float("nan")
    if not (number > 0 and number < float("inf")):
        raise InvalidInput(f"max_grad_norm must be a positive finite number, got {max_grad_norm!r}")
    return number


def check_no_mask(mask: Tensor | None) -> None:
    """Only a step takes a mask."""
    if mask is not None:
        raise InvalidInput("only a step takes a mask; leave the masked examples out of the batch here")


def chunk_size(schedule: str, microbatch: int | None) -> int | None:
    """How many examples a chunk holds at most; None for the whole batch at once."""
    if schedule not in ("auto", "one-pass", "microbatch"):
        raise StrategyError(f"schedule={schedule!r} does not exist; use auto, one-pass or microbatch")
    if microbatch is not None and (not isinstance(microbatch, int) or isinstance(microbatch, bool) or microbatch < 1):
        raise InvalidInput(f"microbatch must be a positive integer, got {microbatch!r}")
    if schedule == "one-pass" and microbatch is not None:
        raise StrategyError('schedule="one-pass" takes the whole batch at once; use schedule="microbatch" for chunks')
    return (microbatch or 1) if schedule == "microbatch" else microbatch


def hardware_row(name: str | None, model: nn.Module) -> Hardware:
    """The named row, or the one for where the model lives."""
    if name is None:
        name = "h200" if any(parameter.is_cuda for parameter in model.parameters()) else "cpu"
    if name not in HARDWARE:
        raise InvalidInput(f"hardware {name!r} is not in the table; use one of {', '.join(HARDWARE)} or a Hardware row")
    return HARDWARE[name]


def zero_gradient(parameter: nn.Parameter) -> Tensor:
    """Zeros in the dtype of sums."""
    return torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))
