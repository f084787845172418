"""When two computations of one value agree up to rounding.

Scales are robust on purpose: attention masks hold -1e9 or the end of the type's range, and a tolerance
relative to the largest element would hide every mixture in such a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from dpcompile.kernels.gram import convolution_rounding

# Allowed deviation of one operation, in units of roundoff relative to |value| + its typical size. Half types
# round once at the end (sums run in float32), so two units are already suspicious; what is suspicious is
# computed again in float64. There is nothing wider than float64, so the sizes of its operands count there
# too.
UNITS = {torch.float64: 512, torch.float32: 64, torch.float16: 1, torch.bfloat16: 1}
SHRINKS = 1e-3  # a deviation that does not shrink by this factor in float64 is no rounding
# Whole programs, relative to the norm of the whole gradient: rounding through all layers, kernels chosen by
# shape.
WHOLE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
# The same where torch may round operands of float32 products or convolutions by this unit (TensorFloat-32, bfloat16).
ROUNDED = {0.0: 0.0, 2.0**-10: 5e-3, 2.0**-8: WHOLE[torch.bfloat16]}
SAMPLE = 4096


def gap(left: Tensor, right: Tensor) -> Tensor:
    """Absolute difference per element; 0 where equal or both NaN, infinite where one is not finite."""
    if left.is_complex():
        return gap(torch.view_as_real(left.resolve_conj()), torch.view_as_real(right.resolve_conj()))
    if not left.is_floating_point():
        return (left != right).double()
    wide = torch.promote_types(left.dtype, torch.float32)
    same = (left == right) | (left.isnan() & right.isnan())
    return torch.where(same, 0.0, (left.to(wide) - right.to(wide)).abs()).nan_to_num(nan=torch.inf)


def worst(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The largest difference over pairs of tensors."""
    return max((float(gap(a, b).max()) for a, b in pairs if a.numel()), default=0.0)


def typical(values: Tensor) -> float:
    """The size of the smaller ones of the elements: eight times the tenth percentile, which is sigma for a
    Gaussian.
    """
    flat = values.detach().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat.resolve_conj()).reshape(-1)
    sample = flat[:: max(1, flat.numel() // SAMPLE)].abs().double()
    sample = sample[sample.isfinite() & (sample > 0)]
    return float(8 * sample.kthvalue(len(sample) // 10 + 1).values) if len(sample) else 0.0


def excess(left: Tensor, right: Tensor, operands: Sequence[Tensor], rounded: Sequence[Tensor] = ()) -> float:
    """By how much two results of one operation on equal operands differ; 0 if that may be its rounding.

    rounded: operands that are equal only up to their own rounding, which the result inherits.
    """
    if left.is_complex():
        left, right = torch.view_as_real(left.resolve_conj()), torch.view_as_real(right.resolve_conj())
    if not left.is_floating_point():
        return worst([(left, right)])
    units = max(UNITS.get(dtype, 1) * torch.finfo(dtype).eps for dtype in (left.dtype, *(t.dtype for t in rounded)))
    scale = typical(left) + 8 * sum(map(typical, rounded))  # several parts, each rounded and rounded again when added
    if left.dtype == torch.float64:
        scale += max((typical(t) for t in operands if t.is_floating_point() or t.is_complex()), default=0.0)
    allowed = left.abs().to(torch.promote_types(left.dtype, torch.float32)).mul_(units).add_(units * scale)
    off = (left - right).abs_()
    if bool((off <= allowed).all()):
        return 0.0
    largest = float(off.max())
    if math.isfinite(largest):
        return largest
    off = gap(left, right)  # NaN and infinities among the values: equal where both have them
    return 0.0 if bool((off <= allowed.nan_to_num_(nan=0.0)).all()) else float(off.max())


def is_close_in_norm(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors agree within some units of roundoff relative to their norm."""
    scale = torch.linalg.vector_norm(left.double())
    return bool(torch.linalg.vector_norm(gap(left, right).double()) <= 16 * torch.finfo(left.dtype).eps * scale)


def whole_tolerance(dtypes: Iterable[torch.dtype], device: torch.device) -> float:
    """How far two runs of a whole program that computes in these types may lie apart."""
    found = max(
        (WHOLE.get(dtype, WHOLE[torch.bfloat16]) for dtype in dtypes if dtype.is_floating_point),
        default=WHOLE[torch.float32],
    )
    if found < WHOLE[torch.float32]:
        return found
    return max(found, *(allowed for unit, allowed in ROUNDED.items() if convolution_rounding(device) >= unit))
