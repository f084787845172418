"""Calibration of what an ordinary step consists of: products, convolutions, attention, elementwise and row-wise operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dpcompile.ir.cost import Work
from dpcompile.measure.convolution_subjects import IMAGES, completed, images
from dpcompile.measure.subject import Sizes, Subject, full
from dpcompile.predict import nodes
from dpcompile.predict.sizes import Shape

aten = torch.ops.aten
FLOAT = torch.float32
MATRICES = {"batch": (1, 64), "m": (8, 8192), "n": (8, 4096), "k": (8, 4096), "single": (1, 4)}
ELEMENTS = {"elements": (2**10, 2**25)}
ROWS = {"rows": (16, 2**16), "width": (16, 2**13)}
HEADS = {"batch": (8, 256), "T": (16, 1024), "width": (16, 128)}


def shape(*sizes: int) -> Shape:
    """A contiguous float32 tensor in numbers."""
    return Shape(sizes, 4, FLOAT, torch.Size(sizes).numel())


def matrices(drawn: dict[str, int]) -> dict[str, int]:
    """Half of the draws are one product."""
    return {**drawn, "batch": 1 if drawn["single"] <= 2 else drawn["batch"]}


def factors(s: Sizes, on: torch.device) -> tuple[Tensor, ...]:
    """Two matrices, or two stacks of them; the second one transposed, as weights are."""
    left, right = full(on, s["batch"], s["m"], s["k"]), full(on, s["batch"], s["n"], s["k"]).transpose(1, 2)
    return (left, right) if s["batch"] > 1 else (left[0], right[0])


def filters(s: Sizes, on: torch.device) -> tuple[Any, ...]:
    """x, g, weight and the geometry."""
    x, g, how = images(s, on)
    return x, g, full(on, s["D"], s["C"] // s["G"], s["kernel"], s["kernel"]), how


def convolved(x: Tensor, g: Tensor, weight: Tensor, how: Any) -> Tensor:
    """Forward."""
    result: Tensor = aten.convolution(x, weight, None, how.stride, how.padding, how.dilation, False, [0, 0], how.groups)
    return result


def input_gradient(x: Tensor, g: Tensor, weight: Tensor, how: Any) -> Any:
    """Backward without the weight's gradient."""
    return aten.convolution_backward(g, x, weight, None, how.stride, how.padding, how.dilation, False, [0, 0], how.groups,
                                     [True, False, False])  # fmt: skip


def convolution_price(form: str) -> Callable[[Sizes], Work]:
    """As for a node with these operands."""

    def price(s: Sizes) -> Work:
        out = round(s["T"] ** 0.5)
        x, result = shape(s["B"], s["C"], s["side"], s["side"]), shape(s["B"], s["D"], out, out)
        weight = shape(s["D"], s["C"] // s["G"], s["kernel"], s["kernel"])
        return nodes.convolution_product(x, weight, result, False, s["G"], form)

    return price


def heads(s: Sizes, on: torch.device) -> tuple[Tensor, ...]:
    """q, k and v: f[batch, 1, T, width]."""
    return tuple(full(on, s["batch"], 1, s["T"], s["width"]) for _ in range(3))


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def attention_price(s: Sizes) -> Work:
    """Forward."""
    q = shape(s["batch"], 1, s["T"], s["width"])
    return nodes.attended(q, q, 2.0)


def elementwise_price(s: Sizes, form: str, flops: int, tensors: int) -> Work:
    """An operation over so many tensors of one size."""
    moved = 4.0 * tensors * s["elements"]
    return Work(form, other_flops=float(flops * s["elements"]), bytes_moved=moved, fresh_bytes=4.0 * s["elements"], launches=1.0,
                features=(moved,))  # fmt: skip


def with_elements(drawn: dict[str, int]) -> dict[str, int]:
    """Rows times width."""
    return {**drawn, "elements": drawn["rows"] * drawn["width"]}


ORDINARY = (
    Subject(
        Work("product"),
        MATRICES,
        factors,
        torch.matmul,
        matrices,
        lambda s: nodes.product(s["batch"], s["m"], s["n"], s["k"]),
    ),
    Subject(Work("convolution"), IMAGES, filters, convolved, completed, convolution_price("convolution")),
    Subject(
        Work("convolution input gradient"),
        IMAGES,
        filters,
        input_gradient,
        completed,
        convolution_price("convolution input gradient"),
    ),
    Subject(
        Work("attention"),
        HEADS,
        heads,
        attended,
        price=attention_price,
    ),
    Subject(
        Work("elementwise"),
        ELEMENTS,
        lambda s, on: (full(on, s["elements"]), full(on, s["elements"])),
        torch.add,
        price=lambda s: elementwise_price(s, "elementwise", 1, 3),
    ),
    Subject(
        Work("transcendental"),
        ELEMENTS,
        lambda s, on: (full(on, s["elements"]),),
        F.gelu,
        price=lambda s: elementwise_price(s, "transcendental", 8, 2),
    ),
    Subject(
        Work("rows of a softmax or norm"),
        ROWS,
        lambda s, on: (full(on, s["rows"], s["width"]), 1),
        torch.softmax,
        with_elements,
        lambda s: elementwise_price(s, "rows of a softmax or norm", 6, 2),
    ),
)
