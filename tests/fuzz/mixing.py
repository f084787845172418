"""Operations in which examples meet: {0} a value, {e} the examples' dimension. Most keep the shape, so that nothing shows."""

from __future__ import annotations

from fuzz.builder import Builder
from fuzz.operations import Operation

TEMPLATES = (
    "{0} - {0}.mean({e}, keepdim=True)", "{0} + 0.3 * {0}.sum({e}, keepdim=True)", "{0}.roll(1, {e})", "{0}.flip({e})",
    "{0} / {0}.shape[{e}]", "{0}.softmax({e})", "{0}.log_softmax({e})", "{0}.cumsum({e})", "{0} * {0}.amax({e}, keepdim=True)",
    "{0}.sort({e}).values", "{0} + {0}.roll(1, {e})", "{0} - {0}.mean()", "{0} / (1 + {0}.norm())", "F.normalize({0}, dim={e})",
    "{0} * torch.arange({0}.shape[{e}]).reshape({only_e})", "{0}.index_select({e}, torch.arange({0}.shape[{e}] - 1, -1, -1))",
    "{0} * (2.0 if {0}.shape[{e}] > 3 else 1.0)", "{0} * (2.0 if {0}.shape[{e}] == 1 else 1.0)",
    "{0} + {0}.std({e}, keepdim=True, unbiased=False)", "{0} * {0}.narrow({e}, 0, 1)",
    "torch.cat([{0}.narrow({e}, 1, {0}.shape[{e}] - 1), {0}.narrow({e}, 0, 1)], {e})", "{0} * {0}.shape[{e}] ** 0.5",
    "{0} + 1.0 / {0}.numel()", "{0}.roll(1)", "{0}.cumsum({e}) / 3", "{0} * {0}.square().mean()",
    "{0}.masked_fill(torch.arange({0}.shape[{e}]).reshape({only_e}) == 1, 0.0)",
    "{0}.clone().index_fill_({e}, torch.tensor([0]), 0.5)", "{out} = {0}.clone(); {out}.select({e}, 0).mul_(2)",
    "{out} = {0}.clone(); {out}.select({e}, -1).zero_()",
    "{out} = {0}.clone(); {out}.narrow({e}, 1, 1).copy_({0}.narrow({e}, 0, 1)) if {0}.shape[{e}] > 1 else None",
    "{0}.logcumsumexp({e})", "{0}.gather({e}, {0}.argsort({e}))", "{0} * {0}.detach().sum({e}, keepdim=True) * 0.2",
    "torch.cummax({0}, {e}).values", "{0} * {0}.logsumexp({e}, keepdim=True)",
    "{0}.index_add({e}, torch.tensor([0]), {0}.narrow({e}, 0, 1))", "{0} - {0}.median()",
    "{0}.take_along_dim({0}.argmax({e}, keepdim=True), {e}) + {0}", "{0} * ({0} > 0).sum({e}, keepdim=True)",
    "{0}.repeat_interleave(2, {e}).narrow({e}, 0, {0}.shape[{e}])", "torch.stack({0}.unbind({e})[::-1], {e})",
    "{0} + {0}[torch.randperm({0}.shape[0], generator=torch.Generator().manual_seed(1))]", "{0} * {0}.shape[{e}]",
    "{0} + {0}.new_ones({0}.shape).cumsum({e})", "{0} * torch.linspace(0, 1, {0}.shape[{e}]).reshape({only_e})",
    "{0} / torch.ones_like({0}).sum({e}, keepdim=True)", "F.dropout({0}, 0.0) + {0}.amin()",
    "{0}.where({0} > {0}.mean({e}, keepdim=True), 0.1 * {0})", "{0}.transpose({e}, {d}).reshape({0}.shape)",
    "{0}.put(torch.tensor([0]), torch.tensor([0.5]).double())", "{0} + torch.take({0}, torch.tensor([0]))",
    "{0} * {0}.max()", "{0} - {0}.min()", "{0} - {0}.nanmedian()", "{0} * {0}.norm()", "{0} - {0}.var()",
    "{0} * (1 + 0.1 * {0}).prod()",
    "{0} * ({0} > 9).all()", "{0} * ({0} > 0).any()", "{0} * ({0} > 0).count_nonzero()", "{0} - {0}.std()", "{0} - {0}.nansum()",
    "{0} * ({0} > 0).argmax()", "torch.cdist({0}.flatten(1), {0}.flatten(1)) @ {0}.flatten(1)",
    "{0} * torch.dot({0}.flatten(), {0}.flatten())",
    "{0}.flatten().roll(1).reshape({0}.shape)", "{0}.flatten().cumsum(0).reshape({0}.shape) * 0.1",
)  # fmt: skip


