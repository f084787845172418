"""Gaussian noise for sums: fast by default, repeatable for tests, or from the operating system's cryptographic generator.

The default draws float32 with torch's generator, seeded by 64 bits of the operating system's entropy. That generator is not
cryptographic (its state follows from enough of its output), and its normals stand on a grid that depends on what is added
(Mironov 2012). `SecureNoise` draws every bit from the operating system and adds four normals for each value (Holohan and Braghin,
Secure random sampling in differential privacy, 2021), in float64. Its limits: the sum of noise and gradient is rounded to the
parameter's type all the same, and how long a draw takes is not hidden.
"""

from __future__ import annotations

import math
import os
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

TERMS = 4
"""Normals that are added for one value; an even number, so that all of a Box-Muller pair are used."""
CHUNK = 1 << 18


class Noise(Protocol):
    """A source of independent normals."""

    def fill(self, out: Tensor, deviation: float) -> Tensor:
        """Overwrite f32 or f64 `out` of any shape with normals of this standard deviation; returns `out`."""

    def state(self) -> Tensor | None:
        """u8[...] that a checkpoint may hold, or None: whoever can read it could draw the same noise."""

    def set_state(self, state: Tensor) -> None:
        """Go on from such a state."""


class GeneratorNoise:
    """Normals of a torch generator: of a given one, of a seed, or seeded by the operating system."""

    def __init__(
        self, seed: int | None = None, generator: torch.Generator | None = None, device: str | torch.device = "cpu"
    ) -> None:
        self.is_repeatable, self.is_given = seed is not None, generator is not None
        self.generator = torch.Generator(device) if generator is None else generator
        if generator is None:
            self.generator.manual_seed(entropy() if seed is None else seed)

    def fill(self, out: Tensor, deviation: float) -> Tensor:
        """Normals in the type of `out`."""
        if self.generator.device == out.device:
            return out.normal_(0.0, deviation, generator=self.generator)
        return out.copy_(torch.empty_like(out, device=self.generator.device).normal_(0.0, deviation, generator=self.generator))

    def state(self) -> Tensor | None:
        """The generator's state where a seed was given."""
        return self.generator.get_state() if self.is_repeatable else None

    def set_state(self, state: Tensor) -> None:
        """Go on from a saved state."""
        self.generator.set_state(state)


class SecureNoise:
    """Normals from the operating system's cryptographic generator, each the sum of four divided by two."""

    def fill(self, out: Tensor, deviation: float) -> Tensor:
        """Draws in float64 and rounds to the type of `out`."""
        flat = out.view(-1) if out.is_contiguous() else torch.empty(out.numel(), dtype=out.dtype, device=out.device)
        for start in range(0, flat.numel(), CHUNK):
            part = flat[start : start + CHUNK]
            part.copy_(torch.from_numpy(secure_normals(part.numel()) * deviation))
        return out if out.is_contiguous() else out.copy_(flat.view(out.shape))

    def state(self) -> None:
        """There is none."""
        return None

    def set_state(self, state: Tensor) -> None:
        """There is nothing to go on from."""


def secure_normals(count: int) -> np.ndarray:
    """f64[count] standard normals from os.urandom, by Box and Muller (1958)."""
    halves = TERMS // 2
    bits = np.frombuffer(os.urandom(2 * halves * count * 8), dtype=np.uint64).reshape(2, halves, count)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # never 0 or 1
    radius, angle = np.sqrt(-2 * np.log(uniform[0])), 2 * math.pi * uniform[1]
    return (radius * np.cos(angle) + radius * np.sin(angle)).sum(0) / math.sqrt(TERMS)


def entropy() -> int:
    """63 random bits of the operating system, which every generator of torch takes as a seed."""
    return int.from_bytes(os.urandom(8)) >> 1
