"""Whole models for `make bench-cost`: predicted against measured step time, and what the choice costs against forced ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.cases import CASES, MAX_GRAD_NORM, Case
from benchmarks.measure import interleaved
from benchmarks.methods import ordinary_eager
from benchmarks.site_sizes import positions_of
from dpcompile import PrivateModule, StrategyError, dpcompile
from dpcompile.cost.hardware import Hardware

AGAIN, ORDINARY = "auto again", "ordinary"


@dataclass(frozen=True)
class Model:
    """One model: seconds by way, what was predicted for our own choice, and the noise of its two measurements.

    ordinary: predicted and measured seconds of the ordinary step.
    """

    title: str
    predicted: float
    seconds: dict[str, float]
    noise: float
    ordinary: tuple[float, float]

    def regret(self) -> float:
        """How much slower our choice is than the best way, beyond the noise."""
        regret = self.seconds["auto"] / min(self.seconds.values()) - 1
        return regret if regret > self.noise else 0.0


def measure_model(case: Case, hardware: Hardware, rounds: int) -> Model:
    """Our choice, twice, and everything that a user could have forced, interleaved."""
    model, (x, y) = case.model("cpu"), case.batch("cpu")
    made = {"auto": private(case, model, hardware), **forced(case, model, hardware, x, y)}
    threads = torch.get_num_threads()
    steps = {name: (step_of(module, x, y), threads) for name, module in [*made.items(), (AGAIN, made["auto"])]}
    steps[ORDINARY] = (ordinary_eager(case, model, x, y), threads)
    samples = interleaved(steps, rounds, "cpu")
    medians = {name: statistics.median(found) for name, found in samples.items()}
    again, ordinary = medians.pop(AGAIN), medians.pop(ORDINARY)
    noise, forecast = abs(math.log(again / medians["auto"])), made["auto"].report().forecast
    return Model(case.title, forecast.seconds, medians, noise, (forecast.ordinary_seconds, ordinary))


def private(case: Case, model: torch.nn.Module, hardware: Hardware, **options: object) -> PrivateModule:
    """A private module of the case, in eager."""
    return dpcompile(model, case.losses, max_grad_norm=MAX_GRAD_NORM, hardware=hardware, backend="eager", **options)  # type: ignore[arg-type]


def forced(case: Case, model: torch.nn.Module, hardware: Hardware, x: Tensor, y: Tensor) -> dict[str, PrivateModule]:
    """Every single strategy, the rule 2T^2 <= pd, and the other schedules; those that a model has no use for are left out."""
    auto = private(case, model, hardware, example_batch=(x, y))
    ways: dict[str, Mapping[str, object]] = {norm: {"strategy": norm} for norm in ("gram", "fused", "materialize")}
    ways |= {"2T^2 <= pd": {"strategy": by_rule(auto)}, "two-pass": {"schedule": "two-pass"},
             "half batches": {"microbatch": -(-case.batch_size // 2)}}  # fmt: skip
    found = {}
    for name, options in ways.items():
        try:
            found[name] = private(case, model, hardware, example_batch=(x, y), **options)
        except StrategyError:
            continue
    return found


def by_rule(module: PrivateModule) -> dict[str, str]:
    """Gram where 2T^2 <= pd, materialised otherwise, wherever both are possible."""
    chosen = {}
    for choice in module.plan.choices:
        norms = {option.norm for option in (choice.option, *choice.others)}
        if {"gram", "materialize"} <= norms:
            positions, parameters = positions_of(choice.site)
            chosen[choice.site.parameter] = "gram" if 2 * positions**2 <= parameters else "materialize"
    return chosen


def step_of(module: PrivateModule, x: Tensor, y: Tensor) -> Callable[[], Mapping[str, Tensor]]:
    """One step."""
    return lambda: module(x, y).grads


def measure_models(hardware: Hardware, rounds: int, progress: Callable[[str], None]) -> list[Model]:
    """All workloads of `make bench`."""
    found = []
    for name, case in CASES.items():
        progress(name)
        found.append(measure_model(case, hardware, rounds))
    return found
