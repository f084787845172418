"""Whole models for `make bench-cost`: predicted against measured step time, and what the choice costs against forced ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.cases import CASES, MAX_GRAD_NORM, Case
from benchmarks.methods import Step, ordinary_eager
from benchmarks.site_sizes import positions_of
from dpcompile import PrivateModule, StrategyError, dpcompile
from dpcompile.cost.hardware import Hardware
from dpcompile.measure.calibrate import Calibration
from dpcompile.measure.clock import Pace, once

CPU = torch.device("cpu")
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


def paced(steps: Mapping[str, Step], rounds: int, done: Calibration) -> dict[str, list[float]]:
    """Seconds of every step in every round at the pace of the calibration, each behind an untimed one of its own."""
    pace = Pace(done.hardware.flops("float32"), CPU)
    samples: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            steps[name]()
            (spent,) = pace.corrected(lambda name=name: [once(steps[name], (), CPU)])  # type: ignore[misc]
            samples[name].append(spent * done.pace)
    return samples


def measure_model(case: Case, done: Calibration, rounds: int) -> Model:
    """Our choice, twice, and everything that a user could have forced, interleaved."""
    model, (x, y), hardware = case.model("cpu"), case.batch("cpu"), done.hardware
    made = {"auto": private(case, model, hardware), **forced(case, model, hardware, x, y)}
    steps: dict[str, Step] = {name: step_of(module, x, y) for name, module in [*made.items(), (AGAIN, made["auto"])]}
    steps[ORDINARY] = ordinary_eager(case, model, x, y)
    samples = paced(steps, rounds, done)
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


def measure_models(done: Calibration, rounds: int, progress: Callable[[str], None]) -> list[Model]:
    """All workloads of `make bench`."""
    found = []
    for name, case in CASES.items():
        progress(name)
        found.append(measure_model(case, done, rounds))
    return found
