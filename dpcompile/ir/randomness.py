"""Which operations of a graph draw random numbers, and how two programs are made to draw the same.

torch tags an operation that may draw. Fused attention carries the tag for its dropout, which is off in most models; it
counts only where its probability is not the constant zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from dpcompile import torch_private


def dropout_place(node: fx.Node) -> int | None:
    """Which positional argument of fused attention is the probability of dropout."""
    if not isinstance(node.target, torch_private.OpOverload):
        return None
    names = [argument.name for argument in node.target._schema.arguments]
    return names.index("dropout_p") if "dropout_p" in names else None


def is_seeded(node: fx.Node) -> bool:
    """Whether torch tags a node's operation as one that may draw."""
    target = node.target
    return isinstance(target, torch_private.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


def draws(node: fx.Node) -> bool:
    """Whether a node draws random numbers."""
    place = dropout_place(node)
    if not is_seeded(node) or place is None:
        return is_seeded(node)
    given = node.args[place] if place < len(node.args) else node.kwargs.get("dropout_p", 0.0)
    return not isinstance(given, (int, float)) or given != 0


def has_draws(nodes: Iterable[fx.Node]) -> bool:
    """Whether any of the nodes draws random numbers."""
    return any(draws(node) for node in nodes)


def equal_draws() -> torch_private.Watch:
    """A context in which every random operation starts from the same seed.

    Two programs that draw in the same shapes then draw the same numbers, in whatever order they do so.
    """

    def restart(operation: Any, args: tuple[Any, ...]) -> None:
        if torch.Tag.nondeterministic_seeded in operation.tags:
            torch.manual_seed(0)

    return torch_private.Watch(restart)
