"""What users give to `dpcompile()` as the types that the rest of the package works with; wrong values are refused here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpcompile.clip.kind import SMALLEST_NORM, Kind
from dpcompile.clip.rule import Rule, check_one_backward
from dpcompile.cost.hardware import Hardware, named
from dpcompile.ir.errors import InvalidInput, StrategyError
from dpcompile.measure.cache import load, nearest_row
from dpcompile.plan.methods import method_of
from dpcompile.plan.plan import Plan
from dpcompile.plan.saved import SavedPlan, load_plan

SCHEDULES = ("auto", "one-pass", "two-pass", "microbatch")


def positive(max_grad_norm: Any) -> float:
    """The clip norm as a positive finite number."""
    is_number = isinstance(max_grad_norm, Real) or (isinstance(max_grad_norm, Tensor) and max_grad_norm.numel() == 1)
    if not is_number or isinstance(max_grad_norm, bool) or not 0 < max_grad_norm < float("inf"):
        raise InvalidInput(f"max_grad_norm must be a positive finite number, got {max_grad_norm!r}")
    if max_grad_norm < SMALLEST_NORM:
        raise InvalidInput(
            f"max_grad_norm={float(max_grad_norm):g} is below {SMALLEST_NORM:g}, where squares of gradients vanish in float32 "
            "and norms come out too small; multiply the loss and max_grad_norm by the same large number"
        )
    return float(max_grad_norm)


def clip_norm(max_grad_norm: Any, kind: Kind) -> float:
    """The clip norm that the user gave, or what the kind itself says."""
    if kind.own_norm is None:
        return positive(1.0 if max_grad_norm is None else max_grad_norm)
    if max_grad_norm is not None and not math.isclose(positive(max_grad_norm), kind.own_norm, rel_tol=1e-9):
        raise StrategyError(
            f"max_grad_norm={max_grad_norm:g} beside {type(kind).__name__}, whose clip norms amount to {kind.own_norm:g}; leave "
            "max_grad_norm= out, and assign private.max_grad_norm later to scale all of them"
        )
    return kind.own_norm


def step_norm(max_grad_norm: Any, rule: Rule) -> float:
    """The clip norm of a step; every group's own must be one, too."""
    limit = positive(max_grad_norm)
    smallest = min((group.share for group in rule.groups), default=1.0) * limit
    if smallest < SMALLEST_NORM:
        raise InvalidInput(f"max_grad_norm={limit:g} leaves a group of parameters {smallest:g}, below {SMALLEST_NORM:g}")
    return limit


def check_no_mask(mask: Tensor | None) -> None:
    """Only a step takes a mask."""
    if mask is not None:
        raise InvalidInput("only a step takes a mask; leave the masked examples out of the batch here")


def chunk_size(schedule: str, microbatch: Any) -> int | None:
    """How many examples a chunk holds at most; None for the whole batch at once."""
    if schedule not in SCHEDULES:
        raise StrategyError(f"schedule={schedule!r} does not exist; use one of {', '.join(SCHEDULES)}")
    if microbatch is not None and (isinstance(microbatch, bool) or not isinstance(microbatch, Integral) or microbatch < 1):
        raise InvalidInput(f"microbatch must be a positive integer, got {microbatch!r}")
    if schedule == "one-pass" and microbatch is not None:
        raise StrategyError('schedule="one-pass" takes the whole batch at once; use schedule="microbatch" for chunks')
    chunk = None if microbatch is None else int(microbatch)
    return chunk or 1 if schedule == "microbatch" else chunk


@dataclass(frozen=True)
class Asked:
    """What of the plan the user leaves open: strategies, schedule, chunk size, and the plan that says them, if one was given."""

    strategy: Any
    schedule: str
    microbatch: int | None
    plan: SavedPlan | None


def resolved(plan: Plan | SavedPlan | str | Path | None, strategy: Any, schedule: str, microbatch: Any, kind: Kind) -> Asked:
    """The arguments that speak of the plan, checked against one another."""
    given = given_plan(plan, strategy, schedule)
    schedule, microbatch = method_schedule(strategy, schedule, microbatch, kind)
    chunk = chunk_size(schedule, given.microbatch if given is not None and microbatch is None else microbatch)
    wanted = given.strategies() if given is not None else strategy
    check_one_backward(kind, schedule, wanted)
    return Asked(wanted, schedule, chunk, given)


def method_schedule(strategy: Any, schedule: str, microbatch: Any, kind: Kind) -> tuple[str, Any]:
    """Schedule and chunk size with what a method of the literature says about them; StrategyError where the two disagree."""
    method = method_of(strategy)
    if method is None or schedule not in SCHEDULES:
        return schedule, microbatch
    if schedule not in ("auto", "microbatch", method.schedule):
        raise StrategyError(
            f'strategy="{method.name}" is a method with schedule="{method.schedule}"; leave schedule="{schedule}" out'
        )
    if method.schedule == "microbatch" and microbatch not in (None, 1):
        raise StrategyError(f'strategy="{method.name}" takes one example at a time; leave microbatch={microbatch!r} out')
    if method.schedule == "two-pass" and kind.is_grouped:
        raise StrategyError(
            f'strategy="{method.name}" cannot be used with clipping="{kind.name}": a second backward multiplies what flows to '
            'all parameters by one factor, and here every group has its own. Use strategy="bookkeep", which runs backward once'
        )
    if schedule == "microbatch" and microbatch is None:
        microbatch = 1
    return method.schedule if method.schedule != "one-pass" else schedule, microbatch


def given_plan(plan: Plan | SavedPlan | str | Path | None, strategy: Any, schedule: str) -> SavedPlan | None:
    """A plan as data: as it came from a module, or from a file. It leaves nothing else to be asked for."""
    for name, value in (("strategy", strategy), ("schedule", schedule)):
        if plan is not None and value != "auto":
            raise StrategyError(f"the plan says already what {name}={value!r} asks for; leave {name}= out, or edit the plan")
    if isinstance(plan, (str, Path)):
        return load_plan(plan)
    if plan is not None and not isinstance(plan, (Plan, SavedPlan)):
        raise StrategyError(f"plan must be a plan, or the file that one was saved to, got {plan!r}")
    return plan.saved() if isinstance(plan, Plan) else plan


def hardware_row(wanted: str | Hardware | None, model: nn.Module) -> tuple[Hardware, str]:
    """The row that was asked for, or what is known of where the model lives, and a note on where its numbers come from."""
    asked = named(wanted)
    if asked is not None:
        return asked, ""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    measured, trouble = load(device)
    if measured is not None:
        return measured, ""
    row = nearest_row(device)
    advice = trouble or f"prices are those of the table's row {row.name}; python -m dpcompile calibrate measures this machine"
    return row, advice


def zero_gradient(parameter: nn.Parameter) -> Tensor:
    """Zeros in the dtype of sums."""
    return torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))
