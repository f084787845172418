"""The sizes of a captured graph: one free symbol for the number of examples, and nothing that depends on data."""

from __future__ import annotations

from collections.abc import Sequence

import sympy
from torch import Tensor

from dpcompile import torch_private
from dpcompile.ir.errors import CaptureError, refusal
from dpcompile.ir.graph import JointGraph, shape_text, size_expression


def batch_symbol(mode: torch_private.Fakes, fakes: Sequence[Tensor], dims: Sequence[int | None]) -> sympy.Symbol:
    """The one batch symbol, still free; refuses where tracing fixed it to a number."""
    sizes = [size_expression(leaf.shape[dim]) for leaf, dim in zip(fakes, dims, strict=True) if dim is not None]
    replaced = torch_private.specialised(mode)
    resolved = {size.xreplace(replaced) for size in sizes}
    symbol = next(iter(resolved))
    if len(resolved) != 1 or not isinstance(symbol, sympy.Symbol):
        fixed = next((name for name, number in replaced.items() if number.is_Number), sympy.Symbol("none"))
        raise CaptureError(
            refusal(
                "the batch size became a fixed number while tracing",
                torch_private.line_of(mode, fixed),
                "the model or the loss takes len() or int() of a batch tensor's size, compares the size with a number, or uses a "
                "tensor that has the batch's size",
                "write the operation so that it works for any batch size (for example x.shape[0], not len(x) or a constant)",
            )
        )
    return symbol


def check_sizes(joint: JointGraph) -> None:
    """Every size is a number or follows from the batch size; sizes that depend on data are refused."""
    losses = joint.output("losses")
    sizes = [size_expression(size) for size in losses.meta["val"].shape] if losses is not None else []
    if losses is not None and sizes != [joint.symbol]:
        raise CaptureError(
            refusal(
                f"the losses have shape {shape_text(losses.meta['val'])} instead of [B], the batch size",
                losses.meta.get("source_line", ""),
                "the batch is cut or put together at a place that depends on how many examples there are",
                "treat all examples alike; select within the example's own dimensions",
            )
        )
    for node in joint.graph.nodes:
        fake = node.meta.get("val")
        shape = fake.shape if isinstance(fake, Tensor) else ()
        if any(size_expression(size).free_symbols - {joint.symbol} for size in shape):
            raise CaptureError(
                refusal(
                    f"the shape of {node.name} ({node.target}) depends on the data",
                    node.meta.get("source_line", ""),
                    "one graph serves every batch, so that sizes other than the batch size must be known",
                    "choose by torch.where or by a list of indices instead of by a boolean mask or nonzero()",
                )
            )
