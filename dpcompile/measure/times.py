"""Measured times of autotuning on disk, one file per device, versions and number of threads, beside the calibration."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch

from dpcompile.measure.cache import digest, folder, identity, written

FORMAT: Final = 1


def positive(spent: float) -> float:
    """A time that can have been measured."""
    if not 0 < float(spent) < float("inf"):
        raise ValueError(f"{spent} is no time")
    return float(spent)


@dataclass
class Times:
    """Seconds by what was measured. notes: what went wrong with the file, which is never a reason to fail."""

    path: Path
    identity: dict[str, str]
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    known: int = 0

    @classmethod
    def load(cls, device: torch.device) -> Times:
        """What is on disk for this device; nothing where there is no file or it cannot be read."""
        times = cls(folder() / f"autotune-{digest(device)}.json", identity(device))
        if not times.path.exists():
            return times
        try:
            document = json.loads(times.path.read_text(encoding="ascii"))
            if document["format"] != FORMAT or document["identity"] != times.identity:
                raise ValueError("of another version")
            times.seconds = {str(key): positive(spent) for key, spent in document["seconds"].items()}
            times.known = len(times.seconds)
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
            times.seconds = {}
            times.notes.append(f"measured times in {times.path} cannot be read ({type(error).__name__}) and are made anew")
        return times

    def save(self) -> None:
        """Write what is new."""
        if len(self.seconds) == self.known:
            return
        document = {"format": FORMAT, "identity": self.identity, "seconds": self.seconds}
        try:
            written(self.path, document)
        except OSError as error:
            self.notes.append(f"measured times cannot be kept in {self.path} ({error.strerror or error})")
