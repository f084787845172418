"""Measure the ways of every site that are predicted to be nearly equal, and keep what was found for the next compilation.

The ways of one site are called in turn, round after round, on operands of the real sizes: what slows the machine for a
moment slows all of them. Layers that are alike are measured once. Times are kept on disk by what runs (operations, sizes,
strides, dtypes), device and versions.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import fx
from tqdm import tqdm

from dpcompile.cost.hardware import Hardware
from dpcompile.ir.graph import JointGraph, value
from dpcompile.ir.printer import target_text
from dpcompile.ir.site import Site
from dpcompile.measure.clock import OtherOperations, copies, once
from dpcompile.measure.extract import SiteProgram, extract, number
from dpcompile.measure.times import Times
from dpcompile.plan.plan import Option
from dpcompile.plan.select import Way, options_of

WITHIN: Final = 2.0
"""Ways whose predicted time is at most so many times the best one's are measured: of kernels longer than those that calibration
takes, one was seen 1.6 times off."""
ROUNDS, FEW_ROUNDS, MOST_ROUNDS = 7, 3, 101
SHORT, LONG = 0.03, 0.5
"""Seconds that the fastest way of a site is measured for at least, up to MOST_ROUNDS: a single call of some microseconds says
little. Seconds that its ways take together, above which there are no more than FEW_ROUNDS."""


@dataclass(frozen=True)
class Tuned:
    """Measured seconds of norm and sum together, at one batch size, and what the user should know."""

    seconds: dict[Way, float]
    batch_size: int
    notes: tuple[str, ...]


def tune(joint: JointGraph, sites: Sequence[Site], hardware: Hardware, batch_size: int) -> Tuned:
    """Measure every site that has more than one candidate; a progress bar is shown on a terminal."""
    device = value(joint.graph.find_nodes(op="placeholder")[0]).device
    times = Times.load(device)
    found: dict[Way, float] = {}
    for site in tqdm(sites, desc="autotune", leave=False, disable=None):
        near = candidates(options_of(site, hardware, batch_size)[0])
        programs = {(o.norm, o.sum): extract(joint, site, o.norm, o.sum) for o in near} if len(near) > 1 else {}
        keys = {way: key_of(program, batch_size) for way, program in programs.items()}
        if any(key not in times.seconds for key in keys.values()):
            measured = seconds_of(programs.values(), batch_size, device)
            times.seconds |= dict(zip(keys.values(), measured, strict=True))
        found |= {(site.parameter, *way): times.seconds[key] for way, key in keys.items()}
    times.save()
    return Tuned(found, batch_size, tuple(times.notes))


def candidates(options: Iterable[Option]) -> list[Option]:
    """The ways that are predicted to be nearly as fast as the best."""
    ordered = sorted(options, key=lambda option: option.seconds)
    return [option for option in ordered if option.seconds <= WITHIN * ordered[0].seconds]


def seconds_of(programs: Iterable[SiteProgram], batch_size: int, device: torch.device, rounds: int = ROUNDS) -> list[float]:
    """Medians over the rounds behind an untimed one, each call behind other operations; at least so many of what is short."""
    calls = []
    for program in programs:
        first = program.inputs(batch_size)
        count = copies(sum(x.nbytes for x in first))
        calls.append((program.module, [first, *(program.inputs(batch_size) for _ in range(count - 1))]))
    samples: list[list[float]] = [[] for _ in calls]
    turn, last, other = 0, 1, OtherOperations(device)
    with torch.no_grad():
        while turn <= last:
            for place in [(turn + i) % len(calls) for i in range(len(calls))]:
                module, sets = calls[place]
                other.run()
                samples[place].append(once(module, sets[turn % len(sets)], device))
            if turn == 1:
                last = rounds_for([found[1] for found in samples], rounds)
            turn += 1
    return [statistics.median(found[1:]) for found in samples]


def rounds_for(seconds: Sequence[float], least: int) -> int:
    """How many rounds ways get that take this long each."""
    if sum(seconds) > LONG:
        return FEW_ROUNDS
    return max(least, min(int(SHORT / min(seconds)), MOST_ROUNDS))


def key_of(program: SiteProgram, batch_size: int) -> str:
    """What runs and on what, whatever the nodes are called."""
    places: dict[fx.Node, str] = {}
    lines = [operand_text(node, batch_size) for node in program.operands]
    for node in program.module.graph.nodes:
        places[node] = f"%{len(places)}"
        if node.op == "call_function":
            arguments = fx.node.map_arg((node.args, node.kwargs), lambda n: stand_in(places[n]))
            lines.append(f"{target_text(node.target)}{arguments}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:24]


def operand_text(node: fx.Node, batch_size: int) -> str:
    """Sizes, strides and dtype at this batch size."""
    fake = value(node)
    sizes, strides = ([number(n, batch_size) for n in numbers] for numbers in (fake.shape, fake.stride()))
    return f"{fake.dtype} {sizes} {strides}"


def stand_in(text: str) -> Any:
    """What stands for an operand in the text of arguments (Any, since fx knows only its own argument types)."""
    return Place(text)


class Place:
    """A text that is its own representation."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text
