"""What one private step returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dpcompile.clip.kind import Kind
from dpcompile.clip.rule import Rule
from dpcompile.selection import Trained


@dataclass(frozen=True)
class Step:
    """One private step.

    losses: f32[B] per-example losses. norms: f32[B] norms of whole per-example gradients. clip_factors: f32[B], for flat
    clipping min(1, C / norm); with K groups of parameters f32[B, K] in the order of `private.clip_groups`. grads: {parameter
    name: sum over examples of clip_factor * gradient}, float32 or wider. nonfinite: bool[B]. counted: bool[B], the mask.
    kind, max_grad_norm: how the step was clipped. parts: what was trained, where passes choose it; see `trained`.

    Guarantee: the sum in `grads` changes by at most C (in the joint L2 norm over all parameters) when one example is
    added or removed, up to the slack stated in `dpcompile.kernels.clipping`. `losses`, `norms`, `clip_factors`,
    `nonfinite` and what follows from them are NOT private: do not publish or log them where the training data must stay
    protected.
    """

    losses: Tensor
    norms: Tensor
    clip_factors: Tensor
    grads: dict[str, Tensor]
    nonfinite: Tensor
    counted: Tensor
    kind: Kind
    max_grad_norm: float
    parts: Trained | None = None

    def trained(self, name: str) -> Tensor | None:
        """bool[*shape]: the entries of a parameter that this step trained, which noise belongs on; None: all of them.

        Raises InvalidInput once `reselect` has chosen others.
        """
        return None if self.parts is None else self.parts.mask(name)

    @property
    def unclipped(self) -> Tensor:
        """bool[B], with groups bool[B, K]: 1[n <= C], which adaptive clipping counts (not private); False for masked examples.

        Flat and groups: the factor is 1. Global: the gradient is not left out. The kinds that scale every gradient: n <= C.
        """
        kept = self.kind.unclipped(self.norms, self.clip_factors, self.max_grad_norm)
        counted = self.counted & ~self.nonfinite
        return kept & (counted if kept.dim() == 1 else counted[:, None])

    @property
    def count_unclipped(self) -> Tensor:
        """i64[], with groups i64[K]: how many unmasked examples have n <= C. Add noise before it leaves the step: NOT private.

        One example changes it by 1; with groups by 1 for every group, sqrt(K) in L2.
        """
        return self.unclipped.sum(0)

    @property
    def share_clipped(self) -> float:
        """Share of the unmasked examples whose gradient was clipped, in some group or as a whole (not private)."""
        whole = self.unclipped if self.unclipped.dim() == 1 else self.unclipped.all(1)
        count = int(self.counted.sum())
        return float((self.counted & ~whole).sum()) / count if count else 0.0


def empty_step(gradients: dict[str, Tensor], rule: Rule, kind: Kind, max_grad_norm: float, device: torch.device,
               parts: Trained | None = None) -> Step:  # fmt: skip
    """The step of no examples; gradients: zeros for every parameter, in the types that sums have."""
    dtype = next((gradient.dtype for gradient in gradients.values()), torch.float32)
    empty, flags = torch.zeros(0, dtype=dtype, device=device), torch.zeros(0, dtype=torch.bool, device=device)
    factors = empty.new_zeros((0, len(rule.groups)) if rule.groups else 0)
    return Step(empty, empty.clone(), factors, gradients, flags, flags.clone(), kind, max_grad_norm, parts)


def add_up(total: dict[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
    """Add one chunk's sums to those before it."""
    for name, gradient in gradients.items():
        total[name] = total[name].add_(gradient) if name in total else gradient
