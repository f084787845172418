"""Compilations while the number of examples changes from step to step, as Poisson sampling makes it.

What is counted is how often a graph is handed to inductor (or, in eager mode, how often the step is traced), over steps of the
same drawn sizes for every method. torch.compile is used as it comes: it fixes the first size and generalises at the second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import dpcompile.module
from benchmarks.cases import MAX_GRAD_NORM, Case
from benchmarks.experiments.experiment import Extra
from benchmarks.peers import vmap_function
from benchmarks.worker import Options, at_most, say, text_of
from dpcompile import dpcompile as compile_private
from dpcompile import torch_private

STEPS, POPULATION = 40, 10
"""Steps that are drawn, and how many times the mean batch there are examples to draw from."""
Step = Callable[[Tensor, Tensor], Any]
Make = Callable[[Case, nn.Module, Callable[..., Any]], Step]


def drawn_sizes(mean: int) -> list[int]:
    """Sizes of Poisson-sampled batches; torch.compile's peers get none that are empty."""
    draws = torch.rand(STEPS, POPULATION * mean, generator=torch.Generator().manual_seed(0)) < 1 / POPULATION
    return [max(int(size), 1) for size in draws.sum(1)]


def ours(backend: str) -> Make:
    """dpcompile; a trace counts as a compilation where nothing is generated."""

    def make(case: Case, model: nn.Module, count: Callable[..., Any]) -> Step:
        place, name = (dpcompile.module, "compile_step") if backend == "eager" else (torch_private, "compile_inductor")
        private = compile_private(model, loss=case.losses, max_grad_norm=MAX_GRAD_NORM, backend=backend)
        original = getattr(place, name)

        def step(x: Tensor, y: Tensor) -> Any:
            with mock.patch.object(place, name, lambda *given: count(lambda: original(*given))):
                return private(x, y).grads

        return step

    return make


def counting(count: Callable[..., Any]) -> Callable[..., Any]:
    """Inductor as a backend of torch.compile that counts the graphs it is given."""
    inductor = torch._dynamo.lookup_backend("inductor")
    return lambda module, inputs: count(lambda: inductor(module, inputs))


def ordinary(case: Case, model: nn.Module, count: Callable[..., Any]) -> Step:
    """Forward and backward without privacy under torch.compile."""
    parameters = list(model.parameters())
    total = torch.compile(lambda x, y: case.losses(model, x, y).sum(), backend=counting(count))
    return lambda x, y: torch.autograd.grad(total(x, y), parameters)


def vmapped(case: Case, model: nn.Module, count: Callable[..., Any]) -> Step:
    """vmap(grad), norms and sums under torch.compile."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    step = torch.compile(vmap_function(case, model), backend=counting(count))
    return lambda x, y: step(parameters, x, y)


METHODS: dict[str, Make] = {
    "dpcompile eager": ours("eager"), "dpcompile inductor": ours("inductor"),
    "ordinary torch.compile": ordinary, "vmap(grad) torch.compile": vmapped,
}  # fmt: skip


def counted(case: Case, make: Make, options: Options) -> dict[str, Any]:
    """Compilations, seconds in them, and how many different sizes there were."""
    number, inside, sizes = 0, 0.0, drawn_sizes(case.batch_size)

    def count(compile_now: Callable[[], Any]) -> Any:
        nonlocal number, inside
        number, start = number + 1, time.perf_counter()
        result = compile_now()
        inside += time.perf_counter() - start
        return result

    torch._dynamo.reset()
    try:
        step = make(case, case.model(options.device), count)
        inputs, targets = case.draw(max(sizes), torch.Generator().manual_seed(1))
        with at_most(options.limit_seconds):
            for size in sizes:
                step(inputs[:size].to(options.device), targets[:size].to(options.device))
    except Exception as failure:  # whatever a peer raises is its result
        return {"failure": text_of(failure)}
    return {"compilations": number, "seconds": inside, "sizes": len(set(sizes))}


def measured(name: str, points: Callable[[str], dict[str, Case]], size: str, options: Options) -> dict[str, Any]:
    """{method: compilations} at one point."""
    say(f"compilations under Poisson sampling: {name}")
    return {"point": name, "methods": {m: counted(points(size)[name], make, options) for m, make in METHODS.items()}}


def lines(found: Mapping[str, Any]) -> list[str]:
    """A table: one line per method."""
    rows = [
        f"| {method} | {row['compilations']} | {row['seconds']:.1f} |" if "seconds" in row else f"| {method} | n/a | |"
        for method, row in found["methods"].items()
    ]
    sizes = max((row["sizes"] for row in found["methods"].values() if "sizes" in row), default=0)
    head = f"Compilations over {STEPS} Poisson-sampled batches of {sizes} different sizes, {found['point']}:"
    return [head, "", "| method | compilations | seconds in them |", "|---|---:|---:|", *rows]


def claims(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One compilation serves every batch."""
    numbers = {name: row["compilations"] for name, row in found["methods"].items() if "compilations" in row}
    ours_only = [number for name, number in numbers.items() if name.startswith("dpcompile")]
    text = ", ".join(f"{name} {number}" for name, number in numbers.items())
    return [
        {"claim": "one compilation under Poisson sampling", "holds": bool(ours_only) and set(ours_only) == {1}, "numbers": text}
    ]


def compilations(name: str, points: Callable[[str], dict[str, Case]]) -> Extra:
    """The measurement at one of an experiment's points."""
    return Extra("compilations", partial(measured, name, points), lines, claims)
