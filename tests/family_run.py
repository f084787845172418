"""What dpcompile says of one family, and whether that is right: the row of the table."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from chunked import in_chunks
from family_case import Family
from oracle import Expected, errors, expect

from dpcompile import DPCompileError, dpcompile

EXAMPLES, CHUNK = 3, 2


@dataclass(frozen=True)
class Outcome:
    """One row: trainable parameters, sites, the largest relative error against the float64 loop or the refusal, and the
    processor time of the compilation in seconds.

    double: whether the whole graph computes in float64; some models compute parts in float32 whatever their type is.
    """

    name: str
    kind: str
    parameters: int
    sites: int = 0
    error: float | None = None
    refusal: str = ""
    seconds: float = 0.0
    double: bool = True

    @property
    def verdict(self) -> str:
        """One word."""
        return "refused" if self.refusal else "exact"


def examine(family: Family) -> Outcome:
    """Compile a family in float64, run it on a batch, whole and in chunks, and compare with the loop over single examples."""
    dtype = torch.float32 if family.refused else torch.float64  # what is refused need not run in float64
    model, batch = family.build(dtype), family.batch(EXAMPLES, dtype)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    started = time.process_time()
    try:
        private = dpcompile(model, loss=family.loss, example_batch=batch)
    except DPCompileError as error:
        return Outcome(family.name, family.kind, parameters, refusal=str(error), seconds=time.process_time() - started)
    seconds = time.process_time() - started
    expected = expect(model, family.loss, batch)
    private.max_grad_norm = expected.max_grad_norm
    worst = max(largest(private, batch, expected, chunk) for chunk in (None, CHUNK))
    sites = len(private.plan.choices)
    return Outcome(family.name, family.kind, parameters, sites, worst, seconds=seconds, double=is_double(private))


def largest(private: Any, batch: tuple[Any, ...], expected: Expected, chunk: int | None) -> float:
    """The largest relative error of one step in chunks of this size; norms must not all be zero, or nothing is shown."""
    assert float(expected.norms.min()) > 0
    in_chunks(private, chunk)
    return max(errors(private(*batch), expected).values())


def is_double(private: Any) -> bool:
    """Whether nothing in the graph is computed in a narrower type than float64."""
    values = [node.meta.get("val") for node in private.graph_module.graph.nodes]
    kinds = {value.dtype for value in values if isinstance(value, torch.Tensor) and value.dtype.is_floating_point}
    return kinds <= {torch.float64}
