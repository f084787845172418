"""Changes of layout, products of two values, and operations that need a certain number of dimensions."""

from __future__ import annotations

from fuzz.builder import Builder, Unfit, Value
from fuzz.operations import Operation


def transpose(b: Builder) -> object:
    """Two dimensions change places, the examples' own perhaps."""
    value = b.value(lambda v: v.rank > 1)
    one, two = b.number(0, value.rank - 1), b.number(0, value.rank - 1)
    template = b.choose(("{0}.transpose(%d, %d)", "{0}.transpose(%d, %d).contiguous()", "{0}.movedim(%d, %d)"))
    return b.add("transpose", template % (one, two), value)


def permute(b: Builder) -> object:
    """All dimensions change places."""
    value = b.value(lambda v: v.rank > 1)
    order = [b.number(0, value.rank - 1 - n) for n in range(value.rank)]
    rest = list(range(value.rank))
    return b.add("permute", f"{{0}}.permute({', '.join(str(rest.pop(n)) for n in order)})", value)


def fold(b: Builder) -> object:
    """The examples' dimension takes in a neighbour: [B, T, d] becomes [B * T, d], [T, B, d] becomes [T * B, d]."""
    value = b.value(lambda v: v.rank > 1)
    behind = b.choose([side for side in (True, False) if 0 <= value.dim + (1 if side else -1) < value.rank])
    first = value.dim if behind else value.dim - 1
    outer = value.outer if behind else value.outer * value.shape[first]
    inner = value.inner * value.shape[first + 1] if behind else value.inner
    sizes = [*value.shape[:first], -1, *value.shape[first + 2 :]]
    reshape = f"{{0}}.reshape({', '.join(map(str, sizes))})"
    return b.add("fold", b.choose((f"{{0}}.flatten({first}, {first + 1})", reshape)), value, layout=(first, outer, inner))


def unfold(b: Builder) -> object:
    """What was folded into the examples' dimension comes out again."""
    value = b.value(lambda v: not v.plain)
    return unfolded(b, value)


def unfolded(b: Builder, value: Value) -> Value:
    """A plain value."""
    if value.outer > 1:
        pulled = f"{{0}}.unflatten({value.dim}, ({value.outer}, -1))"
        value = b.add("unfold", pulled, value, layout=(value.dim + 1, 1, value.inner))
    if value.inner > 1:
        value = b.add("unfold", f"{{0}}.unflatten({value.dim}, (-1, {value.inner}))", value, layout=(value.dim, 1, 1))
    return value


def flatten(b: Builder) -> object:
    """Two neighbouring dimensions of the example become one."""
    value = b.value(lambda v: v.rank > 2)
    firsts = [d for d in range(value.rank - 1) if value.dim not in (d, d + 1)]
    first = b.choose(firsts)
    sizes = [*value.shape[:first], value.shape[first] * value.shape[first + 1], *value.shape[first + 2 :]]
    sizes[value.dim - (value.dim > first)] = -1
    reshape = f"{{0}}.reshape({', '.join(map(str, sizes))})"
    return b.add("flatten", b.choose((f"{{0}}.flatten({first}, {first + 1})", reshape)), value)


def unflatten(b: Builder) -> object:
    """One dimension of the example becomes two."""
    value = b.value(lambda v: any(s > 3 and s % 2 == 0 for d, s in enumerate(v.shape) if d != v.dim))
    dim = b.choose([d for d, s in enumerate(value.shape) if d != value.dim and s > 3 and s % 2 == 0])
    return b.add("unflatten", f"{{0}}.unflatten({dim}, {b.choose(((2, -1), (-1, 2)))})", value)


def squeeze(b: Builder) -> object:
    """A dimension of size one goes, or comes."""
    value = b.value()
    single = [d for d, s in enumerate(value.shape) if s == 1]
    if single and b.rarely(2):
        return b.add("squeeze", f"{{0}}.squeeze({b.choose(single)})", value)
    place = b.number(0, value.rank)
    return b.add("squeeze", f"{{0}}.unsqueeze({place})", value)


def expand(b: Builder) -> object:
    """A dimension of size one is repeated without a copy."""
    value = b.value(lambda v: v.rank < 4)
    place = b.number(0, value.rank)
    sizes = ["-1"] * (value.rank + 1)
    sizes[place] = str(b.number(2, 3))
    return b.add("expand", f"{{0}}.unsqueeze({place}).expand({', '.join(sizes)})", value)


