"""Compare a compiled step with the plain loop over single examples, and check that examples are independent.

The loop is the user's own program, one example at a time, by ordinary autograd: in a float64 copy where the
model can be copied and runs in float64, else in its own types. The step runs as configured, chunks and
backend included.

Models that draw random numbers cannot draw the same numbers for a batch and for its examples one by one. For
them step and loop both take one example at a time, every random operation starting from the same seed, so
that both see the same masks; inductor draws by a generator of its own, so the same graph runs in eager.
Examples together are then judged on the captured graph alone, with every example's draws held fixed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dpcompile.analysis.company import COPIES, RUNS
from dpcompile.analysis.example_axis import example_axis
from dpcompile.analysis.examples import draw_examples, example_dims, take
from dpcompile.analysis.independence import DRAWS, check_independence
from dpcompile.analysis.loop import Factors, Loop, as_batch, in_float64, loop, singles, wide
from dpcompile.analysis.plain_run import deviation, error_of_losses, finite, norm
from dpcompile.analysis.rounding import whole_tolerance
from dpcompile.batch import Batch
from dpcompile.capture import capture
from dpcompile.ir.errors import DPCompileError, InvalidInput, VerificationError
from dpcompile.ir.randomness import equal_draws, has_draws
from dpcompile.losses import Program
from dpcompile.runtime import Runner
from dpcompile.step import Step

SHOWN = 6  # parameters in the printed table


@dataclass(frozen=True)
class Verification:
    """Result of a comparison; all errors are relative, and `ok` says that none is above `tolerance`.

    losses: largest error of a loss, relative to the larger of 1 and the loss. norms: largest error of a norm,
    relative to the largest norm. gradients: per parameter, the norm of the error of the clipped sum, relative
    to the largest clipped gradient over all parameters. independence: None if it holds, else what contradicts
    it. examples: how many were compared. reference: what the loop ran on. notes: what could be compared in
    part only, and why.
    """

    ok: bool
    losses: float
    norms: float
    gradients: dict[str, float]
    independence: str | None
    examples: int
    tolerance: float
    reference: str
    notes: tuple[str, ...] = ()

    def worst(self) -> tuple[str, float]:
        """The parameter with the largest error."""
        return max(self.gradients.items(), key=lambda item: item[1], default=("", 0.0))

    def __str__(self) -> str:
        word = "agrees" if self.ok else "DISAGREES"
        lines = [f"the compiled step {word} with a loop over {self.examples} examples ({self.reference})"]
        lines += [f"  {name:<32} {error:.1e}" for name, error in (("losses", self.losses), ("norms", self.norms))]
        ordered = sorted(self.gradients.items(), key=lambda item: -item[1])
        lines += [f"  {'sum of ' + name:<32} {error:.1e}" for name, error in ordered[:SHOWN]]
        if len(ordered) > SHOWN:
            lines.append(f"  {f'{len(ordered) - SHOWN} more parameters':<32} at most {ordered[SHOWN][1]:.1e}")
        lines.append(f"  {'tolerance':<32} {self.tolerance:.1e}")
        lines.append(f"  examples are independent: {'yes' if self.independence is None else self.independence}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def verify(private: Any, batch: Batch, examples: int, strict: bool) -> Verification:
    """Verify a private module on the first few examples of a batch.

    Leaves p.grad, buffers, module attributes and random state as they were. Raises VerificationError if
    `strict` and something is off; refusals of compilation come as usual.
    """
    if examples < 1:
        raise InvalidInput(f"examples must be at least 1, got {examples}")
    count = min(examples, batch.size)
    devices = list({t.device.index or 0 for t in (*batch.tensors, *private.program.parameters()) if t.is_cuda})
    with torch.random.fork_rng(devices=devices), kept_buffers(private.program), torch.inference_mode(False):
        result = Comparison(private, batch, count).result()
    if strict and not result.ok:
        name, error = result.worst()
        raise VerificationError(f"the worst parameter is {name}, off by {error:.1e}\n{result}")
    return result


@contextlib.contextmanager
def kept_buffers(program: Program) -> Iterator[None]:
    """Put the buffers' values back: a step may update those that do not depend on the batch."""
    kept = [(buffer, buffer.detach().clone()) for buffer in program.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, start in kept:
                buffer.copy_(start)


class Comparison:
    """One verification."""

    def __init__(self, private: Any, batch: Batch, count: int) -> None:
        self.private, self.program = private, private.program
        self.batch = as_batch(batch, take(batch.tensors, example_dims(batch), range(count)), count)
        self.rule, self.limit = private.rule(), float(private.max_grad_norm)
        self.notes: list[str] = []
        if count:
            self.compiled = private.compiled(batch, trains=False)
            nodes = self.compiled.joint.graph.nodes
            self.random = has_draws(nodes)
            self.dtypes = {n.meta["val"].dtype for n in nodes if isinstance(n.meta.get("val"), Tensor)}
            self.tolerance = whole_tolerance(self.dtypes, batch.tensors[0].device)

    def result(self) -> Verification:
        """Step against loop, then the step against itself on other batches."""
        if self.batch.size == 0:
            return Verification(True, 0.0, 0.0, {}, None, 0, 0.0, "an empty batch, nothing to compare")
        step = self.one_by_one() if self.random else self.run(self.batch)
        found = self.against_loop(step)
        independence = self.mixture_in_graph() if self.random else self.mixture_in_step()
        return replace(found, ok=found.ok and independence is None, independence=independence)

    def run(self, batch: Batch) -> Step:
        """The step as the user configured it; buffers start from the same values every time."""
        mask = torch.ones(batch.size, dtype=torch.bool, device=batch.tensors[0].device)
        with kept_buffers(self.program):
            return self.private.run(self.compiled, batch, mask)

    def one_by_one(self) -> Step:
        """The step of a random model, one example at a time with the draws that the loop will see."""
        if self.compiled.runner.backend != "eager":
            self.notes.append("inductor draws random numbers of its own; the same graph was compared in eager")
            self.compiled = replace(self.compiled, runner=Runner(self.compiled.joint, self.program, "eager"))
        self.notes.append(
            "the model draws random numbers: every example was compared alone, with the same draws; "
            "examples together were checked on the captured graph with draws held fixed"
        )
        with equal_draws():
            steps = [self.run(as_batch(self.batch, leaves, 1)) for leaves in singles(self.batch)]
        fields = ("losses", "norms", "clip_factors", "nonfinite", "counted")
        parts: dict[str, Any] = {f: torch.cat([getattr(s, f) for s in steps]) for f in fields}
        grads = {name: torch.stack([s.grads[name] for s in steps]).sum(0) for name in steps[0].grads}
        return replace(steps[0], grads=grads, **parts)

    def factors_of(self, step: Step) -> Factors:
        """Factors by the formula of the kind; the step's own where the loop's norm and the step's lie on both sides of a jump."""

        def factors(row: int, norms: Mapping[str, float]) -> dict[str, float]:
            """One example's."""
            if self.rule.kind.is_close_call(math.hypot(*norms.values()), self.limit, self.tolerance):
                self.notes.append(f"rounding decides whether example {row} is left out; the step's decision was taken")
                return dict.fromkeys(norms, float(step.clip_factors[row]))
            return self.rule.factors(norms, self.limit)

        return factors

    def against_loop(self, step: Step) -> Verification:
        """The first reference that the step agrees with; the user's own types have the last word."""
        narrow = any(p.dtype != torch.float64 for p in self.program.parameters())
        if narrow and not self.random:  # random operations draw other numbers in other types
            try:
                found = self.compared(
                    step, loop(*in_float64(self.program, self.batch), self.factors_of(step)), "in a float64 copy"
                )
            except (
                DPCompileError,
                RuntimeError,
                TypeError,
                ValueError,
                AttributeError,
            ):  # cannot be copied or converted
                found = None
            if found is not None and found.ok:
                return found
        with equal_draws() if self.random else contextlib.nullcontext():
            return self.compared(step, loop(self.program, self.batch, self.factors_of(step)), "in the model's own types")

    def compared(self, step: Step, expected: Loop, reference: str) -> Verification:
        """Relative errors of one step."""
        losses = error_of_losses(step.losses, expected.losses)
        norms = error_of_norms(step.norms, expected.norms)
        scale = max(expected.scale, torch.finfo(torch.float64).tiny)
        gradients = {name: deviation(total.to(wide(total.dtype)), expected.sums.get(name)) / scale
                     for name, total in step.grads.items()}  # fmt: skip
        ok = all(error <= self.tolerance for error in (losses, norms, *gradients.values()))
        return Verification(ok, losses, norms, gradients, None, self.batch.size, self.tolerance, reference, tuple(self.notes))

    def mixture_in_graph(self) -> str | None:
        """The check of compilation once more, on a fresh capture."""
        try:
            with torch.enable_grad():
                joint = capture(self.program, self.batch)
            check_independence(joint, example_axis(joint), self.program, self.batch)
        except DPCompileError as error:
            return str(error)
        return None

    def mixture_in_step(self) -> str | None:
        """What changes for an example when others are removed or permuted; a contradiction must show in every
        draw.
        """
        why: str | None = None
        for attempt in range(DRAWS):
            examples, dims = draw_examples(self.batch, attempt), example_dims(self.batch)
            steps = [self.run(as_batch(self.batch, take(examples, dims, rows), len(rows))) for rows in RUNS]
            why = self.contradiction(steps)
            if why is None:
                return None
        return why

    def contradiction(self, steps: Sequence[Step]) -> str | None:
        """How the steps on other batches of the same examples contradict each other."""
        for (run, place), (other, position) in COPIES:
            one = slice(place, place + 1), slice(position, position + 1)
            if error_of_losses(steps[other].losses[one[1]], steps[run].losses[one[0]]) > self.tolerance:
                return "an example's loss changes with the other examples of the batch"
            if error_of_norms(steps[other].norms[one[1]], steps[run].norms[one[0]]) > self.tolerance:
                return "an example's gradient norm changes with the other examples of the batch"
        base, moved, single, last, first = (step.grads for step in steps)
        scale = max(math.hypot(*(norm(g) for g in part.values())) for part in (base, moved, single, last, first))
        for name, total in base.items():
            if deviation(total + last[name], moved[name] + single[name] + first[name]) > 3 * self.tolerance * scale:
                return f"the sum over the batch of {name} is not the sum over its parts"
        return None


def error_of_norms(found: Tensor, expected: Tensor) -> float:
    """The largest deviation, relative to the largest norm; norms that are not finite must be so in both."""
    if not torch.equal(found.isfinite().cpu(), expected.isfinite().cpu()):
        return math.inf
    left, right = finite(found).cpu(), finite(expected).cpu()
    scale = max(float(right.max()), torch.finfo(torch.float64).tiny)
    return float((left - right).abs().max()) / scale
