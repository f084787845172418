"""Layers and bare parameters of the grammar: reused, tied and frozen at times."""

from __future__ import annotations

from fuzz.builder import Builder, Unfit, Value
from fuzz.operations import Operation

LETTERS = "abcdef"


def last_is_free(value: Value) -> bool:
    """Whether the last dimension is the example's own."""
    return value.rank > 1 and value.dim != value.rank - 1


def varies(value: Value, dims: tuple[int, ...]) -> bool:
    """Whether elements along these dimensions differ, so that dividing by their deviation is well conditioned."""
    return bool((value.tensor.std(dims) > 0.05).all())


def fitting(b: Builder, rank: int) -> Value:
    """A value with the examples in front and this many dimensions; positions may be folded into the examples' one."""
    return b.value(lambda v: v.rank == rank and v.dim == 0)


def linear(b: Builder) -> object:
    """nn.Linear over the last dimension, the same one again perhaps."""
    value = b.value(last_is_free)
    width, bias = value.shape[-1], ", bias=False" if b.rarely(4) else ""
    layer = b.part(f"nn.Linear({width}, {b.number(2, 6)}{bias})", f"nn.Linear({width}, ")
    templates = (f"{layer}({{0}})", f"F.linear({{0}}, {layer}.weight)", f"{{0}} @ {layer}.weight.t()",
                 f"{layer}({{0}}.tanh()) * 0.5", f"F.linear({{0}}, {layer}.weight * 0.5)",
                 f"F.linear({{0}}, torch.tanh({layer}.weight))",
                 f"F.linear({{0}}, F.normalize({layer}.weight, dim=1))")  # fmt: skip
    return b.add("linear", b.choose((templates[0], *templates)), value)


def tie(b: Builder) -> object:
    """Two layers of equal size have one weight; a linear layer on top uses it."""
    value = b.value(last_is_free)
    width = value.shape[-1]
    names = []
    for _ in range(2):
        name = f"square{len(b.parts)}"
        b.parts[name] = f"nn.Linear({width}, {width})"
        b.build(name)
        names.append(name)
    b.tie(names[1], names[0])
    return b.add("tie", f"self.{names[1]}(torch.tanh(self.{names[0]}({{0}})))", value)


def conv1d(b: Builder) -> object:
    """nn.Conv1d and its transpose with stride, groups, padding, dilation."""
    value = fitting(b, 3)
    channels, length = value.shape[1:]
    groups = b.choose([g for g in (1, channels, 2) if channels % g == 0])
    options = f"stride={b.number(1, 2)}, padding={b.number(0, 1)}, groups={groups}"
    kind = b.choose(("nn.Conv1d", "nn.Conv1d", "nn.ConvTranspose1d"))
    more = ", padding_mode='circular'" if b.rarely(6) and kind == "nn.Conv1d" else f", dilation={b.number(1, 2)}"
    layer = b.part(
        f"{kind}({channels}, {groups * b.number(1, 3)}, {min(b.number(1, 3), length)}, {options}{more})", f"{kind}({channels}, "
    )
    return b.add("conv1d", f"{layer}({{0}})", value)


def conv2d(b: Builder) -> object:
    """nn.Conv2d and its transpose."""
    value = fitting(b, 4)
    channels = value.shape[1]
    groups = b.choose([g for g in (1, channels, 2) if channels % g == 0])
    options = f"stride={b.choose(('1', '2', '(1, 2)'))}, padding={b.choose(('0', '1', '(1, 0)'))}, groups={groups}"
    kind = b.choose(("nn.Conv2d", "nn.Conv2d", "nn.ConvTranspose2d"))
    kernel = b.choose((1, 2, "(2, 1)", 3))
    layer = b.part(f"{kind}({channels}, {groups * b.number(1, 2)}, {kernel}, {options}{', bias=False' if b.rarely(4) else ''})")
    return b.add("conv2d", f"{layer}({{0}})", value)


def conv3d(b: Builder) -> object:
    """nn.Conv3d and its transpose."""
    value = fitting(b, 5)
    channels = value.shape[1]
    kind = b.choose(("nn.Conv3d", "nn.Conv3d", "nn.ConvTranspose3d"))
    options = f"stride={b.number(1, 2)}, padding={b.number(0, 1)}, groups={b.choose((1, channels))}"
    return b.add("conv3d", f"{b.part(f'{kind}({channels}, {channels}, {b.choose((1, 2, (2, 1, 2)))}, {options})')}({{0}})", value)


