"""The price of every node of a graph: matrix products and convolutions by their FLOPs, the rest by what it reads and writes."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx

from dpcompile import torch_private
from dpcompile.cost.hardware import Hardware
from dpcompile.cost.roofline import work_seconds
from dpcompile.ir.cost import Work
from dpcompile.kernels.copies import Copies
from dpcompile.predict.kernels import kernel_work
from dpcompile.predict.sizes import operands, results

aten = torch.ops.aten

VIEW = Work("view", launches=0.3)
"""Python makes a new tensor, and no kernel runs."""

SLOW = {
    name: flops
    for flops, names in {
        8: (
            "exp",
            "gelu",
            "gelu_backward",
            "sigmoid",
            "silu",
            "silu_backward",
            "tanh",
            "erf",
            "log",
            "pow",
            "sin",
            "cos",
            "row_statistics",
            "cross_entropy_backward",
            "cross_entropy_backward_",
        ),
        6: ("_softmax", "_log_softmax", "_softmax_backward_data", "_log_softmax_backward_data"),
        5: ("native_layer_norm", "native_layer_norm_backward", "native_group_norm", "native_group_norm_backward"),
    }.items()
    for name in names
}
"""FLOPs per element of elementwise and row-wise operations that take more than one."""


def predict(graph: fx.Graph, hardware: Hardware, batch_size: int) -> dict[fx.Node, float]:
    """Seconds of every node that is called."""
    kept = {memory_of(node) for node in graph.output_node().all_input_nodes}
    found = {}
    for node in graph.nodes:
        if node.op == "call_function":
            if isinstance(node.target, Copies):  # the same products, batched
                found[node] = sum(predict(node.target.step.graph, hardware, batch_size).values())
                continue
            work = work_of(node, batch_size)
            found[node] = work_seconds(work, hardware, dtype_of(node))
            found[node] += first_touch(node, work, hardware, batch_size) if node in kept else 0.0
    return found


def memory_of(node: fx.Node) -> fx.Node:
    """The node whose memory a value is."""
    while node.op == "call_function" and (node.target is operator.getitem or is_view(node)) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def first_touch(node: fx.Node, work: Work, hardware: Hardware, batch_size: int) -> float:
    """What the step returns is new memory each time; a measured kernel has found its memory warm."""
    if work.form not in hardware.curves or math.isinf(hardware.fresh_bandwidth):
        return 0.0
    return sum(shape.bytes for shape in results(node, batch_size)) / hardware.fresh_bandwidth


def dtype_of(node: fx.Node) -> str:
    """The type of a node's first result, as the hardware table names it."""
    found = results(node, 1)
    return str(found[0].dtype).removeprefix("torch.") if found else "float32"


def work_of(node: fx.Node, batch_size: int) -> Work:
    """The price of one node in numbers."""
    own = kernel_work(node, batch_size)
    if own is not None:
        return own
    if node.target is operator.getitem or is_view(node):
        return VIEW
    name = name_of(node)
    if name in PRODUCTS:
        return PRODUCTS[name](node, batch_size)
    return moving(node, batch_size, SLOW.get(name, 1))


def name_of(node: fx.Node) -> str:
    """The operation without namespace and overload."""
    target = node.target
    return target._schema.name.split("::")[1] if isinstance(target, torch_private.OpOverload) else getattr(target, "__name__", "")


LAYOUTS = ("positions", "examples_first", "sequence", "index_sequence", "row_sequence", "only_example")
"""Functions that nearly always return a view."""


def is_view(node: fx.Node) -> bool:
    """Whether the result is a view of an operand, by the operation's schema; reshaping of gradients nearly always is."""
    target = node.target
    if not isinstance(target, torch_private.OpOverload):
        return not results(node, 1) or name_of(node) in LAYOUTS
    views = any(r.alias_info is not None and not r.alias_info.is_write for r in target._schema.returns)
    return views or name_of(node) in ("_unsafe_view", "_reshape_alias", "sym_size") or not results(node, 1)


def moving(node: fx.Node, batch_size: int, flops: int) -> Work:
    """An operation that memory limits."""
    read, written = operands(node, batch_size), results(node, batch_size)
    moved = sum(shape.bytes for shape in (*read, *written))
    elements = max((shape.elements for shape in (*read, *written)), default=0)
    in_place = "out" in node.kwargs or "grad_input" in node.kwargs
    fresh = 0 if in_place else sum(shape.bytes for shape in written)
    form = "elementwise" if flops == 1 else "transcendental" if flops == 8 else "rows of a softmax or norm"
    return Work(form, other_flops=float(flops * elements), bytes_moved=float(moved), fresh_bytes=float(fresh), launches=1.0,
                features=(float(max(moved, 1)),))  # fmt: skip


def product(batch: float, m: float, n: float, k: float, form: str = "product", more: float = 0.0) -> Work:
    """A matrix product of float32 operands."""
    written = 4.0 * batch * m * n
    moved = 4.0 * batch * (m * k + k * n) + written + more
    sizes = (float(batch), float(m), float(n), float(k))
    return Work(form, matrix_flops=2.0 * batch * m * n * k, bytes_moved=moved, fresh_bytes=written, launches=1.0, product=sizes,
                features=sizes)  # fmt: skip


def matrix_product(node: fx.Node, batch_size: int) -> Work:
    """mm, addmm, bmm and baddbmm: the last two operands."""
    left = operands_of(node, batch_size)[-2]
    (result,) = results(node, batch_size)
    batch = result.sizes[0] if len(result.sizes) == 3 else 1
    return product(batch, result.sizes[-2], result.sizes[-1], left.sizes[-1])


