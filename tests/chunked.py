"""A compiled step with another chunk size: one graph serves all of them, so nothing is traced again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any


def in_chunks(private: Any, chunk: int | None) -> None:
    """Let the step that is compiled last take at most so many examples at a time; None takes the whole batch.

    A plan for one example at a time stays what it is: its norms are read off ordinary gradients.
    """
    found = private.ready()
    if any(choice.option.norm == "ordinary" for choice in found.plan.choices):
        return
    key = next(key for key, compiled in private.steps.by_key.items() if compiled is found)
    private.steps.by_key[key] = private.steps.latest = replace(found, plan=replace(found.plan, microbatch=chunk))
