"""capture -> analyse -> price -> choose -> passes -> runtime: the only file that knows the order of the rooms."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from dpcompile.analysis.cuts import find_cuts
from dpcompile.analysis.evidence import Evidence, evidence
from dpcompile.analysis.example_axis import example_axis
from dpcompile.analysis.independence import check_independence
from dpcompile.analysis.kept import check_kept
from dpcompile.analysis.outside import check_outside, generators_of
from dpcompile.analysis.savings import gradient_work, savings
from dpcompile.analysis.sites import find_sites
from dpcompile.analysis.warm_up import check_followed, warm_up
from dpcompile.batch import Batch
from dpcompile.capture import admit, capture
from dpcompile.clip.kind import Kind
from dpcompile.clip.rule import FLAT, rule_of
from dpcompile.conditions import outline
from dpcompile.cost.hardware import Hardware
from dpcompile.forecast.forecast import Outlook
from dpcompile.forecast.rewriting import Source
from dpcompile.guards import guard_key
from dpcompile.ir.graph import JointGraph
from dpcompile.ir.printer import format_graph
from dpcompile.ir.site import Cut, Site
from dpcompile.ir.verifier import check
from dpcompile.losses import SELECTION, Program, check_target
from dpcompile.measure.tune import Tuned, tune
from dpcompile.passes import PIPELINE
from dpcompile.passes.copies import check_copies, emit_copies
from dpcompile.passes.drop_gradients import drop_gradients
from dpcompile.passes.narrow_backward import narrow_backward
from dpcompile.passes.order import order_nodes
from dpcompile.passes.per_example_gradients import emit_per_example_gradients
from dpcompile.passes.prune_parameters import prune_parameters
from dpcompile.plan.methods import method_of, resolve
from dpcompile.plan.plan import Plan
from dpcompile.plan.saved import SavedPlan
from dpcompile.plan.select import Wanted
from dpcompile.python_state import unwritten_tensors, without_python_draws
from dpcompile.rules.rule import Result
from dpcompile.runtime import GraphCall, Runner
from dpcompile.selection import Selection

TRACING = threading.RLock()
ANALYSED = "analysis"
"""The last stage before a plan is carried out."""


@dataclass(frozen=True)
class Stage:
    """The graph after one step of the compiler: its text, how long the step took, how many nodes there are."""

    name: str
    text: str
    seconds: float
    nodes: int

    def __str__(self) -> str:
        return f"# {self.name}: {self.nodes} nodes, {self.seconds * 1e3:.0f} ms\n{self.text}"


@dataclass
class Recorder:
    """Times the steps and keeps the text of the graph after each."""

    stages: list[Stage] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def keep(self, name: str, joint: JointGraph) -> None:
        """Record the present graph under a name; refuse a malformed one."""
        spent = time.perf_counter() - self.started
        check(joint, name)
        self.stages.append(Stage(name, format_graph(joint), spent, len(joint.graph.nodes)))
        self.started = time.perf_counter()

    def keep_attempt(self, name: str, joint: JointGraph) -> None:
        """Record a rewrite; an attempt with another plan takes the place of the one before."""
        begins = emit_copies.__name__ if self.stages[-1].name == emit_copies.__name__ else PIPELINE[0].__name__
        if name in (begins, emit_copies.__name__):
            del self.stages[1 + [stage.name for stage in self.stages].index(ANALYSED) :]
        self.keep(name, joint)


@dataclass(frozen=True)
class Options:
    """What the user asked for, with defaults resolved."""

    strategy: Wanted
    schedule: str
    microbatch: int | None
    hardware: Hardware
    backend: str
    plan: SavedPlan | None = None
    memory_budget: float | None = None
    note: str = ""
    check_examples: bool = True
    clipping: Kind = FLAT.kind


@dataclass(frozen=True)
class Compiled:
    """A compiled step: rewritten graph, plan, stages, the callable, and what the report has to say besides."""

    joint: JointGraph
    plan: Plan
    stages: tuple[Stage, ...]
    runner: Runner
    unused: tuple[str, ...]
    notes: tuple[str, ...]
    outlook: Outlook
    evidence: Evidence


@dataclass(frozen=True)
class Analysed:
    """A graph whose examples are shown independent, its sites and cuts, and the parameters without a gradient path."""

    joint: JointGraph
    sites: tuple[Site, ...]
    cuts: tuple[Cut, ...]
    unused: tuple[str, ...]
    evidence: Evidence


def analysed(program: Program, batch: Batch, recorder: Recorder, check_examples: bool) -> Analysed:
    """Capture and analyse; check_examples: whether the rules' verdict is checked on numbers as well."""
    check_target(program, *batch.layout.rebuild(batch.tensors))
    with torch.inference_mode(False), torch.enable_grad(), unwritten_tensors(program), without_python_draws():
        unread = warm_up(program, batch)
        before = guard_key(program, batch)
        generators = list(generators_of(before))
        with unread:
            joint = capture(program, batch)
        check_followed(joint)
        check_outside(program, batch, joint, before, generators)
    recorder.keep("capture", joint)
    check_kept(program, batch, joint.kept)
    states = example_axis(joint)
    if check_examples:
        check_independence(joint, states, program, batch)
    sites, unused = find_sites(joint, states)
    if program.selection is not None:
        whole, states = gradient_work(sites), select_parts(joint, states, program.selection, recorder)
        sites, unused = find_sites(joint, states)
        joint.notes.append(savings(whole, gradient_work(sites)))
    cuts = find_cuts(joint, states, sites)
    recorder.keep(ANALYSED, joint)
    return Analysed(joint, tuple(sites), cuts, tuple(unused), evidence(joint, states, batch, check_examples))


