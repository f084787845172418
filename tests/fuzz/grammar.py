"""The grammar: chance draws inputs, a row of operations of which a few mix examples at times, and a loss per example."""

from __future__ import annotations

import random
from collections.abc import Callable

from fuzz.builder import Builder, Unfit, Value
from fuzz.layers import LAYERS
from fuzz.mixing import MIXING
from fuzz.operations import OPERATIONS, Operation
from fuzz.program import Input, Program
from fuzz.seldom import SELDOM, pairs, vectors, volumes
from fuzz.shapes import SHAPES, image, sequence, unfolded

KINDS = (LAYERS, LAYERS, LAYERS, OPERATIONS, OPERATIONS, OPERATIONS, SHAPES, SHAPES, SELDOM, SELDOM)
OF_RANK: dict[int, dict[str, Operation]] = {
    2: {"vectors": vectors},
    3: {"sequence": sequence, "pairs": pairs, **{name: LAYERS[name] for name in ("conv1d", "recurrent", "attention")}},
    4: {"image": image, "image again": image, **{name: LAYERS[name] for name in ("conv2d", "channel norm")}},
    5: {"volumes": volumes, "volumes again": volumes, **{name: LAYERS[name] for name in ("conv3d", "channel norm")}},
}
"""Lines for sequences, images and volumes, which are drawn more often while the latest value is one."""
RANKS = (2, 1, 3, 2, 3, 3, 4)
"""Numbers of dimensions of one example."""
SIZES = (2, 3, 4, 5, 4, 6)
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
    "F.huber_loss({0}, {0}.detach() * 0.5, reduction='none').flatten(1).sum(1)",
    "F.multi_margin_loss({0}.flatten(1), {1} % {n}, reduction='none')",
    "F.soft_margin_loss({0}, {0}.detach().cos().sign(), reduction='none').flatten(1).sum(1)",
    "F.binary_cross_entropy({0}.sigmoid(), {0}.detach().sigmoid().round(), reduction='none').flatten(1).mean(1)",
    "F.nll_loss({0}.flatten(1)[:, :, None].log_softmax(1), ({1} % {n})[:, None], reduction='none').sum(1)",
    "F.gaussian_nll_loss({0}.flatten(1), {0}.detach().flatten(1) + 1, {0}.flatten(1).exp(), reduction='none').sum(1)",
    "F.poisson_nll_loss({0}.flatten(1), {0}.detach().flatten(1).exp() + 1, reduction='none').sum(1)",
    "F.triplet_margin_loss({0}.flatten(1), {0}.flatten(1).cos(), {0}.flatten(1).sin() + 1, margin=9.0, reduction='none')",
)


def program_of(number: int, steps: int = 7, mixing: int = 4) -> Program:
    """The program with this number, a few lines long; one in `mixing` has operations that mix examples."""
    chance = random.Random(number)
    while True:
        try:
            return grown(chance, steps, mixing)
        except Unfit:
            continue


def grown(chance: random.Random, steps: int, mixing: int) -> Program:
    """A program with a parameter to train; Unfit if chance made none."""
    b = Builder(chance, drawn_inputs(chance))
    wanted = b.number(2, steps)
    mixes_at = b.number(0, wanted) if mixing and b.rarely(mixing) else -1
    for _ in range(3 * wanted):
        if len(b.statements) >= wanted:
            break
        mixing_is_due = 0 <= mixes_at <= len(b.statements) < wanted and not any(s.mixes for s in b.statements)
        grow(b, MIXING if mixing_is_due else kind_of_line(b))
    finish(b, mixing=mixes_at == wanted)
    program = b.program()
    if not any(parameter.requires_grad for parameter in program.make().parameters()):
        raise Unfit
    return program


def drawn_inputs(chance: random.Random) -> tuple[Input, ...]:
    """A float input in one of several layouts, indices, and a class."""
    rank = chance.choice(RANKS)
    shape = tuple(chance.choice(SIZES if rank < 4 else (2, 3)) for _ in range(rank))
    dim = chance.choice((0, 0, 0, 1)) if rank == 2 else 0
    return (Input("x", shape, dim), Input("ids", (chance.choice(SIZES),), 0, 5), Input("y", (), 0, 7))


def kind_of_line(b: Builder) -> dict[str, Operation]:
    """A table of operations: one of those for every value, or one for the number of dimensions of the latest value."""
    latest = next(v for v in reversed(b.values.values()) if v.tensor.is_floating_point())
    special = OF_RANK.get(latest.rank, {}) if latest.dim == 0 else {}
    return b.choose(KINDS + (special,) * (3 if latest.rank > 3 else 2) if special else KINDS)


def grow(b: Builder, table: dict[str, Callable[[Builder], object]]) -> None:
    """One more line or two, if what is drawn fits."""
    try:
        b.choose_named(table)(b)
    except Unfit:
        return


def finish(b: Builder, mixing: bool) -> None:
    """A loss for every example; with a layer before it if nothing has a parameter yet, and mixed at times."""
    value = next(v for v in reversed(b.values.values()) if v.tensor.is_floating_point())
    value = unfolded(b, value)
    value = b.add("loss", f"{{0}}.movedim({value.dim}, 0)", value) if value.dim else value
    value = b.add("loss", "{0}.unsqueeze(1)", value) if value.rank == 1 else value
    if not b.parts or b.rarely(3):
        value = with_head(b, value)
    losses = b.choose(LOSSES).replace("{n}", str(min(7, value.tensor[0].numel())))
    made = b.add("loss", losses, value, b.values["y"])
    if mixing:
        forms = ("{0} - {0}.mean()", "{0} / {0}.shape[0]", "{0} * {0}.detach().sum()")
        b.add("mixed loss", b.choose(forms), made, mixes=True)


def with_head(b: Builder, value: Value) -> Value:
    """A linear layer on everything that an example has."""
    width = value.tensor[0].numel()
    return b.add("head", f"{b.part(f'nn.Linear({width}, 3)')}({{0}}.flatten(1))", value)