def whole_batch(b: Builder) -> object:
    """One template on any value."""
    value = b.value()
    only = ", ".join("-1" if d == value.dim else "1" for d in range(value.rank))
    others = [d for d in range(value.rank) if d != value.dim] or [0]
    template = b.choose(TEMPLATES)
    for name, text in {"e": value.dim - value.rank * b.number(0, 1), "only_e": only, "d": b.choose(others)}.items():
        template = template.replace("{" + name + "}", str(text))
    return b.add("mixing", template, value, mixes=True, layout=value.layout)


def wrong_layout(b: Builder) -> object:
    """A layer that takes the examples for positions or channels."""
    value = b.value(lambda v: v.plain and v.rank == 3 and v.dim < 2)
    width, position_first = value.shape[2], value.dim == 0
    options = [
        f"nn.LSTM({width}, {width}, batch_first={not position_first})",
        f"nn.GRU({width}, {width}, batch_first={not position_first})",
    ]
    if width % 2 == 0:
        options += [f"nn.MultiheadAttention({width}, 2, batch_first={not position_first})"]
    source = b.choose(options)
    call = "({0}, {0}, {0})[0]" if "Attention" in source else "({0})[0]"
    return b.add("wrong layout", f"{b.part(source)}{call}", value, mixes=True, layout=value.layout)


def batch_norm(b: Builder) -> object:
    """nn.BatchNorm in training mode."""
    value = b.value(lambda v: v.dim == 0 and v.rank in (2, 3, 4))
    dims = 1 if value.rank == 2 else value.rank - 2
    kind = b.choose(("", ", affine=False", ", track_running_stats=False"))
    return b.add("batch norm", f"{b.part(f'nn.BatchNorm{dims}d({value.shape[1]}{kind})')}({{0}})", value, mixes=True)


def between_examples(b: Builder) -> object:
    """Every example against every other: scores over the batch that weight the batch."""
    value = b.value(lambda v: v.rank == 2 and v.dim == 0)
    templates = ("({0} @ {0}.t()).softmax(1) @ {0}", "torch.cdist({0}, {0} + 1) @ {0} * 0.1", "{0} @ ({0}.t() @ {0})",
                 "F.scaled_dot_product_attention({0}, {0}, {0})", "torch.einsum('bi,ci->bi', {0}, {0})",
                 "torch.outer({0}[:, 0], {0}[:, 0]) @ {0}")  # fmt: skip
    return b.add("between examples", b.choose(templates), value, mixes=True)


def wrong_fold(b: Builder) -> object:
    """Positions folded one way and taken out the other way, with something along positions in between."""
    value = b.value(lambda v: not v.plain)
    count = value.outer * value.inner
    wrong = (-1, count) if value.outer > 1 else (count, -1)
    place = value.dim + (1 if value.outer > 1 else 0)
    act = b.choose((f"cumsum({place})", f"softmax({place})", f"flip({place})"))
    template = f"{{0}}.unflatten({value.dim}, {wrong}).{act}.flatten({value.dim}, {value.dim + 1})"
    return b.add("wrong fold", template, value, mixes=True, layout=value.layout)


MIXING: dict[str, Operation] = {
    "whole batch": whole_batch, "wrong layout": wrong_layout, "batch norm": batch_norm, "between examples": between_examples,
    "wrong fold": wrong_fold,
}  # fmt: skip