def select_parts(joint: JointGraph, states: Mapping[fx.Node, Result], selection: Selection,
                 recorder: Recorder) -> dict[fx.Node, Result]:  # fmt: skip
    """Leave the trained parts of the gradients; the states of the graph that is then there."""
    joint.outline = outline(joint)
    prune_parameters(joint, selection.layouts)
    recorder.keep(prune_parameters.__name__, joint)
    drop_gradients(joint, states, selection.layouts, SELECTION)
    recorder.keep(drop_gradients.__name__, joint)
    return example_axis(joint)


def compile_gradients(program: Program, batch: Batch, options: Options) -> GraphCall:
    """The short way to a callable that returns every example's own gradient."""
    recorder = Recorder()
    with TRACING:
        found = analysed(program, batch, recorder, options.check_examples)
    joint = found.joint
    emit_per_example_gradients(joint, found.sites)
    order_nodes(joint)
    narrow_backward(joint)
    order_nodes(joint)
    recorder.keep("emit_per_example_gradients", joint)
    return GraphCall(joint, program, options.backend)


def admit_size(compiled: Compiled, program: Program, batch: Batch, size: int) -> None:
    """Refuse a number of examples for which the program would be another graph."""
    joint = compiled.outlook.source.joint
    if size not in joint.admitted:
        with TRACING, torch.inference_mode(False), torch.enable_grad():
            admit(joint, program, batch, size)


def compile_step(program: Program, batch: Batch, options: Options) -> Compiled:
    """Everything from the user's program to a callable, one named line per step; one thread at a time, for tracing patches
    torch while it runs."""
    with TRACING:
        return compiled_step(program, batch, options)


def compiled_step(program: Program, batch: Batch, options: Options) -> Compiled:
    """The same for a thread that traces alone."""
    recorder = Recorder()
    found = analysed(program, batch, recorder, options.check_examples)
    joint, unused = found.joint, found.unused
    if options.plan is not None:
        options.plan.check(found.sites)
    rule = rule_of(options.clipping, list(joint.named("gradient")))
    source = Source(joint, found.sites, () if rule.groups else found.cuts, rule)  # a second backward scales all groups alike
    eager = runs_eagerly(options, batch)
    tuned = tuned_for(source, batch.size, options)
    method = method_of(options.strategy)
    strategy = resolve(method, found.sites, source.cuts) if method else options.strategy if tuned is None else "auto"
    copies = method.copies if method else options.plan is not None and options.plan.copies
    unbatched = check_copies(joint, list(found.sites)) if copies else ()
    outlook = Outlook(source, options.hardware, strategy, options.microbatch, eager, options.schedule, tuned, copies)
    plan = outlook.plan(batch.size, options.hardware, options.memory_budget, recorder.keep_attempt)
    rewritten = outlook.final(plan, recorder.keep_attempt)
    runner = Runner(rewritten, program, options.backend)
    said = [text for text in (str(method or ""), options.note) if text]
    notes = (*joint.notes, *joint.constants, *said, *unbatched, *(tuned.notes if tuned else ()))
    return Compiled(rewritten, plan, tuple(recorder.stages), runner, unused, notes, outlook, found.evidence)


def tuned_for(source: Source, batch_size: int, options: Options) -> Tuned | None:
    """What was measured for strategy="autotune", in chunks of the size that the user gave."""
    if options.strategy != "autotune":
        return None
    return tune(source.joint, source.sites, options.hardware, min(options.microbatch or batch_size, batch_size))


def runs_eagerly(options: Options, batch: Batch) -> bool:
    """Whether the graph will run as it is; on a GPU "auto" compiles it."""
    return options.backend == "eager" or (options.backend == "auto" and not batch.tensors[0].is_cuda)
