"""Rows of equal layers merged: blocks.0.fc.weight and blocks.1.fc.weight become blocks.{0,1}.fc.weight."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from dpcompile.plan.plan import Choice


def folded(choices: Sequence[Choice]) -> list[tuple[str, list[Choice]]]:
    """Choices that differ in nothing but numbers in the parameter's name, under one name."""
    groups: dict[tuple[object, ...], list[Choice]] = {}
    for choice in choices:
        pattern = re.sub(r"\d+", "#", choice.site.parameter)
        ways = choice.option.norm, choice.option.sum, round(choice.option.seconds * 1e9)
        groups.setdefault((pattern, choice.site.equation, choice.site.shape, *ways), []).append(choice)
    return [(folded_name([c.site.parameter for c in group]), group) for group in groups.values()]


def folded_name(names: list[str]) -> str:
    """One name for several that differ in numbers only."""
    if len(names) == 1:
        return names[0]
    columns = list(zip(*(re.split(r"(\d+)", name) for name in names), strict=True))
    if math.prod(len(set(parts)) for parts in columns) != len(names):  # not all combinations: braces would name too many
        return f"{names[0]} and {len(names) - 1} more"
    return "".join(parts[0] if len(set(parts)) == 1 else "{" + in_short(list(dict.fromkeys(parts))) + "}" for parts in columns)


def in_short(numbers: list[str]) -> str:
    """0,1,2,3,7 as 0-3,7; runs of two are written out."""
    runs: list[list[str]] = []
    for text in numbers:
        follows = runs and text.isdigit() and runs[-1][-1].isdigit() and int(text) == int(runs[-1][-1]) + 1
        if follows:
            runs[-1].append(text)
        else:
            runs.append([text])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(run) for run in runs)
