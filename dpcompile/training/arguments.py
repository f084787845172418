"""What make_private is asked for, checked: the divisor, the sampling, the physical batches, the names of options."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dpcompile.ir.errors import InvalidInput
from dpcompile.module import PrivateModule
from dpcompile.training.accountant import check_delta
from dpcompile.training.calibrate import check_target
from dpcompile.training.loader import PrivateLoader
from dpcompile.training.release import Pass, Poisson, Sampling, TruncatedPoisson, checked_rate, whole

OTHER_MODES = ("hooks", "functorch", "ew", "auto")
"""Opacus' ways to compute norms, any of which a script may name."""
OUTSIDE = {"self", "compile_options", "model", "loss"}
"""Parameters of make_private and dpcompile that are no options."""


def check_budget(noise_multiplier: Any, target_epsilon: Any, target_delta: Any, accountant: Any) -> None:
    """Either noise, or a target that noise can be found for."""
    if (noise_multiplier is None) == (target_epsilon is None):
        raise InvalidInput("give noise_multiplier=, or target_epsilon= and target_delta=, and not both")
    if target_epsilon is None:
        return
    if not isinstance(accountant, str):
        raise InvalidInput('the noise for a target epsilon is found with accountant="pld" or "rdp"; or give noise_multiplier=')
    if target_delta is None:
        raise InvalidInput("target_delta= is missing; it is usually below 1 / number of examples")
    check_target(target_epsilon, 1)
    check_delta(target_delta)


def divisor(expected: Any, loader: DataLoader[Any]) -> int:
    """The public constant that sums are divided by."""
    if expected is None:
        expected = loader.expected_batch_size if isinstance(loader, PrivateLoader) else loader.batch_size
    if expected is None:
        raise InvalidInput(
            "expected_batch_size= is missing, and data_loader has no batch_size to take it from: sums are divided by a "
            "public constant, never by the number of examples that were drawn"
        )
    return whole(expected, "expected_batch_size")


def sampling_for(loader: DataLoader[Any], expected: int, rate: Any, limit: Any, poisson: bool) -> Sampling:
    """How examples are drawn."""
    count = len(loader.dataset)  # type: ignore[arg-type]
    if not poisson:
        if rate is not None or limit is not None:
            raise InvalidInput(
                "sample_rate= and truncated_batch_size= are for Poisson sampling; leave them out, or poisson_sampling=False"
            )
        return Pass(0)
    if count == 0 and rate is None:
        raise InvalidInput("data_loader's dataset is empty")
    found = checked_rate(expected / count if rate is None else rate)
    return Poisson(found) if limit is None else TruncatedPoisson(found, count + 1, whole(limit, "truncated_batch_size"))


def physical_rows(size: Any, pad: Any, expected: int, private: PrivateModule) -> tuple[int | None, bool]:
    """The most rows of a physical batch, if there is a limit, and whether all have that many; on a GPU they do by default."""
    if pad not in (None, True, False):
        raise InvalidInput(f"pad_batches must be True, False or None, got {pad!r}")
    is_first = private.batch_dim == 0
    if pad and not is_first:
        raise InvalidInput(
            f"pad_batches=True puts rows behind the drawn ones along axis 0, but batch_dim={private.batch_dim!r} says that "
            "examples lie elsewhere; leave pad_batches out"
        )
    is_padded = is_first and device_of(private).type == "cuda" if pad is None else bool(pad)
    if size is None:
        return (usual_size(expected) if is_padded else None), is_padded
    return whole(size, "physical_batch_size"), is_padded


def usual_size(expected: int) -> int:
    """Three standard deviations above the expected size, in eights: one physical batch nearly always holds a Poisson draw."""
    return -(-int(expected + 3 * expected**0.5) // 8) * 8


def device_of(private: PrivateModule) -> torch.device:
    """Where the parameters are."""
    first: Tensor | None = next(iter(parameter for _, parameter in private.trainable()), None)
    if first is None:
        raise InvalidInput("module has no parameter that requires grad; there is nothing to train")
    return first.device


def check_names(options: dict[str, Any], takers: tuple[Callable[..., Any], ...]) -> None:
    """Refuse names of options that none of these functions has."""
    known = {name for taker in takers for name in inspect.signature(taker).parameters} - OUTSIDE
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}=?" if near else ""
            reason = "; compile the loss with dpcompile(model, loss) and give that as module=" if name == "loss" else hint
            raise InvalidInput(f"make_private has no argument {name}={reason}")


def checked_other(accountant: Any) -> Any:
    """An accountant of another library."""
    if not (callable(getattr(accountant, "step", None)) and callable(getattr(accountant, "get_epsilon", None))):
        raise InvalidInput(
            f'accountant={accountant!r} has no step() and get_epsilon(); use "pld" or "rdp", or an accountant as Opacus has them'
        )
    return accountant


def check_mode(grad_sample_mode: str, batch_first: bool) -> None:
    """Opacus' arguments that have no counterpart here, and several processes, whose sums would be added before the noise."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InvalidInput("WORLD_SIZE is above 1: private training runs in one process so far")
    if grad_sample_mode not in OTHER_MODES:
        raise InvalidInput(
            f"grad_sample_mode={grad_sample_mode!r}: the compiler chooses how norms are computed, and make_private always "
            "returns (module, optimizer, data_loader); leave grad_sample_mode out and call backward on the loss as usual"
        )
    if not batch_first:
        raise InvalidInput("batch_first=False: say with batch_dim= where the examples lie (batch_dim=1)")
