"""What can go wrong, one class per kind of mistake; every message says where, why and what to do instead."""

from __future__ import annotations


class DPCompileError(Exception):
    """Base class of every refusal. A refused compile leaves the model as it was."""


class InvalidInput(DPCompileError, ValueError):
    """An argument, a batch or a loss is not what the interface asks for."""


class CaptureError(DPCompileError):
    """PyTorch could not trace the model, or the traced graph is right for some batch sizes only."""


class MixedExamplesError(DPCompileError):
    """One example's value depends on another example, so per-example gradients do not exist."""


class UnsupportedOperation(DPCompileError):
    """An operation has no rule (or no rule for this use), so independence cannot be shown."""


class StrategyError(DPCompileError, ValueError):
    """A strategy, schedule or plan does not exist or cannot be applied to a site."""


class BudgetError(DPCompileError, ValueError):
    """No plan keeps the predicted peak memory within the budget; the message names the smallest that one would."""


class VerificationError(DPCompileError):
    """The compiled step and the per-example loop differ by more than the stated tolerance."""


def refusal(culprit: str, where: str, why: str, way_out: str) -> str:
    """Lay out a refusal: the culprit, the user's line, the reason and the way out, one per line."""
    lines = [culprit, f"  at: {where}" if where else "", f"  why: {why}", f"  what to do: {way_out}"]
    return "\n".join(line for line in lines if line)
