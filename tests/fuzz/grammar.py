"""The grammar: hypothesis draws inputs, a row of operations of which a few mix examples at times, and a loss per example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fuzz.builder import Builder, Unfit, Value
from fuzz.layers import LAYERS
from fuzz.mixing import MIXING
from fuzz.operations import OPERATIONS
from fuzz.program import Input, Program
from fuzz.shapes import SHAPES, unfolded
from hypothesis import assume
from hypothesis import strategies as st

KINDS = (LAYERS, LAYERS, LAYERS, OPERATIONS, OPERATIONS, OPERATIONS, SHAPES, SHAPES)
LOSSES = (
    "{0}.square().flatten(1).sum(1) / 2",
    "{0}.flatten(1).square().mean(1)",
    "F.cross_entropy({0}.flatten(1), {1} % {n}, reduction='none')",
    "F.mse_loss({0}.flatten(1), torch.zeros_like({0}).flatten(1), reduction='none').sum(1)",
    "{0}.flatten(1).logsumexp(1)",
    "F.binary_cross_entropy_with_logits({0}.flatten(1), ({0}.detach() > 0).double().flatten(1), reduction='none').mean(-1)",
    "F.smooth_l1_loss({0}, {0}.detach() + 0.5, reduction='none').flatten(1).sum(1)",
    "-F.log_softmax({0}.flatten(1), -1).gather(1, ({1} % {n})[:, None]).squeeze(1)",
    "F.kl_div({0}.flatten(1).log_softmax(1), torch.full_like({0}.flatten(1), 1 / {n}), reduction='none').sum(1)",
    "({0} * torch.ones_like({0})).flatten(1).norm(dim=1)",
    "F.nll_loss({0}.flatten(1).log_softmax(1), {1} % {n}, reduction='none')",
)


@st.composite
def programs(draw: Callable[[Any], Any], steps: int = 7, mixing: int = 4) -> Program:
    """A program of a few lines; one in `mixing` has operations that mix examples."""
    b = Builder(draw, drawn_inputs(draw))
    wanted = b.number(2, steps)
    mixes_at = b.number(0, wanted) if mixing and b.rarely(mixing) else -1
    for _ in range(3 * wanted):
        if len(b.statements) >= wanted:
            break
        mixing_is_due = 0 <= mixes_at <= len(b.statements) < wanted and not any(s.mixes for s in b.statements)
        grow(b, MIXING if mixing_is_due else b.choose(KINDS))
    finish(b, mixing=mixes_at == wanted)
    program = b.program()
    assume(any(parameter.requires_grad for parameter in program.make().parameters()))
    return program


def drawn_inputs(draw: Callable[[Any], Any]) -> tuple[Input, ...]:
    """A float input in one of several layouts, indices, and a class."""
    sizes = st.sampled_from((2, 3, 4, 5, 4, 6))
    rank = draw(st.sampled_from((2, 1, 3, 2, 3)))
    shape = tuple(draw(sizes) for _ in range(rank))
    dim = draw(st.sampled_from((0, 0, 0, 1))) if rank == 2 else 0
    return (Input("x", shape, dim), Input("ids", (draw(sizes),), 0, 5), Input("y", (), 0, 7))


def grow(b: Builder, table: dict[str, Callable[[Builder], object]]) -> None:
    """One more line or two, if what is drawn fits."""
    try:
        b.choose_named(table)(b)
    except Unfit:
        return


def finish(b: Builder, mixing: bool) -> None:
    """A loss for every example; with a layer before it if nothing has a parameter yet, and mixed at times."""
    value = next(v for v in reversed(b.values.values()) if v.tensor.is_floating_point())
    try:
        value = unfolded(b, value)
        value = b.add("loss", f"{{0}}.movedim({value.dim}, 0)", value) if value.dim else value
        value = b.add("loss", "{0}.unsqueeze(1)", value) if value.rank == 1 else value
        if not b.parts or b.rarely(3):
            value = with_head(b, value)
        losses = b.choose(LOSSES).replace("{n}", str(min(7, value.tensor[0].numel())))
        made = b.add("loss", losses, value, b.values["y"])
        if mixing:
            b.add(
                "mixed loss", b.choose(("{0} - {0}.mean()", "{0} / {0}.shape[0]", "{0} * {0}.detach().sum()")), made, mixes=True
            )
    except Unfit:
        assume(False)


def with_head(b: Builder, value: Value) -> Value:
    """A linear layer on everything that an example has."""
    width = value.tensor[0].numel()
    return b.add("head", f"{b.part(f'nn.Linear({width}, 3)')}({{0}}.flatten(1))", value)
