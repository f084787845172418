"""Hooks that are registered for all modules, while a trace runs modules of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from dpcompile import torch_private


@contextlib.contextmanager
def global_hooks_skip(skipped: Callable[[nn.Module], bool]) -> Iterator[None]:
    """Hooks on all modules that leave some modules out."""

    def filtered(hook: Callable[..., Any]) -> Callable[..., Any]:
        return lambda module, *args: None if skipped(module) else hook(module, *args)

    saved = [(kind, dict(kind)) for kind in torch_private.kinds_of_global_hooks()]
    for kind, hooks in saved:
        kind.update({number: filtered(hook) for number, hook in hooks.items()})
    try:
        yield
    finally:
        for kind, hooks in saved:
            kind.update({number: hook for number, hook in hooks.items() if number in kind})
