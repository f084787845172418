"""What a compiled module asks of its chooser, which it need not have."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from dpcompile.batch import Batch
from dpcompile.criteria.choices import Choice, GradientDropping, PrePruning
from dpcompile.criteria.chooser import Chooser
from dpcompile.criteria.statement import assumptions, described
from dpcompile.ir.errors import InvalidInput
from dpcompile.losses import Program
from dpcompile.selection import Trained


def chooser_of(passes: Sequence[Choice], program: Program, batch_dim: Any) -> Chooser | None:
    """Choose for a program and tell it what is trained; None without passes."""
    for given in passes:
        if not isinstance(given, (PrePruning, GradientDropping)):
            raise InvalidInput(f"passes= takes PrePruning(...) and GradientDropping(...), got {given!r}")
    return Chooser(passes, program, batch_dim) if passes else None


def check_batch(chooser: Chooser | None, batch: Batch, trains: bool) -> None:
    """Refuse to train on a public batch (tracing and verifying release nothing); the selection is where the parameters are."""
    if chooser is not None:
        if trains:
            chooser.check_batch(batch)
        chooser.follow()


@contextlib.contextmanager
def pruned_if_done(chooser: Chooser | None) -> Iterator[None]:
    """What is refused inside leaves the weights as they were before pruning."""
    with contextlib.ExitStack() as undo:
        if chooser is not None:
            undo.callback(chooser.put_back)
        yield
        undo.pop_all()


def trained_by(chooser: Chooser | None) -> Trained | None:
    """What the step that was just run trains; from then on its pruning stays."""
    if chooser is None:
        return None
    chooser.taken = None
    return chooser.selection.now()


def advance(chooser: Chooser | None, released: Mapping[str, Tensor] | None) -> bool:
    """One step was taken, as the user says; whether another part was chosen."""
    return chooser is not None and chooser.advance_by_hand(released)


def attach(chooser: Chooser | None, program: Program) -> None:
    """Let the steps of another program of the model train what is chosen."""
    if chooser is not None:
        chooser.attach(program)


def loaded(chooser: Chooser | None, keys: Any) -> Any:
    """Weights were loaded: what was pruned is zero again. keys: what loading returned."""
    if chooser is not None:
        chooser.take()
    return keys


def notes(chooser: Chooser | None) -> list[str]:
    """For the report: what was asked for, what it was chosen by, and how much is trained."""
    if chooser is None:
        return []
    masks = {name: mask for name in chooser.selection.layouts if (mask := chooser.selection.mask(name)) is not None}
    total = sum(p.numel() for p in chooser.parameters.values())
    kept = total - sum(int((~mask).sum()) for mask in masks.values())
    told = [described(choice) for choice in (chooser.pruning, chooser.dropping) if choice is not None]
    share = f"{kept:,} of {total:,} entries are trained in each step, and get noise"
    return [*told, f"{share}: {kept / max(total, 1):.0%} of the noise's energy"]


def document(chooser: Chooser | None) -> dict[str, Any] | None:
    """For the certificate: the passes, how the trained part of every parameter is told, and what that takes for granted."""
    if chooser is None:
        return None
    parts = {name: dataclasses.asdict(layout) for name, layout in chooser.selection.layouts.items()}
    assumed = [text for choice in chooser.choices for text in assumptions(choice)]
    return {"passes": list(map(described, chooser.choices)), "parts": parts, "assumptions": assumed}
