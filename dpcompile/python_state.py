"""What a trace cannot carry: Python state that forward writes, hooks on parameters, compiled TorchScript.

A trace runs Python once. A number that forward changes would stay what it was, a hook on a parameter would change the sum
and not each example's gradient; both are refused before anything is computed with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dpcompile.ir.errors import CaptureError, refusal

Saved = Sequence[tuple[nn.Module, dict[str, Any]]]
NUMBERS = (bool, int, float, str)
OWN = frozenset(vars(nn.Module())) - {"training"}


def check_before(program: nn.Module) -> None:
    """Refuse modules and parameters that cannot be traced as they are."""
    for name, module in program.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError(
                refusal(
                    f"{name.removeprefix('model.')} is a TorchScript module",
                    "",
                    "its Python source is gone, so that it cannot be traced",
                    "give the module from which it was made with torch.jit.script or torch.jit.trace",
                )
            )
    for name, parameter in program.named_parameters():
        if parameter._backward_hooks:
            raise CaptureError(
                refusal(
                    f"parameter {name.removeprefix('model.')} has a hook (register_hook)",
                    "",
                    "the hook sees the gradient of the whole batch, so what it does to each example is not known",
                    "remove the hook and change step.grads instead, or change the parameter in forward",
                )
            )


def check_after(program: nn.Module, saved: Saved) -> None:
    """Refuse a model whose forward changed numbers or texts of its modules while it was traced."""
    names = {module: name for name, module in program.named_modules()}
    for module, before in saved:
        for attribute, now in vars(module).items():
            if attribute not in OWN and isinstance(now, NUMBERS) and differs(before.get(attribute), now):
                path = ".".join(part for part in (names[module].removeprefix("model").lstrip("."), attribute) if part)
                raise CaptureError(
                    refusal(
                        f"forward writes the attribute {path}",
                        "",
                        "a trace runs Python once, so that the attribute would keep its value from step to step",
                        "keep such state in a buffer that does not depend on the batch, or change it outside of forward; "
                        "if only a first call sets it, call the model once before",
                    )
                )


def differs(before: Any, now: Any) -> bool:
    """Whether an attribute was changed; NaN is equal to itself here."""
    return before is not now and (type(before) is not type(now) or (before != now and before == before))
