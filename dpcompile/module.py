"""`dpcompile(model, ...)` and the module that it returns."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from dpcompile.arguments import check_no_mask, clip_norm, hardware_row, resolved, step_norm, zero_gradient
from dpcompile.batch import Batch, checked_mask, chunks, flatten_batch, traced_batch
from dpcompile.certificate import Certificate, certificate
from dpcompile.clip.kind import Kind
from dpcompile.clip.rule import Rule, kind_of, rule_of
from dpcompile.cost.hardware import Hardware
from dpcompile.cotangents import cotangent_losses
from dpcompile.criteria import turns
from dpcompile.criteria.choices import Choice
from dpcompile.drop_in import DropIn, Pending
from dpcompile.forecast.forecast import bytes_of
from dpcompile.guards import Traces, guard_key
from dpcompile.ir.errors import InvalidInput, StrategyError
from dpcompile.ir.printer import format_graph
from dpcompile.losses import make_program, public_name
from dpcompile.per_example import per_example_gradients
from dpcompile.pipeline import Compiled, Options, Stage, admit_size, compile_step
from dpcompile.plan.plan import Plan
from dpcompile.plan.saved import SavedPlan
from dpcompile.report.text import Report
from dpcompile.runtime import BACKENDS, GraphCall, Raw, apply_buffers
from dpcompile.step import Step, empty_step
from dpcompile.verify import Verification, verify

Loss = nn.Module | Callable[..., Tensor] | None


def dpcompile(
    model: nn.Module,
    loss: Loss = None,
    *,
    max_grad_norm: float | None = None,
    clipping: str | Kind = "flat",
    strategy: str | Mapping[str, str | tuple[str, str]] = "auto",
    schedule: str = "auto",
    plan: Plan | SavedPlan | str | Path | None = None,
    microbatch: int | None = None,
    hardware: str | Hardware | None = None,
    memory_budget: str | float | None = None,
    backend: str = "auto",
    batch_dim: Any = 0,
    example_batch: tuple[Any, ...] | None = None,
    check_examples: bool = True,
    passes: Sequence[Choice] = (),
) -> PrivateModule:
    """Compile a model and a loss into a step that returns per-example norms and the sum of clipped gradients.

    loss: `loss(model, *batch, **kwargs) -> f[B]`; a criterion of torch.nn, applied to (model(*batch[:-1]), batch[-1])
    and reduced per example; or None if the model returns its per-example losses (f[B], or an object with .loss).
    max_grad_norm: clip norm C > 0; 1 by default. clipping: how the factors come from the norms: "flat" (min(1, C / n)),
    "automatic", "normalized", "psac", "global", "per-layer", or an object: Automatic(stability=), PSAC(r=), Global(threshold=),
    GroupWise({name or glob: C_k}), which says the clip norms itself; see dpcompile.clip.kinds.
    strategy: "auto"; "autotune" (ways that are predicted to take at most twice the best are measured here, and what was found is
    kept); one norm strategy; {parameter or glob: norm or (norm, sum)}; or a method of the literature, which says the schedule
    too: "naive", "multi", "crb", "crb-nd", "crb-unfold", "reweight", "ghost", "mixed-ghost", "bookkeep"; see
    dpcompile.plan.methods. schedule: "auto", "one-pass", "two-pass" (backward runs a second time, on losses times clip
    factors) or "microbatch" (chunks of at most `microbatch` examples, sums added). plan: a plan of another module, or the file
    that one was saved to; it takes the place of strategy and schedule, and must fit the model. hardware: a name in HARDWARE or
    a row, for planning; by default what `python -m dpcompile calibrate` has measured, or the nearest row of the table.
    memory_budget: bytes, or a text such as "2 GB", that the step may need beyond model and batch; larger batches than the
    first run in chunks. backend: "eager", "inductor" or "auto" (inductor on a GPU). batch_dim: where the examples lie, an int
    or a pytree prefix with None for shared tensors. example_batch: trace now instead of at the first call. check_examples:
    whether tracing also checks on numbers, with a few examples made from the batch, that none of them influences another.
    passes: PrePruning(...) and GradientDropping(...), which train a part of the parameters only.

    Raises InvalidInput and StrategyError here; BudgetError and the refusals of tracing and analysis come with the first
    call.
    """
    module = PrivateModule(model, loss, max_grad_norm, clipping, strategy, schedule, plan, microbatch, hardware,
                           memory_budget, backend, batch_dim, check_examples, passes)  # fmt: skip
    if example_batch is not None:
        with turns.pruned_if_done(module.chooser):
            module.compiled(traced_batch(example_batch, batch_dim), trains=False)
    return module


class PrivateModule(nn.Module):
    """A model with its private step. Shares the model's parameters; its state_dict is the model's own."""

    def __init__(self, model: nn.Module, loss: Loss, max_grad_norm: float | None, clipping: str | Kind, strategy: Any,
                 schedule: str, plan: Plan | SavedPlan | str | Path | None, microbatch: int | None,
                 hardware: str | Hardware | None, memory_budget: str | float | None, backend: str, batch_dim: Any,
                 check_examples: bool = True, passes: Sequence[Choice] = ()) -> None:  # fmt: skip
        super().__init__()
        self.program = make_program(model, loss)
        kind = kind_of(clipping)
        if backend not in BACKENDS:
            raise StrategyError(f"backend={backend!r} does not exist; use one of {', '.join(BACKENDS)}")
        self.max_grad_norm, self.batch_dim = clip_norm(max_grad_norm, kind), batch_dim
        asked = resolved(plan, strategy, schedule, microbatch, kind)
        if strategy == "autotune" and hardware is not None:
            raise StrategyError('strategy="autotune" measures this machine; leave hardware= out, or use strategy="auto"')
        row, note = hardware_row(hardware, model)
        self.options = Options(asked.strategy, asked.schedule, asked.microbatch, row, backend, asked.plan,
                               None if memory_budget is None else bytes_of(memory_budget), note, check_examples,
                               kind)  # fmt: skip
        self.rule()  # groups that do not fit the model are refused here
        self.chooser = turns.chooser_of(passes, self.program, batch_dim)  # last, since it prunes the weights
        self.steps: Traces[Compiled] = Traces()
        self.gradients: Traces[GraphCall] = Traces()
        self.pending: weakref.ref[Pending] | None = None  # of all drop-ins together

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
        norm = step_norm(self.max_grad_norm, compiled.outlook.source.rule)
        limit = torch.as_tensor(norm, dtype=torch.float64, device=flat.tensors[0].device)
        total, raws, program, runner, admitted = dict[str, Tensor](), list[Raw](), self.program, compiled.runner, 0
        for tensors, part in chunks(flat, counted, compiled.plan.microbatch):
            if len(part) != admitted:
                admitted = len(part)
                admit_size(compiled, program, flat, admitted)
            raw = runner(tensors, part, limit)
            raw.add_to(total)
            raws.append(raw.without_sums())
            del raw  # the next chunk must not run beside this one's sums
        apply_buffers(self.program, raws[0])
        return self.joined(raws, total, counted)

    def compiled(self, batch: Batch, trains: bool = True) -> Compiled:
        """The compiled step for everything about this batch but its size; traced anew when a guard changed."""
        turns.check_batch(self.chooser, batch, trains)
        backend = ("backend", self.options.backend)
        return self.steps.get(
            lambda: (*guard_key(self.program, batch), backend), lambda: compile_step(self.program, batch, self.options)
        )

    def joined(self, raws: list[Raw], total: dict[str, Tensor], counted: Tensor) -> Step:
        """The chunks of one step together: per-example results concatenated, beside the sum of the chunks' sums."""
        fields = ("losses", "norms", "clip_factors", "nonfinite")
        first = {f: getattr(raws[0], f) if len(raws) == 1 else torch.cat([getattr(r, f) for r in raws]) for f in fields}
        return Step(grads=self.complete(total), counted=counted, kind=self.kind, max_grad_norm=float(self.max_grad_norm),
                    parts=turns.trained_by(self.chooser), **first)  # fmt: skip

    def complete(self, grads: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of all trainable parameters in the model's order; zero for those without a gradient path."""
        return {name: grads[name] if name in grads else zero_gradient(p) for name, p in self.trainable()}

    def reselect(self, released: Mapping[str, Tensor] | None = None) -> bool:
        """Say that a step was taken, with noise and update; whether GradientDropping chose anew. Nothing is traced for it.
        released: {parameter: noisy gradient}, for that criterion. Refused behind `make_private`, which does this by itself.
        """
        return turns.advance(self.chooser, released)

    @property
    def kind(self) -> Kind:
        """How gradients are clipped."""
        return self.options.clipping

    def rule(self) -> Rule:
        """The same for the parameters that are trainable now."""
        return rule_of(self.kind, [name for name, _ in self.trainable()])

    @property
    def clip_groups(self) -> dict[str, tuple[tuple[str, ...], float]]:
        """{group: (parameters, clip norm C_k)} in the order of the columns of `clip_factors`; one group "*" where one factor
        clips the whole gradient."""
        rule, limit = self.rule(), float(self.max_grad_norm)
        parts = rule.parts([name for name, _ in self.trainable()])
        return {group.name: (group.parameters, group.share * limit) for group in parts}

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Trainable parameters of model and loss by their public names."""
        for name, parameter in self.program.named_parameters():
            if parameter.requires_grad:
                yield public_name(name), parameter

    def empty_step(self, batch: Batch) -> Step:
        """A step without examples: empty vectors, zero gradients; nothing is traced."""
        limit = step_norm(self.max_grad_norm, self.rule())
        return empty_step(self.complete({}), self.rule(), self.kind, limit, batch.tensors[0].device,
                          turns.trained_by(self.chooser))  # fmt: skip

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
        found = self.ready()
        notes = (*found.notes, *turns.notes(self.chooser))
        return Report(found.plan, found.unused, notes, found.runner.backend, float(self.max_grad_norm), found.outlook)

    def certificate(self, assumed: tuple[str, ...] = ()) -> Certificate:
        """What was shown of the latest step, by which checks, and what was assumed (`assumed` too); text, or `.json()`."""
        return certificate(self.ready(), self.sensitivity(), assumed, turns.document(self.chooser))

    def print_readable(self, print_output: bool = True) -> str:
        """The rewritten graph as text, grouped by module; printed unless print_output is False."""
        text = format_graph(self.ready().joint, places=True)
        if print_output:
            print(text)
        return text

    def sensitivity(self) -> float:
        """How much `grads` can change in L2 norm when one example is added or removed: the clip norm C, for every kind of
        clipping; with groups it is sqrt(sum C_k^2), where C_k bounds the part of the gradient that belongs to group k.

        Sums, not means: divide by a public constant (never by the drawn batch size) after adding noise.
        """
        return float(self.max_grad_norm)

    def per_example_gradients(self, *batch: Any, mask: Tensor | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """{name: f[B, *shape]}: every example's own gradient, unclipped (NOT private)."""
        check_no_mask(mask)
        flat = flatten_batch(batch, kwargs, self.batch_dim)
        return per_example_gradients(self.program, self.trainable(), flat, self.options, self.gradients)

    def as_module(self, loss_reduction: str = "mean", output_dim: Any = 0) -> DropIn:
        """A drop-in for the model: `out = module(x); criterion(out, y).backward()` leaves the clipped SUM in p.grad.

        loss_reduction: whether the criterion outside is a "mean" over the batch (the incoming gradient is then
        multiplied by B) or a "sum". output_dim: the example axis of the outputs, an int or a pytree prefix. The loss
        is outside and NOT verified: see dpcompile.drop_in. The loss given to dpcompile is not used.
        """
        return DropIn(self, self.of_cotangents(), loss_reduction, output_dim)

    def of_cotangents(self) -> PrivateModule:
        """The same for a loss outside, whose gradient with respect to the outputs takes the loss's place."""
        inner = PrivateModule(self.model, cotangent_losses, None, self.kind, "auto", "auto", None, None,
                              self.options.hardware, None, self.options.backend, self.batch_dim)  # fmt: skip
        inner.max_grad_norm = self.max_grad_norm
        inner.options, inner.chooser = self.options, self.chooser
        turns.attach(self.chooser, inner.program)
        return inner

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
        """Load into the model; what was pruned is zero again."""
        return turns.loaded(self.chooser, self.model.load_state_dict(*args, **kwargs))

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles wait for no backward."""
        return {**self.__dict__, "pending": None}
