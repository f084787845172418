"""A clip norm that follows a quantile of the gradient norms, privately (Andrew, Thakkar, McMahan and Ramaswamy, 2021).

    count = sum over examples of (1 if norm <= C else 0) - 1/2,  + N(0, sigma_b^2)     sensitivity 1/2
    share = count / expected_batch_size + 1/2
    C     = C exp(-learning_rate (share - quantile))

Gradients and count are one Gaussian mechanism of noise multiplier z when gradients get z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2):
the count's noise is 2 sigma_b in units of its sensitivity. The ledger holds z; z_delta is what the gradients' noise is made from.
An example that is masked or not finite is in neither sum. The divisor is the public constant, never the number drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dpcompile.ir.errors import InvalidInput
from dpcompile.step import Step
from dpcompile.training.noise import Noise
from dpcompile.training.session import Session


@dataclass(frozen=True)
class AdaptiveQuantile:
    """Flat clipping at a norm that a share `quantile` of the examples shall not exceed.

    learning_rate: of the norm's logarithm. count_noise: standard deviation sigma_b of the noise on the count; a twentieth of the
    expected batch size by default. max_grad_norm is where it starts; least and most are where it stops.
    """

    quantile: float = 0.5
    learning_rate: float = 0.2
    count_noise: float | None = None
    least: float = 1e-6
    most: float = 1e6

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise InvalidInput(f"quantile must be between 0 and 1, got {self.quantile!r}")
        if not (self.learning_rate > 0 and 0 < self.least < self.most < math.inf):
            raise InvalidInput("learning_rate must be positive, and 0 < least < most")
        if self.count_noise is not None and not 0 < self.count_noise < math.inf:
            raise InvalidInput(f"count_noise must be a positive finite number, got {self.count_noise!r}")

    def sigma(self, expected: int) -> float:
        """Standard deviation of the noise on the count."""
        return expected / 20 if self.count_noise is None else self.count_noise

    def gradient_noise(self, noise_multiplier: float, expected: int) -> float:
        """z_delta: the noise multiplier of the gradients that, with the count's, amounts to this one."""
        if noise_multiplier == 0:
            return 0.0
        rest = noise_multiplier**-2 - (2 * self.sigma(expected)) ** -2
        if rest <= 0:
            raise InvalidInput(
                f"the count's noise {self.sigma(expected):g} alone spends more than noise_multiplier {noise_multiplier:g} does; "
                f"raise count_noise above {noise_multiplier / 2:g}, or expected_batch_size"
            )
        return rest**-0.5

    def next_norm(self, session: Session, norm: float, noise: Noise, expected: int) -> float:
        """The clip norm of the next step, from the norms of this one."""
        count = sum(float(indicators(step).sum()) for step in session.steps)
        drawn = float(noise.fill(torch.zeros(1, dtype=torch.float64), self.sigma(expected)))
        share = (count + drawn) / expected + 0.5
        return min(max(norm * math.exp(-self.learning_rate * (share - self.quantile)), self.least), self.most)


def indicators(step: Step) -> Tensor:
    """f64[B]: 1/2 for examples that were not clipped, -1/2 for those that were, 0 for rows that do not count."""
    signs = torch.where(step.unclipped, 0.5, -0.5).double()
    return torch.where(step.counted & ~step.nonfinite, signs, 0.0)
