"""An independent check of the example-axis analysis, on numbers, for every captured graph.

Rules are not trusted alone. Two things are checked on real parameters and on examples drawn from the user's
batch:

  the graph   no example's slice of any intermediate may move when other examples are changed, removed or
              permuted
              (`lockstep`), with random draws held fixed (`draws`); a gradient that no example moves belongs to none
  the model   run as the user wrote it on one example (and on two, for small models), it must agree with the
              graph, which was traced for every batch size (`plain_run`), and keep nothing of an example for the
              next step

Numbers can deceive, so a contradiction counts only if each of three draws of examples shows one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from dpcompile.analysis.company import MOVED, RUNS, SINGLE
from dpcompile.analysis.examples import COUNT, draw_examples, example_dims, take
from dpcompile.analysis.lockstep import Lockstep
from dpcompile.analysis.plain_run import (
    FAILURES,
    Gradients,
    PlainRun,
    check_runs,
    error_of_losses,
    errors_of_gradients,
    first_line,
    line_of_branch,
    run_plainly,
)  # fmt: skip
from dpcompile.analysis.rounding import whole_tolerance
from dpcompile.batch import Batch
from dpcompile.ir.axis import Batched, Constant, Shared
from dpcompile.ir.errors import CaptureError, MixedExamplesError, refusal
from dpcompile.ir.graph import JointGraph, shape_text, where
from dpcompile.ir.randomness import equal_draws, has_draws
from dpcompile.losses import Program
from dpcompile.rules.rule import Result

DRAWS = 3
# Up to this many trainable numbers, sums over examples are checked too, and the model runs on two examples.
SMALL = 2**20
WAY_OUT = "keep every example's computation apart until the loss; if it is, report the operation"
BRANCH_WAY_OUT = (
    "remove the branch on the batch size, give squeeze() the dimension to drop, and do not index the batch by constants"
)


def check_independence(joint: JointGraph, states: Mapping[fx.Node, Result], program: Program, batch: Batch) -> None:
    """Raise MixedExamplesError where examples meet, CaptureError where the model is not what was captured.

    Leaves random state, buffers and gradients as they were.
    """
    losses = joint.output("losses")
    if losses is None or not isinstance(states.get(losses), (Batched, Constant)):
        raise MixedExamplesError("the losses are not one per example")
    devices = list({tensor.device.index or 0 for tensor in (*batch.tensors, *program.parameters()) if tensor.is_cuda})
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.no_grad():
        check = Check(joint, states, program, batch)
        mixtures: dict[fx.Node, str] = {}
        branch = ""
        for attempt in range(DRAWS):
            found, branch = check.once(attempt)
            if not found and not branch:
                return
            mixtures |= found
        if mixtures:
            check_runs(program, batch.layout, batch.tensors, batch.size)
        for node in joint.graph.nodes:
            if node in mixtures:
                raise mixture(node, mixtures[node])
        raise CaptureError(branch)


def mixture(node: fx.Node, why: str) -> MixedExamplesError:
    """The refusal for a node at which numbers show that examples meet."""
    shape = shape_text(node.meta["val"])
    return MixedExamplesError(refusal(f"examples are mixed at {node.name} = {node.target}{shape}", where(node), why, WAY_OUT))


class Check:
    """What stays the same from draw to draw."""

    def __init__(self, joint: JointGraph, states: Mapping[fx.Node, Result], program: Program, batch: Batch) -> None:
        self.joint, self.states, self.program, self.batch = joint, states, program, batch
        named = list(program.named_parameters())
        trainable = [p.detach() for _, p in named if p.requires_grad]
        self.held = [*trainable, *(p.detach() for _, p in named if not p.requires_grad), *program.buffers()]
        self.small = sum(p.numel() for p in trainable) <= SMALL
        self.random = has_draws(joint.graph.nodes)
        self.few = batch.size < COUNT
        fakes = [n.meta.get("val") for n in joint.graph.nodes]
        dtypes = {fake.dtype for fake in fakes if isinstance(fake, Tensor)}
        self.tolerance = whole_tolerance(dtypes, batch.tensors[0].device)

    def once(self, attempt: int) -> tuple[dict[fx.Node, str], str]:
        """One draw: the nodes at which examples meet, with reasons, and how model and graph differ."""
        dims = example_dims(self.batch)
        examples = draw_examples(self.batch, attempt)
        runs = [take(examples, dims, rows) for rows in RUNS]
        leaves = [[run[i] for run in runs] if dim is not None else [leaf] * len(RUNS)
                  for i, (leaf, dim) in enumerate(zip(examples, dims, strict=True))]  # fmt: skip
        held = [[tensor] * len(RUNS) for tensor in self.held]
        lockstep = Lockstep(self.joint, self.states, held + leaves, self.small, self.few)
        with self.as_captured():
            lockstep.run()
        found = lockstep.found or self.of_no_example(lockstep.outputs(SINGLE))
        if found:
            return found, ""
        plain: dict[int, PlainRun] = {}
        for run in (SINGLE, MOVED):
            if run == MOVED and not self.small and not plain[SINGLE].written:
                break
            graph = self.outputs(lockstep, runs[run], run)
            why = self.difference(graph, runs, run, plain)
            if why:
                return {}, why
        return {}, kept_of_examples(plain)

    def outputs(self, lockstep: Lockstep, leaves: Sequence[Tensor], run: int) -> list[Any] | None:
        """The graph's outputs on one run, as the model would give them; None where sums were not computed."""
        if self.random or lockstep.is_varied:
            return self.replayed(leaves)
        return lockstep.outputs(run) if run == SINGLE or self.small else None

    def of_no_example(self, outputs: Sequence[Any]) -> dict[fx.Node, str]:
        """Gradients that are not zero though no example moves them: a custom backward that ignores its argument."""
        found: dict[fx.Node, str] = {}
        for (kind, name), gradient in zip(self.joint.outputs, outputs, strict=True):
            node = self.joint.output(kind, name)
            if (
                kind == "gradient"
                and node is not None
                and isinstance(self.states[node], (Shared, Constant))
                and bool(gradient.any())
            ):
                found[node] = f"the gradient of {name} does not depend on the examples, so that it cannot be clipped for each"
        return found

    def as_captured(self) -> torch.autocast:
        """The graph holds its conversions of types; autocast around the call is for the model only."""
        return torch.autocast(self.batch.tensors[0].device.type, enabled=False)

    def replayed(self, leaves: Sequence[Tensor]) -> list[Any]:
        """The graph's outputs where every random operation starts from the same seed."""
        with self.as_captured(), equal_draws():
            return list(self.joint.module(*self.held, *leaves))

    def difference(
        self, graph: Sequence[Any] | None, runs: Sequence[Sequence[Tensor]], run: int, plain_runs: dict[int, PlainRun]
    ) -> str:
        """Why the graph's outputs on one run (if given) contradict the model's; empty if they agree. Keeps the model's run."""
        size = len(RUNS[run])
        count = "one example" if size == 1 else f"{size} examples"
        culprit = f"the model computes something else when the batch size is {size}"
        try:
            with equal_draws() if self.random else torch.no_grad():
                plain = run_plainly(self.program, self.batch.layout, runs[run], size)
        except FAILURES as error:
            return refusal(f"{culprit}: it fails", self.line(runs), f"on {count}: {first_line(error)}", BRANCH_WAY_OUT)
        plain_runs[run] = plain
        if graph is None:
            return ""
        outputs = dict(zip(self.joint.outputs, graph, strict=True))
        gradients: Gradients = {name: v for (kind, name), v in outputs.items() if kind == "gradient"}
        errors = {"losses": error_of_losses(outputs["losses", ""], plain.losses)}
        errors |= {f"the gradient of {n}": e for n, e in errors_of_gradients(gradients, plain.gradients).items()}
        name, off = max(errors.items(), key=lambda item: item[1])
        if off <= self.tolerance:
            return ""
        why = f"on {count}, {name} is off by {off:.1e} (relative) from the graph traced for every batch size"
        return refusal(culprit, self.line(runs), why, BRANCH_WAY_OUT)

    def line(self, runs: Sequence[Sequence[Tensor]]) -> str:
        """The user's line at which one and two examples take different ways, if both run."""
        try:
            return line_of_branch(self.program, self.batch.layout, runs[SINGLE], runs[MOVED])
        except FAILURES:
            return ""


def kept_of_examples(plain: Mapping[int, PlainRun]) -> str:
    """Why an attribute that forward writes holds something of the batch, as two runs on different examples show."""
    if MOVED not in plain:
        return ""
    for path, tensor in plain[SINGLE].written.items():
        other = plain[MOVED].written.get(path)
        if other is None or other.shape != tensor.shape or not torch.equal(other, tensor):
            return refusal(
                f"forward writes the attribute {path}",
                "",
                "it holds something of the examples of one batch until the next, and a trace would keep its first value",
                "return what is to be kept, and keep it outside of forward",
            )
    return ""
