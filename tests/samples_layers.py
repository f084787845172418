"""Samples of pooling and resizing, attention, creation of constants, random numbers, losses, recurrent layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from meaning import (
    N,
    Operand,
    Sample,
    Size,
    batched,
    call,
    constant,
    every_layout,
    integers,
    normal,
    position,
    positive,
    shared,
    summed,
    uniform,
)  # fmt: skip
from torch import Tensor

from dpcompile.kernels.recurrent_ops import EXAMPLE_DIMS

aten = torch.ops.aten
B, B2, B3 = Size(), Size(lambda b: 2 * b), Size(lambda b: 3 * b)


def row(name: str, overload: str = "default") -> Any:
    """An operation by name."""
    return getattr(getattr(aten, name), overload)


def layouts(
    op: Any, shapes: tuple[tuple[int, ...], ...], args: Callable[..., tuple[Any, ...]], draw: Any = normal, second: bool = True
) -> list[Sample]:
    """Calls on operands whose shapes behind [example, channel] are given: examples first, folded, second, crossed, last.

    args(*operands, sizes): the arguments; sizes are the leading sizes, for backward operations that are told shapes.
    """

    def of(*lead: int | None, kind: Any = batched, **folded: int) -> list[Operand]:
        return [kind(*lead, *shape, draw=draw, **folded) for shape in shapes]

    samples = [args(*of(N, 4), sizes=[B, 4]), args(*of(N, 4, inner=2), sizes=[B2, 4]), args(*of(N, 4, outer=2), sizes=[B2, 4]),
               *([args(*of(2, N), sizes=[2, B])] if second else []),
               args(*of(N, 4, kind=uniform), sizes=[B, 4])]  # fmt: skip
    samples += [
        args(*(constant(1.0, N, 4, *shape) for shape in shapes), sizes=[B, 4]),
        args(*(summed(2, 4, *shape) for shape in shapes), sizes=[2, 4]),
    ]
    if len(shapes) > 1:
        samples += [args(of(N, 4, inner=2)[0], *of(N, 4, outer=2)[1:], sizes=[B2, 4])]
    crossed = len(shapes) > 1  # harmless where the image gives its shape only
    return [
        call(op, *arguments, must=place < 3 + second, cautious=crossed and place == len(samples) - 1)
        for place, arguments in enumerate(samples)
    ]


def forward(name: str, size: tuple[int, ...], *rest: Any, **options: Any) -> list[Sample]:
    """A pooling, padding or resizing of one image."""
    op = row(name)
    across = [call(op, batched(2, 4, *size[:-1], N, inner=4), *rest, cautious=True)]
    return [*layouts(op, (size,), lambda x, sizes: (x, *rest), **options), *across]


def backward(name: str, out: tuple[int, ...], size: tuple[int, ...], *rest: Any, **options: Any) -> list[Sample]:
    """The adjoint, which is given the image too."""
    return layouts(row(name), (out, size), lambda g, x, sizes: (g, x, *rest), **options)


def resized(name: str, out: tuple[int, ...], size: tuple[int, ...], *rest: Any) -> list[Sample]:
    """The adjoint of a resizing, which is told the sizes of the image."""
    return layouts(row(name), (out,), lambda g, sizes: (g, list(out), [*sizes, *size], *rest))


def resizing(dims: int) -> list[Sample]:
    """Nearest and linear resizing in one to three dimensions, and their adjoints."""
    size, out = (3, 4, 2)[:dims], (5, 7, 3)[:dims]
    linear = {1: "upsample_linear1d", 2: "upsample_bilinear2d", 3: "upsample_trilinear3d"}[dims]
    none = [None] * dims
    samples = []
    for nearest in (f"upsample_nearest{dims}d", f"_upsample_nearest_exact{dims}d"):
        samples += [*forward(nearest, size, list(out), *none), *resized(nearest + "_backward", out, size, *none)]
        samples += resized_by_list(row(nearest, "vec"), size, list(out), None)
    samples += [*forward(linear, size, list(out), False, *none), *resized(linear + "_backward", out, size, False, *none)]
    return samples + resized_by_list(row(linear, "vec"), size, list(out), False, None)


def resized_by_list(op: Any, size: tuple[int, ...], *rest: Any) -> list[Sample]:
    """The overloads that take one list of sizes or factors."""
    return [*layouts(op, (size,), lambda x, sizes: (x, *rest)), call(op, batched(2, 4, *size[:-1], N, inner=4), *rest)]


def padding(dims: int) -> list[Sample]:
    """Reflection and replication in one to three dimensions, and their adjoints."""
    size, amounts = (3, 4, 5)[:dims], [1, 2] * dims
    out = tuple(n + 3 for n in size)
    return [s for kind in ("reflection", "replication") for s in (
        *forward(f"{kind}_pad{dims}d", size, amounts), *backward(f"{kind}_pad{dims}d_backward", out, size, amounts))]  # fmt: skip


def places(name: str, out: tuple[int, ...], size: tuple[int, ...], *rest: Any) -> list[Sample]:
    """The adjoint of a maximum, which is given where the maxima were."""

    def args(g: Operand, x: Operand, sizes: Any) -> tuple[Any, ...]:
        return g, x, *rest, Operand(g.state, g.shape, integers(math.prod(size)))

    samples = layouts(row(name), (out, size), args)
    g, x = batched(N, 4, *out, inner=2), batched(N, 4, *size, inner=2)
    return [s for s in samples if not isinstance(s.args[0].state, type(summed(1).state))] + [
        call(row(name), g, x, *rest, batched(N, 4, *out, outer=2, draw=integers(math.prod(size))), cautious=True)]  # fmt: skip


TWO = ([2, 2], [2, 2], [0, 0], [1, 1], False)
THREE = ([2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1], False)
AVERAGED = ([2, 2], [1, 1], [1, 1], False, True, None)
WINDOWS: tuple[Sample, ...] = (
    *forward("max_pool2d_with_indices", (4, 6), *TWO), *places("max_pool2d_with_indices_backward", (2, 3), (4, 6), *TWO),
    *forward("max_pool3d_with_indices", (4, 6, 2), *THREE), *places("max_pool3d_with_indices_backward", (2, 3, 1), (4, 6, 2), *THREE),
    *forward("avg_pool2d", (3, 4), *AVERAGED), *backward("avg_pool2d_backward", (4, 5), (3, 4), *AVERAGED),
    *forward("avg_pool3d", (3, 4, 5), [2], [1], [1], False, True, None), *backward("avg_pool3d_backward", (4, 5, 6), (3, 4, 5), [2, 2, 2], [1, 1, 1], [1, 1, 1], False, True, None),
    *forward("avg_pool1d", (4,), [2], [1], [1]),
    *forward("_adaptive_avg_pool2d", (3, 5), [2, 2]), *backward("_adaptive_avg_pool2d_backward", (2, 2), (3, 5)),
    *forward("_adaptive_avg_pool3d", (3, 5, 4), [2, 2, 2]), *backward("_adaptive_avg_pool3d_backward", (2, 2, 2), (3, 5, 4)),
    *forward("adaptive_max_pool2d", (3, 5), [2, 2]), *places("adaptive_max_pool2d_backward", (2, 2), (3, 5)),
    *resizing(1), *resizing(2), *resizing(3),
    *forward("upsample_bicubic2d", (3, 4), [5, 7], False), *resized("upsample_bicubic2d_backward", (5, 7), (3, 4), False),
    *resized_by_list(row("upsample_bicubic2d", "vec"), (3, 4), [5, 7], False, None),
    *forward("_upsample_bilinear2d_aa", (3, 4), [5, 7], False), *resized("_upsample_bilinear2d_aa_backward", (5, 7), (3, 4), False),
    *resized_by_list(row("_upsample_bilinear2d_aa", "vec"), (3, 4), [5, 7], False, None),
    *padding(1), *padding(2), *padding(3),
    *forward("pixel_shuffle", (3, 5), 2, second=False), *forward("pixel_unshuffle", (4, 6), 2, second=False),
    *(call(row(name), batched(2, 4, 4, N, inner=6), 2, cautious=True) for name in ("pixel_shuffle", "pixel_unshuffle")),
    *(call(row(name), batched(1, N, 4, 6, inner=4), 2, cautious=True) for name in ("pixel_shuffle", "pixel_unshuffle")),
    *(s for name in ("tril", "triu") for s in every_layout(row(name), (3, 5))),
    *(call(row(name), batched(N, 35, 35), B) for name in ("tril", "triu")), *(call(row(name), constant(1.0, N, 3, 5)) for name in ("tril", "triu")),
    *forward("im2col", (4, 5), [2, 2], [1, 1], [0, 0], [1, 1], second=False),
    *(call(row("col2im"), x, [4, 5], [2, 2], [1, 1], [0, 0], [1, 1]) for x in (
        batched(N, 8, 12), batched(N, 8, 12, inner=2), batched(N, 8, 12, outer=2), uniform(N, 8, 12), summed(2, 8, 12), constant(1.0, N, 8, 12))),
    call(row("col2im"), batched(3, N, 12, inner=4), [4, 5], [2, 2], [1, 1], [0, 0], [1, 1], cautious=True),
    *(call(row("max_unpool2d"), x, index, [4, 6]) for x, index in (
        (batched(N, 4, 2, 3), batched(N, 4, 2, 3, draw=integers(24))), (batched(N, 4, 2, 3, inner=2), batched(N, 4, 2, 3, inner=2, draw=integers(24))),
        (batched(N, 4, 2, 3, inner=2), batched(N, 4, 2, 3, outer=2, draw=integers(24))), (uniform(N, 4, 2, 3), uniform(N, 4, 2, 3, draw=integers(24))))),
    *(call(op, *operands, 0, 0, False, *more) for op, image, grid, out, more in (
        (row("grid_sampler_2d"), (4, 3, 5), (2, 7, 2), (), []), (row("grid_sampler_3d"), (4, 3, 5, 2), (2, 3, 2, 3), (), []),
        (row("grid_sampler_2d_backward"), (4, 3, 5), (2, 7, 2), (4, 2, 7), [[True, True]]), (row("grid_sampler_3d_backward"), (4, 3, 5, 2), (2, 3, 2, 3), (4, 2, 3, 2), [[True, True]]))
      for operands in (
        [batched(N, *s) for s in (out, image, grid) if s], [batched(N, *s, inner=2) for s in (out, image, grid) if s], [uniform(N, *s) for s in (out, image, grid) if s],
        [*(batched(N, *s, inner=2) for s in (out, image) if s), batched(N, *grid, outer=2)], [*(batched(N, *s) for s in (out, image) if s), constant(0.1, N, *grid)],
        [constant(1.0, N, *s) for s in (out, image, grid) if s], [*(summed(3, *s) for s in (out, image) if s), shared(3, *grid)])),
)  # fmt: skip


# -- attention: what these operations mean is written down here; most of them run on a GPU only --------------------


def attended(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, *, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Output and logarithm of the normalisation of softmax(q k^T / sqrt(d) + bias) v."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    scores = scores if bias is None else scores + bias
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


def differentiated(g: Tensor, *operands: Tensor | None) -> tuple[Tensor, ...]:
    """Gradients of query, key, value and bias."""
    given = [x.detach().requires_grad_() for x in operands if x is not None]
    out = attended(*given)[0]
    return torch.autograd.grad(out, given, g)


def meaning_of(op: Any) -> Callable[..., tuple[Any, ...]]:
    """What a fused attention operation computes, with its arguments by schema name and all its results."""
    names = [argument.name for argument in op._schema.arguments]

    def run(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        given = dict(zip(names, args, strict=False)) | kwargs
        operands = given["query"], given["key"], given["value"], given.get("attn_mask", given.get("attn_bias"))
        if "backward" in str(op):
            found: tuple[Any, ...] = differentiated(given["grad_out" if "grad_out" in given else "grad_out_"], *operands)
        else:
            found = attended(*operands)
        rest = {"max_q": 3, "max_k": 5}
        missing = [rest.get(result.name) for result in op._schema.returns[len(found) :]]
        return (*found, *missing)[: len(op._schema.returns)]

    return run


def attention(name: str) -> list[Sample]:
    """Calls of a fused attention operation and of its backward with every layout, and with masks."""
    has_mask = "_flash_attention" not in name or "for_cpu" in name
    cases = [qkv(batched, N, 2), qkv(batched, N, 2, inner=3), qkv(batched, N, 2, outer=3), qkv(uniform, N, 2),
             [*qkv(batched, N, 2, inner=3)[:2], *qkv(batched, N, 2, outer=3)[2:]], qkv(batched, 2, N), qkv(summed, 2, 2),
             qkv(batched, 2, N, inner=3), qkv(uniform, 2, N)]  # fmt: skip
    masks: list[Operand | None] = [None] * len(cases)
    if has_mask:
        masks += [
            shared(3, 5),
            batched(N, 1, 3, 5),
            batched(N, 1, 1, 5),
            uniform(N, 1, 3, 5),
            summed(3, 5),
            batched(N, 1, 1, 5, outer=3),
            shared(1, 2, 3, 5),
        ]
        cases += [qkv(batched, N, 2)] * 5 + [qkv(batched, N, 2, inner=3)] + [qkv(uniform, N, 2)]
    return [s for operands, mask in zip(cases, masks, strict=True) for s in (
        attention_call(row(name), operands, mask), attention_call(row(name + "_backward"), operands, mask))]  # fmt: skip


def qkv(kind: Any, *lead: int | None, **folded: int) -> list[Operand]:
    """Query, key, value, output (and its gradient), and the log-sum-exp."""
    return [kind(*lead, *shape, **folded) for shape in ((3, 4), (5, 4), (5, 4), (3, 4), (3,))]


def attention_call(op: Any, operands: list[Operand], mask: Operand | None) -> Sample:
    """One call, its arguments put in by schema name."""
    query, key, value, out, lse = operands
    grad = Operand(out.state, out.shape)
    seed = shared(2)
    given: dict[str, Any] = {
        "query": query, "key": key, "value": value, "out": out, "logsumexp": lse, "attn_mask": mask, "attn_bias": mask,
        "grad_out": grad, "grad_out_": grad, "dropout_p": 0.0, "is_causal": False, "compute_log_sumexp": True, "max_q": 3, "max_k": 5,
        "grad_input_mask": [True] * 4, "philox_seed": seed, "philox_offset": seed,
    }  # fmt: skip
    arguments = op._schema.arguments
    args = [given.get(a.name) for a in arguments if not a.kwarg_only and a.name != "return_debug_mask"]
    kwargs = {a.name: given[a.name] for a in arguments if a.kwarg_only and a.name in given and given[a.name] is not None}
    return call(op, *args, run=meaning_of(op), **kwargs)


ATTENTION: tuple[Sample, ...] = tuple(s for name in (
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_fused_attention_overrideable") for s in attention(name))  # fmt: skip


# -- constants, draws, losses, recurrent layers --------------------------------------------------------------------


LIKE = (batched(N, 5), batched(5, N, inner=2), uniform(N, 5), shared(5), summed(5), constant(3.0, N, 5), position(N))
WIDE = torch.float64
CREATION: tuple[Sample, ...] = (
    *(call(row("full"), sizes, 2.5, dtype=kind) for sizes in ([B, 5], [3, B2], [B, B], [B]) for kind in (WIDE, torch.int64)),
    call(row("full"), [B], B), call(row("full"), [B], True, dtype=torch.bool), call(row("full"), [3], B), call(row("full"), [B, 5], 1, must=True),
    *(call(row(name), sizes, dtype=WIDE, must=True) for name in ("zeros", "ones") for sizes in ([B, 5], [3, B2])),
    *(call(row("empty", "memory_format"), sizes, run=lambda sizes: torch.zeros(*sizes), must=True) for sizes in ([B, 5], [5, B])),
    *(call(row("empty_strided"), sizes, strides, run=lambda sizes, strides: torch.zeros(*sizes), must=True) for sizes, strides in (([B, 5], [5, 1]), ([5, B], [B, 1]))),
    *(call(row("new_full"), x, [B, 3], 2.0, must=True) for x in LIKE), *(call(row(f"new_{name}"), x, sizes, must=True) for name in ("zeros", "ones") for x in LIKE for sizes in ([B, 3], [3, B])),
    call(row("new_full"), batched(N, 5), [3], B), call(row("full_like"), batched(N, 5), B), call(row("new_full"), batched(N), [3], 2.5, dtype=torch.int64, must=True),
    *(call(row("new_empty"), x, sizes, run=lambda x, sizes: torch.zeros(*sizes), must=True) for x in LIKE for sizes in ([B, 3], [3, B])),
    *(call(row("new_empty_strided"), x, sizes, strides, run=lambda x, sizes, strides: torch.zeros(*sizes), must=True)
      for x in LIKE for sizes, strides in (([B, 3], [3, 1]), ([3, B], [B, 1]))),
    *(call(row("full_like"), x, 2.5, must=True) for x in LIKE), *(call(row(f"{name}_like"), x, must=True) for name in ("zeros", "ones") for x in LIKE),
    *(call(row("empty_like"), x, run=torch.zeros_like, must=True) for x in LIKE),
    call(row("scalar_tensor"), 2.0, must=True), call(row("scalar_tensor"), B), call(row("scalar_tensor"), Size(lambda b: b / 2)),
    *(call(row("zero", "default"), x, must=True) for x in LIKE),
    *(call(row("fill", "Scalar"), x, 2.0, must=True) for x in LIKE), call(row("fill", "Scalar"), batched(N, 5), B),
    *(call(row("fill", "Tensor"), x, value) for x in (batched(N, 5), batched(5, N)) for value in (shared(), constant(2.0), summed())),
    call(row("arange"), B, must=True), call(row("arange", "start"), 0, B, must=True), call(row("arange", "start_step"), 0, B, 1, must=True),
    call(row("arange"), B3), call(row("arange", "start"), 1, B), call(row("arange", "start_step"), 0, B2, 2), call(row("arange", "start_step"), 0, B2, 1),
    call(row("arange", "start"), B, Size(lambda b: b + 5)), call(row("arange", "start_step"), B, Size(lambda b: b + 5), 1),
    call(row("arange", "start_step"), 0, Size(lambda b: 5 * b), B), call(row("arange"), B, dtype=WIDE, must=True),
)  # fmt: skip


RANDOM: tuple[Sample, ...] = (
    *(call(row(name), sizes, drawn=True) for name in ("rand", "randn") for sizes in ([B, 5], [3, B2], [B, B])),
    *(call(row(name), [B, 5], drawn=True, must=True) for name in ("rand", "randn")),
    call(row("randint"), 7, [B, 5], drawn=True, must=True), call(row("randint", "low"), 2, 7, [3, B2], drawn=True, must=True),
    call(row("randint"), B, [B, 5]), call(row("randint", "low"), 0, B, [5]), call(row("randint", "low"), 0, B, [B]), call(row("randint"), B, [5]),
    call(row("normal", "float_float"), 0.0, 1.0, [B, 5], drawn=True, must=True), call(row("normal", "float_float"), 0.0, B, [B, 5]),
    *(call(row("normal", "Tensor_float"), x, 0.0) for x in (batched(N, 5), batched(N, 5, outer=2), batched(5, N, inner=3), summed(5))),
    *(call(row("normal", "Tensor_float"), x, 1.0, drawn=True) for x in (batched(N, 5), uniform(N, 5), constant(1.0, N, 5), constant(1.0, 5), summed(5))),
    *(call(row("normal", "float_Tensor"), 1.0, x, drawn=True) for x in (batched(N, 5, draw=positive), batched(N, 5, outer=2, draw=positive), uniform(N, 5, draw=positive), summed(5, draw=positive))),
    *(call(row("normal", "Tensor_Tensor"), x, y, drawn=True) for x, y in (
        (batched(N, 5), batched(N, 5, draw=positive)), (uniform(N, 5), shared(5, draw=positive)), (summed(5), shared(5, draw=positive)))),
)  # fmt: skip
CLASSES = integers(3)
NONE, MEAN, SUMS = 0, 1, 2


def classified(name: str, size: tuple[int, ...]) -> list[Sample]:
    """The negative log likelihood of classes, and its backward."""
    ahead, back = row(f"{name}_forward"), row(f"{name}_backward")
    samples = [
        call(ahead, batched(N, 3, *size), batched(N, *size, draw=CLASSES), None, reduction, -100)
        for reduction in (NONE, MEAN, SUMS)
    ]
    for g, x, y, w in (
        (batched(N, *size), batched(N, 3, *size), batched(N, *size, draw=CLASSES), shared(3)),
        (batched(N, *size, inner=2), batched(N, 3, *size, inner=2), batched(N, *size, inner=2, draw=CLASSES), None),
        (batched(N, *size, inner=2), batched(N, 3, *size, inner=2), batched(N, *size, outer=2, draw=CLASSES), None),
        (batched(N, *size, outer=2), batched(N, 3, *size, inner=2), batched(N, *size, inner=2, draw=CLASSES), None),
        (uniform(N, *size), uniform(N, 3, *size), uniform(N, *size, draw=CLASSES), None), (batched(N, *size), batched(N, 3, *size), batched(N, *size, draw=CLASSES), summed(3)),
        (constant(1.0, N, *size), batched(N, 3, *size), constant(0.0, N, *size, draw=CLASSES), shared(3)), (summed(4, *size), summed(4, 3, *size), shared(4, *size, draw=CLASSES), None),
    ):  # fmt: skip
        samples += [call(ahead, x, y, w, reduction, -100) for reduction in (NONE, MEAN, SUMS)]
        samples += [call(back, g, x, y, w, NONE, -100, shared())]
    samples += [
        call(ahead, batched(N, 3, *size), batched(N, *size, draw=CLASSES), None, NONE, B),
        call(back, batched(N, *size), batched(N, 3, *size), batched(N, *size, draw=CLASSES), None, NONE, B, shared()),
    ]
    return [
        *samples,
        call(back, shared(), batched(N, 3, *size), batched(N, *size, draw=CLASSES), None, MEAN, -100, shared(), cautious=True),
    ]


LOSSES: tuple[Sample, ...] = (*classified("nll_loss", ()), *classified("nll_loss2d", (2, 5)))


STEPS, FEATURES, HIDDEN, PROJECTED = 4, 3, 2, 5


def recurrent(name: str, projected: bool = False) -> list[Sample]:
    """Calls of a recurrent operation: examples where they belong, elsewhere, folded, and weights that differ.

    A state that is projected has other features than the cells.
    """
    op = getattr(torch.ops.dpcompile, name).default
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[name.removesuffix("_backward")]
    state = PROJECTED if projected else HIDDEN
    sizes = {"x": FEATURES, "gates": gates * HIDDEN, "h0": state, "d_h_n": state, "d_out": state}
    weights = {
        "w_ih": (gates * HIDDEN, FEATURES),
        "w_hh": (gates * HIDDEN, state),
        "w_hr": (PROJECTED, HIDDEN),
        "b_ih": (gates * HIDDEN,),
        "b_hh": (gates * HIDDEN,),
    }
    numbers = {"reverse": False, "nonlinearity": "tanh"}

    def arguments(kind: Any, weight: Any = shared, **folded: int) -> list[Any]:
        found = []
        for argument, dim in EXAMPLE_DIMS[f"dpcompile::{name}"].arguments.items():
            width = sizes.get(argument, HIDDEN)
            if argument in numbers:
                found.append(numbers[argument])
            elif argument == "w_hr" and not projected:
                found.append(None)
            elif dim is None:
                found.append(weight(*weights[argument]))
            else:
                found.append(kind(STEPS, N, width, **folded) if dim == 1 else kind(N, width, **folded))
        return found

    samples = [call(op, *arguments(batched)), call(op, *arguments(uniform)), call(op, *arguments(batched, weight=summed))]
    samples += [call(op, *arguments(batched, inner=2), cautious=True), call(op, *arguments(constant_of))]
    samples.append(call(op, *arguments(summed_of)))
    if "backward" not in name:  # the examples take the place of the steps
        crossed = Operand(batched(N).state, (N, 1, FEATURES))
        samples.append(call(op, crossed, *arguments(alone)[1:]))
    return samples


def constant_of(*shape: int | None, **folded: int) -> Operand:
    """Ones."""
    return constant(1.0, *shape)


def summed_of(*shape: int | None, **folded: int) -> Operand:
    """A sum over the batch with room for one example."""
    return summed(*(1 if size is N else size for size in shape))


def alone(*shape: int | None, **folded: int) -> Operand:
    """An operand with room for one example that none of the batch fills."""
    return shared(*(1 if size is N else size for size in shape))


RECURRENT: tuple[Sample, ...] = (
    *(sample for name in EXAMPLE_DIMS for sample in recurrent(name.removeprefix("dpcompile::"))),
    *(sample for name in ("lstm", "lstm_backward") for sample in recurrent(name, projected=True)),
)


def between(low: int, high: int) -> Any:
    """Integers from low to high - 1."""
    return lambda generator, shape: torch.randint(low, high, tuple(shape), generator=generator)


TARGET, INPUTS, TARGETS = between(1, 5), between(3, 5), between(1, 3)


def sequences(kind: Any = batched, **folded: int) -> list[Operand]:
    """log_probs, targets and the lengths of both."""
    shapes = (((4, N, 5), normal), ((N, 2), TARGET), ((N,), INPUTS), ((N,), TARGETS))
    return [kind(*shape, draw=draw, **folded) for shape, draw in shapes]


def in_all(*shape: int | None, draw: Any = normal, state: Any = shared) -> Operand:
    """An operand with room for one example that none of the batch fills."""
    return state(*(1 if size is N else size for size in shape), draw=draw)


def ctc(op: Any, *gradient: Operand) -> list[Sample]:
    """Calls of the loss or its gradient: all differ, all are equal, one is constant, folded, summed over the batch."""
    given = [*gradient, *sequences()]
    calls = [given, [*gradient, *sequences(uniform)], [constant(3.0, N, draw=INPUTS) if o.draw is INPUTS else o for o in given]]
    calls += [[constant(2.0, *o.shape, draw=o.draw) if len(o.shape) == 3 else o for o in given]]
    samples = [call(op, *operands, 0, zero, must=operands is given) for operands in calls for zero in (False, True)]
    samples += [call(op, *gradient, *sequences(inner=2), 0, False, cautious=True)]
    return [*samples, call(op, *sums(given, place=len(gradient)), 0, False)]


def sums(given: list[Operand], place: int) -> list[Operand]:
    """Operands of one example, of which one is a sum over the batch."""
    kinds = [summed if index == place else shared for index in range(len(given))]
    return [in_all(*o.shape, draw=o.draw, state=kind) for o, kind in zip(given, kinds, strict=True)]


CTC_BACKWARD = torch.ops.dpcompile.ctc_loss_backward.default
CTC: tuple[Sample, ...] = (
    *ctc(torch.ops.dpcompile.ctc_loss.default),
    *ctc(CTC_BACKWARD, batched(N)),
    call(CTC_BACKWARD, batched(N, inner=2), *sequences(inner=2), 1, True, cautious=True),
    call(CTC_BACKWARD, *sums([batched(N), *sequences()], place=0), 0, False, must=True),
)
