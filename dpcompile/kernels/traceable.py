"""Which traceable form stands for a kernel whose eager form uses loops, buffers or in-place writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dpcompile.kernels import (
    alone,
    convolution,
    cross_entropy,
    dense,
    embedding,
    extra_dimension,
    kept_part,
    own_gradient,
    reduction,
    scale,
)

MODULES = (alone, dense, convolution, cross_entropy, embedding, extra_dimension, kept_part, own_gradient, reduction, scale)

TRACEABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    key: form for module in MODULES for key, form in getattr(module, "TRACEABLE", {}).items()
}
