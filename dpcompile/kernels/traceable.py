"""Which traceable form stands for a kernel whose eager form uses loops, buffers or in-place writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dpcompile.kernels import alone, convolution, cross_entropy, dense, embedding, extra_dimension, kept_part, reduction, scale

TRACEABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    key: form
    for module in (alone, dense, convolution, cross_entropy, embedding, extra_dimension, kept_part, reduction, scale)
    for key, form in getattr(module, "TRACEABLE", {}).items()
}
