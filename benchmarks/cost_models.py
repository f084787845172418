"""Whole models for `make bench-cost`: predicted against measured step time, and what the choice costs against forced ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import trim_mean
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
ENOUGH: float = 40.0
"""Seconds per model after which no more than the asked number of rounds are made."""
MOST: int = 4
"""Times the asked number of rounds."""


@dataclass(frozen=True)
class Model:
    """One model: seconds by way, what was predicted for our own choice, and the noise of its two measurements.

    Seconds are means of the middle half of the rounds, at the pace of the calibration: one factor for all ways of a model.
    ordinary: predicted and measured seconds of the ordinary step.
    """

    title: str
    predicted: float
    seconds: dict[str, float]
    noise: float
    ordinary: tuple[float, float]

    @classmethod
    def read(cls, facts: dict[str, Any]) -> Model:
        """From the JSON of earlier results."""
        return cls(**{**facts, "ordinary": tuple(facts["ordinary"])})

    def regret(self) -> float:
        """How much slower our choice is than the best way, beyond the noise."""
        regret = self.seconds["auto"] / min(self.seconds.values()) - 1
        return regret if regret > self.noise else 0.0


def interleaved(steps: Mapping[str, Step], rounds: int, pace: Pace) -> dict[str, list[float]]:
    """Seconds of every step in every round, each behind an untimed one of its own; more rounds for short steps."""
    samples: dict[str, list[float]] = {name: [] for name in steps}
    names, started = list(steps), time.perf_counter()
    for number in range(MOST * rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            pace.read()
            steps[name]()
            samples[name].append(once(steps[name], (), CPU))
        if number + 1 >= rounds and time.perf_counter() - started > ENOUGH:
            break
    return samples


def measure_model(case: Case, done: Calibration, rounds: int) -> Model:
    """Our choice, compiled twice, and everything that a user could have forced, interleaved.

    Two instances, because the same step in other memory is a few per cent faster or slower for as long as the process runs.
    """
    model, (x, y), hardware = case.model("cpu"), case.batch("cpu"), done.hardware
    made = {"auto": private(case, model, hardware), **forced(case, model, hardware, x, y), AGAIN: private(case, model, hardware)}
    steps: dict[str, Step] = {name: step_of(module, x, y) for name, module in made.items()}
    steps[ORDINARY] = ordinary_eager(case, model, x, y)
    pace = Pace(done.hardware.flops("float32"), CPU)
    samples = interleaved(steps, rounds, pace)
    slow = pace.usual / done.pace
    means = {name: float(trim_mean(found, 0.25)) / slow for name, found in samples.items()}
    again, ordinary = means.pop(AGAIN), means.pop(ORDINARY)
    noise, forecast = abs(math.log(again / means["auto"])), made["auto"].report().forecast
    return Model(case.title, forecast.seconds, means, noise, (forecast.ordinary_seconds, ordinary))


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