def layer_norm(b: Builder) -> object:
    """nn.LayerNorm and nn.RMSNorm over the last dimension or the last two."""
    value = b.value(lambda v: last_is_free(v) and v.shape[-1] > 2)
    two = value.rank > 2 and value.dim < value.rank - 2 and b.rarely(3)
    sizes, dims = (value.shape[-2:], (-2, -1)) if two else (value.shape[-1:], (-1,))
    if not varies(value, dims):
        raise Unfit
    kind = b.choose(
        ("nn.LayerNorm(%s)", "nn.LayerNorm(%s, bias=False)", "nn.RMSNorm(%s)", "nn.LayerNorm(%s, elementwise_affine=False)")
    )
    return b.add("layer norm", f"{b.part(kind % str(tuple(sizes)))}({{0}})", value)


def channel_norm(b: Builder) -> object:
    """nn.GroupNorm, nn.InstanceNorm and nn.BatchNorm in evaluation mode on [B, C, ...]."""
    value = b.value(lambda v: v.dim == 0 and v.rank in (3, 4, 5) and v.tensor[0, 0].numel() > 2)
    if not varies(value, tuple(range(2, value.rank))):
        raise Unfit
    channels, dims = value.shape[1], value.rank - 2
    kinds = [f"nn.GroupNorm({g}, {channels})" for g in (1, 2, channels) if channels % g == 0]
    kinds += [f"nn.InstanceNorm{dims}d({channels}, affine={affine})" for affine in (True, False)]
    kinds += [f"nn.BatchNorm{dims}d({channels}).eval()"]
    return b.add("channel norm", f"{b.part(b.choose(kinds))}({{0}})", value)


def embedding(b: Builder) -> object:
    """Rows looked up by the input of integers, or by a value cut into classes."""
    width = b.number(2, 4)
    table = b.choose((f"nn.Embedding(5, {width})", f"nn.Embedding(5, {width}, padding_idx=1)",
                      f"nn.EmbeddingBag(5, {width}, mode='sum')",
                      f"nn.EmbeddingBag(5, {width})"))  # fmt: skip
    ids = b.values["ids"]
    layer = b.part(table, f"nn.Embedding(5, {width}" if "Bag" not in table else None)
    if b.rarely(3) and "Bag" not in table:
        value = b.value(lambda v: v.rank < 4)
        return b.add("embedding", f"{layer}(({{0}} > 0).long() + ({{0}} > 1).long())", value)
    templates = [f"{layer}({{0}})"]
    if "Bag" not in table:
        templates += [f"{layer}({{0}}).mean(1)", f"{layer}.weight[{{0}}]", f"F.embedding({{0}}, {layer}.weight * 2)",
                      f"{layer}({{0}}) @ {layer}.weight.t()", f"F.one_hot({{0}}, 5).double() @ {layer}.weight",
                      f"{layer}.weight.index_select(0, {{0}}.flatten()).reshape(*{{0}}.shape, -1)"]  # fmt: skip
    return b.add("embedding", b.choose(templates), ids)


def recurrent(b: Builder) -> object:
    """nn.LSTM, nn.GRU and nn.RNN in both layouts; outputs, or the last state."""
    value = b.value(lambda v: v.plain and v.rank == 3 and v.dim < 2 and v.shape[1 - v.dim] < 6)
    first = value.dim == 0
    kind, more = b.choose(("nn.LSTM", "nn.GRU", "nn.RNN")), ", bidirectional=True" if b.rarely(5) else ""
    layer = b.part(f"{kind}({value.shape[2]}, {b.number(2, 4)}, batch_first={first}{more})")
    state = "[1][0]" if kind == "nn.LSTM" else "[1]"
    return b.add("recurrent", f"{layer}({{0}}){b.choose(('[0]', '[0]', state))}", value)


def cell(b: Builder) -> object:
    """A recurrent cell stepped by hand over one value."""
    value = b.value(lambda v: v.rank == 2 and v.dim == 0)
    width = value.shape[1]
    layer = b.part(f"nn.GRUCell({width}, {width})")
    return b.add("cell", f"{layer}({{0}}, {layer}({{0}}, torch.tanh({{0}})))", value)


def attention(b: Builder) -> object:
    """nn.MultiheadAttention in both layouts, with and without weights and masks."""
    value = b.value(lambda v: v.plain and v.rank == 3 and v.dim < 2 and v.shape[2] % 2 == 0)
    width, length = value.shape[2], value.shape[1 - value.dim]
    layer = b.part(f"nn.MultiheadAttention({width}, 2, batch_first={value.dim == 0})")
    options = b.choose(("need_weights=False", "need_weights=True",
                        f"attn_mask=torch.ones({length}, {length}, dtype=torch.bool).triu(1), need_weights=False"))  # fmt: skip
    return b.add("attention", f"{layer}({{0}}, {{0}}, {{0}}, {options})[0]", value)