def matmul(b: Builder) -> object:
    """A product within every example, batch first."""
    left = b.value(lambda v: v.plain and v.rank == 3 and v.dim == 0)
    right = b.value(lambda v: v.plain and v.rank == 3 and v.dim == 0)
    templates = ["{0} @ {1}", "torch.bmm({0}, {1})", "torch.einsum('bij,bjk->bik', {0}, {1})", "torch.matmul({0}, {1}) / 2"]
    if left.shape[2] == right.shape[2]:
        templates = ["{0} @ {1}.transpose(1, 2)", "torch.einsum('bij,bkj->bik', {0}, {1})",
                     "torch.baddbmm({0} @ {1}.mT, {0}, {1}.mT)",
                     "torch.einsum('bij,bkj->bk', {0}, {1})", "F.scaled_dot_product_attention({0}, {1}, {1})",
                     "F.scaled_dot_product_attention({0}[:, None], {1}[:, None], {1}[:, None])[:, 0]",
                     "({0} @ {1}.mT).softmax(-1) @ {1}", "torch.cdist({0}, {1} + 4)"]  # fmt: skip
    elif left.shape[1] == right.shape[1]:
        templates = [
            "{0}.transpose(1, 2) @ {1}",
            "torch.einsum('bij,bik->bjk', {0}, {1})",
            "torch.einsum('bij,bik->bj', {0}, {1})",
        ]
    return b.add("matmul", b.choose(templates), left, right)


def outer(b: Builder) -> object:
    """Every element of one value times every element of another, example by example."""
    value = b.value(lambda v: v.plain and v.rank == 2 and v.dim == 0)
    other = b.value(lambda v: v.plain and v.rank == 2 and v.dim == 0)
    templates = ["torch.einsum('bi,bj->bij', {0}, {1})", "{0}[:, :, None] * {1}[:, None, :]",
                 "{0}.unsqueeze(2) - {1}.unsqueeze(1)",
                 "torch.einsum('bi,bj->bj', {0}, {1})"]  # fmt: skip
    return b.add("outer", b.choose(templates), value, other)


