"""An independent check of the example-axis analysis, on numbers: perturb, remove and permute examples."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from dpcompile.batch import Batch
from dpcompile.ir.graph import JointGraph
from dpcompile.losses import Program
from dpcompile.rules.rule import Result


def check_independence(joint: JointGraph, states: Mapping[fx.Node, Result], program: Program, batch: Batch) -> None:
    """Placeholder until the numeric check stands."""