def operands_of(node: fx.Node, batch_size: int) -> list[Any]:
    """Tensor arguments with repetitions, which `all_input_nodes` leaves out."""
    return [shape for argument in node.args if isinstance(argument, fx.Node) for shape in results(argument, batch_size)]


def convolution(node: fx.Node, batch_size: int) -> Work:
    """Forward: B * T rows, channels in and taps as the inner size."""
    x, weight = operands_of(node, batch_size)[:2]
    (result,) = results(node, batch_size)
    return convolution_product(x, weight, result, node.args[6], node.args[8], "convolution")


def convolution_product(x: Any, weight: Any, result: Any, transposed: Any, groups: Any, form: str) -> Work:
    """All rows of the output of an ordinary, of the input of a transposed convolution."""
    rows = (x if transposed else result).sizes
    inner = math.prod(weight.sizes[1:])
    outputs = weight.sizes[0] // int(groups)
    flops = product(int(groups), rows[0] * math.prod(rows[2:]), outputs, inner, form)
    sizes = (
        float(rows[0] * math.prod(rows[2:])),
        float(weight.sizes[1]),
        float(outputs),
        float(math.prod(weight.sizes[2:])),
        float(groups),
    )
    moved = float(x.bytes + weight.bytes + result.bytes)
    return Work(form, matrix_flops=flops.matrix_flops, bytes_moved=moved, fresh_bytes=float(result.bytes), launches=2.0,
                product=flops.product, features=sizes)  # fmt: skip


def convolution_backward(node: fx.Node, batch_size: int) -> Work:
    """Input gradient, weight gradient, or both: each costs what the forward pass costs."""
    g, x, weight = operands_of(node, batch_size)[:3]
    mask = node.args[10]
    assert isinstance(mask, (list, tuple))
    work = convolution_product(x, weight, g, node.args[7], node.args[9], "convolution input gradient")
    times = float(bool(mask[0])) + float(bool(mask[1]))
    return Work(work.form, matrix_flops=times * work.matrix_flops, bytes_moved=max(times, 1.0) * work.bytes_moved,
                fresh_bytes=float(x.bytes), launches=3.0, product=work.product, features=work.features)  # fmt: skip


def attention(node: fx.Node, batch_size: int) -> Work:
    """Scaled dot products, forward."""
    q, k = operands_of(node, batch_size)[:2]
    return attended(q, k, 2.0)


def attention_backward(node: fx.Node, batch_size: int) -> Work:
    """Five products where forward has two."""
    _, q, k = operands_of(node, batch_size)[:3]
    return attended(q, k, 5.0)


def attended(q: Any, k: Any, products: float) -> Work:
    """q: [B, heads, T, w], k: [B, heads, S, w]."""
    batch, (T, width), S = math.prod(q.sizes[:-2]), q.sizes[-2:], k.sizes[-2]
    sizes = (float(batch), float(T), float(S), float(width))
    form = "attention" if products == 2 else "attention backward"
    return Work(form, matrix_flops=2 * products * batch * T * S * width, other_flops=10.0 * batch * T * S,
                bytes_moved=float(2 * products * q.bytes), fresh_bytes=float(q.bytes), launches=2.0, product=sizes,
                features=sizes)  # fmt: skip


def recurrent(node: fx.Node, batch_size: int) -> Work:
    """All time steps of a layer: a product with the recurrent weight in each, one for all inputs together; backward has the
    same products with transposed weights. A projection of the state is one product more in each."""
    gates, width = sizes_at(node, "w_hh", batch_size)
    _, inputs = sizes_at(node, "w_ih", batch_size) or (gates, width)
    projection = math.prod(sizes_at(node, "w_hr", batch_size) or (0,))
    steps, batch = max((shape.sizes[:2] for shape in operands_of(node, batch_size) if len(shape.sizes) == 3), key=math.prod)
    written = float(sum(shape.bytes for shape in results(node, batch_size)))
    rows = float(steps * batch * gates)
    flops = 2 * rows * (width + inputs) + 2.0 * steps * batch * projection
    return Work("recurrent", matrix_flops=flops, other_flops=20 * rows, bytes_moved=3 * written,
                fresh_bytes=written, launches=10.0 * steps, product=(1.0, float(batch), float(gates), float(width)),
                features=(float(batch), float(steps), float(gates)))  # fmt: skip


def sizes_at(node: fx.Node, name: str, batch_size: int) -> tuple[int, ...]:
    """The sizes of an operand by the name of its argument; none if there is no such operand."""
    arguments = zip(node.target._schema.arguments, node.args, strict=False)  # type: ignore[union-attr]
    found = [argument for known, argument in arguments if known.name == name and isinstance(argument, fx.Node)]
    return tuple(results(found[0], batch_size)[0].sizes) if found else ()


PRODUCTS = {
    **dict.fromkeys((f"{kind}{way}" for kind in ("lstm", "gru", "rnn") for way in ("", "_backward")), recurrent),
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm"), matrix_product),
    "convolution": convolution,
    "convolution_backward": convolution_backward,
    **dict.fromkeys(
        ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
         "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"), attention),
    **dict.fromkeys(
        ("_scaled_dot_product_flash_attention_for_cpu_backward", "_scaled_dot_product_flash_attention_backward",
         "_scaled_dot_product_efficient_attention_backward", "_scaled_dot_product_cudnn_attention_backward"), attention_backward),
}  # fmt: skip
"""Operations with matrix FLOPs."""