def encoder(b: Builder) -> object:
    """One block of torch's own transformer."""
    value = b.value(lambda v: v.plain and v.rank == 3 and v.dim < 2 and v.shape[2] in (4, 6))
    if not varies(value, (-1,)):
        raise Unfit
    options = f"dropout=0.0, batch_first={value.dim == 0}, norm_first={b.rarely(2)}"
    return b.add("encoder", f"{b.part(f'nn.TransformerEncoderLayer({value.shape[2]}, 2, 5, {options})')}({{0}})", value)


def prelu(b: Builder) -> object:
    """A slope for all, or one per channel."""
    value = b.value(lambda v: v.dim == 0 and v.rank > 1)
    return b.add("prelu", f"{b.part(f'nn.PReLU({b.choose((1, value.shape[1]))})')}({{0}})", value)


def bilinear(b: Builder) -> object:
    """nn.Bilinear of two values of equal leading dimensions."""
    left = b.value(last_is_free)
    right = b.value(lambda v: v.shape[:-1] == left.shape[:-1] and v.layout == left.layout and v.shape[-1] < 30)
    layer = b.part(f"nn.Bilinear({left.shape[-1]}, {right.shape[-1]}, {b.number(1, 3)})")
    return b.add("bilinear", f"{layer}({{0}}, {{1}})", left, right)


def functional_weight(b: Builder) -> object:
    """A bare parameter in a product, over whichever dimension of the example."""
    value = b.value(lambda v: v.rank > 1)
    dim = b.dim(value) % value.rank
    n, k = value.shape[dim], b.number(2, 4)
    letters = LETTERS[: value.rank]
    weight = b.parameter(n, k)
    forms = [f"torch.einsum('{letters},{letters[dim]}z->{letters.replace(letters[dim], 'z')}', {{0}}, {weight})",
             f"torch.einsum('{letters},{letters[dim]}z->{letters.replace(letters[dim], '')}z', {{0}}, {weight})",
             f"torch.einsum('{letters},{letters[dim]}z->{letters}z', {{0}}, {weight} / 4)",
             f"torch.tensordot({{0}}, {weight}, dims=([{dim}], [0]))"]  # fmt: skip
    if dim == value.rank - 1:
        forms += [
            f"{{0}} @ {weight}",
            f"{{0}} @ {weight}.softmax(0)",
            f"{{0}} @ ({weight} @ {weight}.t())",
            f"torch.matmul({{0}}, {weight}[:, 0])",
        ]
    if dim == value.rank - 2:
        forms += [
            f"{weight}.t() @ {{0}}",
            f"{weight}.t().expand(1, -1, -1) @ {{0}}" if value.rank == 3 else f"{weight}.mT @ {{0}}",
        ]
    return b.add("functional weight", b.choose(forms), value)


def elementwise_weight(b: Builder) -> object:
    """A bare parameter that scales, shifts, masks or is appended."""
    value = b.value(lambda v: v.rank > 1 and v.dim != v.rank - 1)
    own = [1 if d <= value.dim else s for d, s in enumerate(value.shape)]
    weight = b.parameter(*b.choose((own[value.dim + 1 :], [value.shape[-1]], [1], own)))
    forms = [f"{{0}} * {weight}", f"{{0}} + {weight}", f"{{0}} * torch.sigmoid({weight})", f"{{0}} - {weight}.mean()",
             f"torch.where({{0}} > 0, {{0}}, {weight})", f"{{0}} / (1 + {weight}.square())", f"{{0}} * {weight}.exp() + {weight}",
             f"({{0}} + {weight}).tanh() * {weight}", f"torch.maximum({{0}}, {weight})", f"{{0}} * {weight}.softmax(0)",
             f"{{0}} * {weight}.norm()",
             f"torch.cat([{{0}}, {weight}.expand_as({{0}})], {b.dim(value)})",
             f"{{0}} ** 2 * {weight}.detach() + {weight}.flip(0)"]  # fmt: skip
    return b.add("elementwise weight", b.choose(forms), value)


def class_token(b: Builder) -> object:
    """A parameter put before every sequence, and positions added to it."""
    value = fitting(b, 3)
    token = b.parameter(1, 1, value.shape[2])
    value = b.add("class token", f"torch.cat([{token}.expand({{0}}.shape[0], -1, -1), {{0}}], 1)", value)
    table = b.part(f"nn.Embedding({value.shape[1] + 1}, {value.shape[2]})")
    return b.add("class token", f"{{0}} + {table}(torch.arange({{0}}.shape[1]))", value)


LAYERS: dict[str, Operation] = {
    "linear": linear, "tie": tie, "conv1d": conv1d, "conv2d": conv2d, "conv3d": conv3d, "layer norm": layer_norm,
    "channel norm": channel_norm, "embedding": embedding, "recurrent": recurrent, "cell": cell, "attention": attention,
    "encoder": encoder, "prelu": prelu, "bilinear": bilinear, "functional weight": functional_weight,
    "elementwise weight": elementwise_weight, "class token": class_token,
}  # fmt: skip