IMAGES = (
    "F.avg_pool2d({0}, 2)", "F.avg_pool2d({0}, 3, 2, 1)", "F.max_pool2d({0}, 2)", "F.max_pool2d({0}, 3, 2, 1)",
    "F.adaptive_avg_pool2d({0}, 2)", "F.adaptive_avg_pool2d({0}, (1, 1))", "F.adaptive_avg_pool2d({0}, (3, 2))",
    "F.adaptive_max_pool2d({0}, 2)", "F.interpolate({0}, scale_factor=2)", "F.interpolate({0}, size=(3, 4), mode='bilinear')",
    "F.interpolate({0}, size=(4, 3), mode='bilinear', align_corners=True)", "F.interpolate({0}, size=(3, 3), mode='bicubic')",
    "F.interpolate({0}, size=(2, 3), mode='area')", "F.interpolate({0}, size=(5, 3), mode='nearest-exact')",
    "F.pad({0}, (1, 0, 0, 2))", "F.pad({0}, (1, 1, 1, 1), mode='reflect')", "F.pad({0}, (1, 0, 1, 0), mode='replicate')",
    "F.pad({0}, (0, 1, 1, 0), mode='circular')", "F.pad({0}, (1, 1), value=0.5)", "F.unfold({0}, 2)",
    "F.unfold({0}, (2, 1), stride=2)", "F.fold(F.unfold({0}, 2), {0}.shape[2:], 2)", "F.pixel_unshuffle({0}, 2)",
    "F.channel_shuffle({0}, 2)", "F.lp_pool2d({0}.abs() + 0.1, 2, 2)", "F.pixel_shuffle(torch.cat([{0}] * 4, 1), 2)",
    "torch.rot90({0}, 1, (2, 3))", "F.local_response_norm({0}, 2)", "{0}.tril()", "{0}.triu(1)", "{0}.diagonal(0, 2, 3)",
    "F.instance_norm({0})", "F.avg_pool2d({0}, 2, ceil_mode=True)", "{0}.mean((2, 3))",
    "F.grid_sample({0}, torch.linspace(-0.9, 0.9, 12).reshape(1, 2, 3, 2).to({0}).expand({0}.shape[0], -1, -1, -1),"
    " align_corners=False)",
)  # fmt: skip
SEQUENCES = (
    "F.avg_pool1d({0}, 2)", "F.max_pool1d({0}, 2)", "F.adaptive_avg_pool1d({0}, 2)", "F.adaptive_max_pool1d({0}, 2)",
    "F.interpolate({0}, scale_factor=2)", "F.interpolate({0}, size=3, mode='linear')", "F.pad({0}, (2, 1))",
    "F.pad({0}, (1, 1), mode='reflect')", "F.pad({0}, (1, 1), mode='replicate')", "F.pad({0}, (1, 1), mode='circular')",
    "{0}.tril()", "{0}.diagonal(0, 1, 2)", "{0}[:, :, 1:]", "{0}[:, 0]", "{0}[:, -1]", "{0}[:, ::2]", "{0}[:, [0, -1]]",
    "{0}[..., None]", "{0}[:, :, None, :]", "{0}[:, torch.tensor([0, 0, 1])]", "{0}[:, 1:] - {0}[:, :-1]",
    "F.pad({0}, (0, 0, 1, 0))", "{0}.mT", "{0}.mean((1, 2))", "F.instance_norm({0})", "F.avg_pool1d({0}, 3, 1, 1)",
    "{0} * torch.tril(torch.ones({0}.shape[1], {0}.shape[2]))", "{0}[torch.arange({0}.shape[0]), {0}.sum(2).argmax(1)]",
    "{0}[torch.arange({0}.shape[0]), -1]", "{0}.flatten(1)", "{0}.reshape({0}.shape[0], -1)", "{0}.view({0}.size(0), -1, 1)",
    "F.scaled_dot_product_attention({0}, {0}, {0}, is_causal=True)", "{0}.flatten(1).unsqueeze(-1)",
    "({0} @ {0}.mT).tril().sum(-1)", "torch.cat([{0}[:, :1], {0}], 1)",
    "torch.cat([{0}.new_zeros({0}.shape[0], 1, {0}.shape[2]), {0}], 1)",
)  # fmt: skip


def image(b: Builder) -> object:
    """Pooling, padding, resizing of [B, C, H, W], positions folded into B or not."""
    return b.add("image", b.choose(IMAGES), b.value(lambda v: v.rank == 4 and v.dim == 0 and min(v.shape[2:]) > 1))


def sequence(b: Builder) -> object:
    """Pooling, padding, indexing of [B, C, L]."""
    return b.add("sequence", b.choose(SEQUENCES), b.value(lambda v: v.rank == 3 and v.dim == 0 and min(v.shape) > 1))


def batch_first(b: Builder) -> object:
    """The examples come to the front, so that layers apply."""
    value = b.value(lambda v: v.dim != 0)
    return b.add("batch first", f"{{0}}.movedim({value.dim}, 0)", value)


def skip(b: Builder) -> object:
    """An older value of any shape, projected to the latest one's."""
    latest, older = b.value(lambda v: v.plain and v.rank > 1), b.value(lambda v: v.plain and v.rank > 1)
    size = latest.tensor.numel() // latest.shape[latest.dim]
    flat = older.tensor.numel() // older.shape[older.dim]
    if size > 24 or flat > 40:
        raise Unfit
    shape = tuple(s for d, s in enumerate(latest.shape) if d != latest.dim)
    linear = b.part(f"nn.Linear({flat}, {size})")
    projected = f"{linear}({{1}}.movedim({older.dim}, 0).flatten(1)).unflatten(1, {shape}).movedim(0, {latest.dim})"
    return b.add("skip", f"{{0}} + 0.5 * {projected}", latest, older)


SHAPES: dict[str, Operation] = {
    "transpose": transpose, "permute": permute, "fold": fold, "unfold": unfold, "flatten": flatten, "unflatten": unflatten,
    "squeeze": squeeze, "expand": expand, "matmul": matmul, "outer": outer, "image": image, "sequence": sequence,
    "batch first": batch_first, "skip": skip,
}  # fmt: skip
