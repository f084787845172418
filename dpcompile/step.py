"""What one private step returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Step:
    """One private step.

    losses: f32[B] per-example losses. norms: f32[B] per-example gradient norms. clip_factors: f32[B], min(1, C / norm).
    grads: {parameter name: sum over examples of clip_factor * gradient}, float32 or wider. nonfinite: bool[B].

    Guarantee: the sum in `grads` changes by at most C (in the joint L2 norm over all parameters) when one example is
    added or removed, up to the slack stated in `dpcompile.kernels.clipping`. `losses`, `norms`, `clip_factors` and
    `nonfinite` are NOT private: do not publish or log them where the training data must stay protected.
    """

    losses: Tensor
    norms: Tensor
    clip_factors: Tensor
    grads: dict[str, Tensor]
    nonfinite: Tensor

    @property
    def share_clipped(self) -> float:
        """Share of examples whose gradient was scaled down (not private)."""
        return float((self.clip_factors < 1).float().mean()) if self.clip_factors.numel() else 0.0
