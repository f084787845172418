"""Compare a compiled step with the plain loop over single examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verification:
    """Result of a comparison."""

    ok: bool


def verify(private: Any, batch: Any, examples: int, strict: bool) -> Verification:
    """Stub."""
    return Verification(True)
