"""What was measured at a setting, for the tables and the plots; None where it was not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.dropping.sweep import Setting


def accuracy(document: Mapping[str, Any], setting: Setting) -> tuple[float, float] | None:
    """Held-out accuracy: mean and standard deviation over the seeds."""
    found = document["points"].get(setting.key)
    return None if found is None else (found["accuracy"][0], found["accuracy"][1])


def cost(document: Mapping[str, Any], setting: Setting, measure: str) -> float | None:
    """measure: "step_ms", "megabytes" (peak), "noise" (the share of the entries that get noise; its energy)."""
    if measure == "noise":
        trained = document["points"].get(setting.key)
        return None if trained is None else float(trained["kept"][0])
    step = document["extras"].get(f"steps {setting.task}", {}).get(setting.key)
    if step is None:
        return None
    return float(step["bytes"]) / 1e6 if measure == "megabytes" else float(step[measure])


def ordinary_ms(document: Mapping[str, Any], task: str) -> float | None:
    """Milliseconds of a step of torch's own training."""
    found = document["extras"].get(f"steps {task}")
    return None if found is None else float(found["ordinary"]["step_ms"])
