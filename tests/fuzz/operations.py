"""Functional operations of the grammar, most of them as one template: {0} a value, {d} a dimension of the example itself."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from fuzz.builder import EXAMPLES, Builder, Unfit, Value

Operation = Callable[[Builder], object]

POINTWISE = (
    "torch.tanh({0})", "F.relu({0})", "{0} * 0.5 + 0.1", "torch.sigmoid({0})", "F.gelu({0})", "F.gelu({0}, approximate='tanh')",
    "F.silu({0})", "F.softplus({0})", "F.leaky_relu({0}, 0.1)", "F.elu({0})", "F.hardtanh({0})", "F.hardswish({0})",
    "F.mish({0})", "F.logsigmoid({0})", "F.softsign({0})", "F.selu({0})", "F.relu6({0})", "F.hardsigmoid({0})",
    "F.tanhshrink({0})", "torch.sin({0})", "torch.cos({0})", "torch.atan({0})", "torch.erf({0})", "torch.exp(-{0}.abs())",
    "torch.log1p({0}.square())", "({0}.square() + 0.1).sqrt()", "{0}.pow(2) / 4", "{0}.pow(3) * 0.1", "1 / (1 + {0}.square())",
    "torch.rsqrt(1 + {0} * {0})", "{0}.clamp(-1, 1)", "{0}.clamp(min=-0.5)", "-{0}", "{0}.abs()", "{0} - 1", "1 - {0}",
    "{0}.detach() * {0}", "{0}.sigmoid() * {0}.sign()", "torch.where({0} > 0, {0}, 0.1 * {0})",
    "{0}.masked_fill({0} < -0.5, 0.3)", "{0} * ({0} > 0).to({0}.dtype)", "torch.maximum({0}, -0.5 * {0})",
    "torch.lerp({0}, {0}.tanh(), 0.3)", "torch.addcmul({0}, {0}, {0}.cos(), value=0.5)", "torch.zeros_like({0}) + {0}",
    "{0} * torch.ones_like({0})", "{0} + {0}.new_full({0}.shape, 0.5)", "{0}.clone()", "{0}.contiguous()",
    "{0}.float().double()", "torch.hypot({0}, {0} + 1)", "torch.atan2({0}, {0}.square() + 1)", "{0}.expm1().clamp(max=2)",
    "torch.special.logit({0}.sigmoid() * 0.8 + 0.1)", "torch.xlogy({0}, {0}.square() + 1)", "torch.nan_to_num({0})",
    "{0}.floor() * 0.1 + {0}", "torch.fmod({0}, 2) + {0}", "torch.polar({0}.abs() + 0.1, {0}).real",
    "torch.logaddexp({0}, -{0})",
)  # fmt: skip

IN_PLACE = (
    "{out} = {0}.clone(); {out}.mul_(0.5)", "{out} = {0}.clone().relu_()",
    "{out} = {0}.clone(); {out}.add_({0}, alpha=0.5).tanh_()", "{out} = {0} * 1; {out}.clamp_(-1, 1)",
    "{out} = {0} + 0; {out}[{0} > 1] = 0.5", "{out} = {0} * 2; {out}.masked_fill_({0} > 0.5, 0.1)",
    "{out} = torch.zeros_like({0}); {out}.copy_({0})", "{out} = {0}.clone(); {out}.select({d}, {i}).mul_(2)",
    "{out} = {0}.clone(); {out}.select({d}, {i}).zero_()",
    "{out} = {0}.clone(); {out}.narrow({d}, {i}, 1).copy_({0}.narrow({d}, {j}, 1).tanh())",
    "{out} = torch.zeros_like({0}); {out}.index_add_({d}, torch.arange({n}) // 2, {0})",
    "{out} = F.hardtanh({0} * 1, inplace=True)", "{out} = F.silu({0} * 1, inplace=True)",
)  # fmt: skip

ALONG = (
    "{0}.softmax({d})", "{0}.log_softmax({d})", "{0}.cumsum({d})", "{0}.flip({d})", "{0}.roll(1, {d})", "{0}.roll(-2, {d})",
    "{0}.logcumsumexp({d})", "{0}.narrow({d}, {i}, 1)", "{0}.narrow({d}, 0, {k})", "{0}.unfold({d}, {k}, 1)",
    "{0}.unfold({d}, 1, 2)", "{0} - {0}.mean({d}, keepdim=True)", "F.normalize({0} + 0.5, dim={d})", "F.softmin({0}, {d})",
    "F.glu({0}, {d})", "{0}.index_select({d}, torch.tensor([{i}, {j}, {i}]))", "{0}.gather({d}, {0}.argsort({d}))",
    "{0}.take_along_dim({0}.argmax({d}, keepdim=True), {d})", "{0}.repeat_interleave(2, {d})",
    "torch.cat([{0}, {0}.flip({d})], {d})", "torch.cat([{0}.tanh(), {0}, 1 - {0}], {d})", "{0}.diff(dim={d})",
    "(1 + 0.1 * {0}.tanh()).cumprod({d})", "torch.cummax({0}, {d}).values", "torch.cummin({0}, {d})[0]", "{0}.sort({d}).values",
    "{0}.sort({d}, descending=True)[0]", "{0}.topk({k}, {d}).values", "{0}.kthvalue({k}, {d}, keepdim=True).values",
    "{0}.msort() if {d} == 0 else {0}.sort({d})[0]", "torch.stack([{0}, {0}.tanh()], {d})", "{0}.unsqueeze({d})",
    "{0}.chunk(2, {d})[0]", "{0}.split({k}, {d})[-1]", "torch.cat({0}.split([{i}, {n} - {i}], {d})[::-1], {d})",
    "{0}.tensor_split(2, {d})[0]", "{0}.unbind({d})[{i}]", "{0}.select({d}, {i})", "torch.stack({0}.unbind({d})[::-1], {d})",
    "{0} * torch.linspace(0, 1, {n}, dtype={0}.dtype).reshape({only_d})", "{0} + torch.arange({n}).reshape({only_d}) * 0.1",
    "{0}.masked_fill(torch.arange({n}).reshape({only_d}) == {i}, 0.0)", "{0}.index_fill({d}, torch.tensor([{i}]), 0.5)",
    "{0}.index_add({d}, torch.tensor([{i}]), {0}.narrow({d}, {j}, 1))", "{0}.scatter({d}, {0}.argsort({d}), {0}.tanh())",
    "{0}.scatter_add({d}, {0}.argmax({d}, keepdim=True), {0}.narrow({d}, {i}, 1))",
    "{0}.select_scatter({0}.select({d}, {j}).tanh(), {d}, {i})",
    "{0}.slice_scatter({0}.narrow({d}, {i}, 1) * 2, {d}, {j}, {j} + 1)",
    "{0}.cumsum({d}) / torch.arange(1, {n} + 1).reshape({only_d})", "{0}.swapaxes({d}, {d})",
    "torch.where(torch.arange({n}).reshape({only_d}) < {k}, {0}, 0.2)", "{0} / (1 + ({0} + 0.1).norm(dim={d}, keepdim=True))",
    "torch.trapezoid({0}, dim={d})", "{0}.repeat({twice_d})", "{0}.tile({twice_d})",
    "{0}.unsqueeze({d}).expand_as(torch.stack([{0}, {0}], {d}))", "{0}.movedim({d}, -1)",
    "{0}.index_select({d}, torch.arange({n}).roll({i}))",
)  # fmt: skip

REDUCE = (
    "{0}.sum({d})", "{0}.mean({d})", "{0}.amax({d})", "{0}.amin({d})", "{0}.max({d}).values", "{0}.min({d})[0]",
    "{0}.logsumexp({d})", "{0}.var({d})", "({0}.var({d}, unbiased=False) + 0.1).sqrt()", "({0} + 0.1).norm(dim={d})",
    "torch.linalg.vector_norm({0} + 0.1, 1, {d})", "{0}.median({d}).values", "(1 + 0.1 * {0}.tanh()).prod({d})",
    "{0}.mean({d}, keepdim=True)", "{0}.sum({d}, keepdim=True)", "{0}.nansum({d})", "torch.var_mean({0}, {d})[0]",
    "{0}.nanmean({d})", "torch.std_mean({0}, {d})[1]", "{0}.aminmax(dim={d})[1]", "({0} > 0).any({d}, keepdim=True) * {0}",
    "({0} > 0).sum({d}, keepdim=True) * {0} * 0.3", "({0} > -1).all({d}, keepdim=True).to({0}.dtype) + {0}",
    "{0}.argmax({d}, keepdim=True) * {0} * 0.2", "{0}.count_nonzero({d}).unsqueeze({d}) * {0} * 0.1",
)  # fmt: skip

SAME_SHAPE = (
    "{0} + {1}", "{0} * {1}", "{0} - 0.5 * {1}", "{0} / (1 + {1}.square())", "torch.where({1} > 0, {0}, {1})",
    "torch.maximum({0}, {1})", "torch.minimum({0}, {1})", "torch.cat([{0}, {1}], {d})", "torch.stack([{0}, {1}], {d})",
    "({0} * {1}).sum({d})", "{0}.masked_fill({1} < 0, 0.2)", "F.cosine_similarity({0} + 2, {1} + 2, {d})",
    "{0}.gather({d}, {1}.argsort({d}))", "torch.lerp({0}, {1}, 0.3)", "torch.addcmul({0}, {0}, {1})",
    "{0} * {1}.mean({d}, keepdim=True)", "{0} * {1}.narrow({d}, {i}, 1)", "{1}.softmax({d}) * {0}",
    "{out} = {0}.clone(); {out}.add_({1})", "torch.addcdiv({0}, {1}, {0}.square() + 1)", "{0}.expand_as({1}) + {1}",
    "{0}.type_as({1})", "torch.atan2({0}, {1}.square() + 0.5)", "{0}.clone().copy_({1}) + {0}", "torch.hstack([{0}, {1}])",
    "torch.dstack([{0}, {1}])", "torch.cdist({0}[..., None], {1}[..., None] + 5, p=2).mean(-1)",
)  # fmt: skip


def filled(b: Builder, template: str, value: Value, smallest: int = 1) -> str:
    """The template with its dimension, sizes and places drawn."""
    dim = b.dim(value, smallest)
    n = value.shape[dim]
    place = dim % value.rank
    only = ", ".join("-1" if d == place else "1" for d in range(value.rank))
    twice = ", ".join("2" if d == place else "1" for d in range(value.rank))
    drawn = {
        "d": dim,
        "n": n,
        "i": b.number(0, n - 1),
        "j": b.number(0, n - 1),
        "k": b.number(1, n),
        "only_d": only,
        "twice_d": twice,
    }
    for name, text in drawn.items():
        template = template.replace("{" + name + "}", str(text))
    return template


def pointwise(b: Builder) -> object:
    """Element by element."""
    return b.add("pointwise", b.choose(POINTWISE), b.value())


def in_place(b: Builder) -> object:
    """Writing into a copy or into a part of it."""
    template = b.choose(IN_PLACE)
    value = b.value(lambda v: "{d}" not in template or v.rank > 1)
    return b.add("in place", filled(b, template, value) if "{d}" in template else template, value)


def along(b: Builder) -> object:
    """Along one dimension of the example."""
    template = b.choose(ALONG)
    ordered = any(word in template for word in ("sort", "topk", "kth", "cummax", "cummin", "argmax"))
    value = b.value(lambda v: v.rank > 1 and not (ordered and has_ties(v)))
    return b.add("along", filled(b, template, value), value)


def reduce(b: Builder) -> object:
    """Over one dimension of the example, or over two."""
    template = b.choose(REDUCE)
    value = b.value(lambda v: v.rank > 1 and not (("med" in template or "max" in template or "min" in template) and has_ties(v)))
    dims = [d for d in range(value.rank) if d != value.dim]
    if len(dims) > 1 and template.startswith("{0}.") and any(f".{kind}(" in template for kind in ("sum", "mean", "amax", "var")):
        first = b.number(0, len(dims) - 2)
        if b.rarely(2):
            return b.add("reduce", template.replace("{d}", f"({dims[first]}, {dims[-1]})"), value)
    return b.add("reduce", filled(b, template, value, 2), value)


def combine(b: Builder) -> object:
    """Two values of one shape: a branch, a skip or a gate."""
    template = b.choose(SAME_SHAPE)
    left = b.value(lambda v: v.rank > 1)
    right = b.value(lambda v: (v.shape, v.layout) == (left.shape, left.layout))
    if "sort" in template and has_ties(right):
        raise Unfit
    return b.add("combine", filled(b, template, left), left, right)


def broadcast(b: Builder) -> object:
    """Two plain values of different shape: all examples first, missing dimensions in the middle."""
    left, right = b.value(lambda v: v.plain), b.value(lambda v: v.plain)
    gap = left.rank - right.rank
    if gap < 0 or (gap == 0 and left.shape == right.shape):
        raise Unfit
    moved = f"{{1}}.movedim({right.dim}, 0)" + ".unsqueeze(1)" * gap
    fits = [a == c or 1 in (a, c) for a, c in pairwise_sizes(left, right, gap)]
    if not all(fits):
        raise Unfit
    sign = b.choose(("+", "*", "-"))
    return b.add("broadcast", f"({{0}}.movedim({left.dim}, 0) {sign} {moved}).movedim(0, {left.dim})", left, right)


def pairwise_sizes(left: Value, right: Value, gap: int) -> list[tuple[int, int]]:
    """The sizes that broadcasting lays side by side."""
    one = [s for d, s in enumerate(left.shape) if d != left.dim]
    two = [1] * gap + [s for d, s in enumerate(right.shape) if d != right.dim]
    return list(zip(one, two, strict=True))


def has_ties(value: Value) -> bool:
    """Whether elements of one example are equal, so that order, and with it gradients, would be a matter of chance."""
    flat = value.tensor.movedim(value.dim, 0).unflatten(0, (value.outer, EXAMPLES, value.inner)).movedim(1, 0).flatten(1)
    gaps = [right - left for left, right in pairwise(flat.sort(1).values.unbind(1))]
    return bool(gaps) and bool((torch.stack(gaps) < 1e-6).any())


OPERATIONS: dict[str, Operation] = {
    "pointwise": pointwise, "in place": in_place, "along": along, "reduce": reduce, "combine": combine, "broadcast": broadcast,
}  # fmt: skip
