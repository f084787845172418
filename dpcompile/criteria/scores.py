"""What makes an entry important, and where that information comes from. No criterion reads private gradients.

A score is finite, or infinite where nothing is known of an entry: units with such an entry come first, in random order (one
number is drawn per unit, so that large and small ones are chosen alike).

random              nothing is known of any entry
magnitude           |w|: the weights as they are, public before training and released after noise afterwards
snip                |w * dL/dw| on a public batch (Lee et al., "SNIP: single-shot network pruning", 2019, eq. 6)
public gradient     |dL/dw| on a public batch
synflow             |w * dR/dw|, R = sum of the outputs of the network of |w| for an input of ones; reads weights and buffers
                    (Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow", 2020,
                    eq. 4)
released gradient   |what was last released for the entry|: noise included
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpcompile.batch import flatten_batch
from dpcompile.capture import preserved
from dpcompile.ir.errors import InvalidInput
from dpcompile.losses import Program, public_name

Scores = dict[str, Tensor]


@dataclass(frozen=True)
class Known:
    """What a criterion may look at: the program with its weights, a public batch if there is one, an input's shape, released
    gradients by parameter (infinite where there was none yet), and where the examples lie in the public batch."""

    program: Program
    public_batch: tuple[Any, ...] | None
    example: tuple[Any, ...] | None
    released: Mapping[str, Tensor]
    batch_dim: Any


@dataclass(frozen=True)
class Criterion:
    """scores(known) -> {parameter: f[*shape]}, larger is more important; source: where the information comes from, in words.

    needs: which of the arguments must be given. Iterative criteria are scored anew while units are removed step by step.
    is_random: whether infinite scores, and with them random order, are its answer and no mistake.
    """

    name: str
    source: str
    scores: Callable[[Known], Scores]
    needs: str = ""
    is_iterative: bool = False
    is_random: bool = False


def parameters_of(program: Program) -> dict[str, nn.Parameter]:
    """Trainable parameters by the user's names."""
    return {public_name(name): p for name, p in program.named_parameters() if p.requires_grad}


def random(known: Known) -> Scores:
    """Nothing is known."""
    return {name: unknown(p) for name, p in parameters_of(known.program).items()}


def unknown(parameter: Tensor) -> Tensor:
    """f32[*shape], all infinite; one number in memory."""
    return torch.full((), torch.inf, device=parameter.device).expand(parameter.shape)


def magnitude(known: Known) -> Scores:
    """|w|."""
    return {
        name: p.detach().abs().to(torch.promote_types(p.dtype, torch.float32)) for name, p in parameters_of(known.program).items()
    }


def public_gradients(known: Known) -> Scores:
    """dL/dw of the public batch's summed losses, zero where there is none; forward leaves nothing behind in the model."""
    parameters = parameters_of(known.program)
    with preserved(known.program), buffers_kept(known.program), torch.enable_grad():
        total = losses_of(known).sum()
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g.detach() for (name, p), g in zip(parameters.items(), gradients, strict=True)
    }


@contextlib.contextmanager
def buffers_kept(program: Program) -> Iterator[None]:
    """Put back what forward writes into buffers."""
    before = [(buffer, buffer.clone()) for buffer in program.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def losses_of(known: Known) -> Tensor:
    """f[B] of the public batch; refuses a program whose loss is elsewhere, of which there is no gradient."""
    assert known.public_batch is not None
    size = flatten_batch(tuple(known.public_batch), {}, known.batch_dim).size
    losses = known.program(*known.public_batch)
    if not isinstance(losses, Tensor) or losses.shape != (size,):
        found = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise InvalidInput(
            f"the criterion needs a loss for each of the {size} public examples, f[{size}], and got {found}: give the loss to "
            "dpcompile(model, loss=...), and public_batch= as the arguments of the compiled step; where the loss stays outside, "
            "use another criterion"
        )
    return losses


def public_gradient(known: Known) -> Scores:
    """|dL/dw|."""
    return {name: gradient.abs() for name, gradient in public_gradients(known).items()}


def snip(known: Known) -> Scores:
    """|w * dL/dw|."""
    parameters = parameters_of(known.program)
    return {name: (gradient * parameters[name].detach()).abs() for name, gradient in public_gradients(known).items()}


def synflow(known: Known) -> Scores:
    """|w * dR/dw| of the network of absolute weights, in evaluation mode and float64."""
    assert known.example is not None
    parameters = parameters_of(known.program)
    inputs = [torch.ones_like(x, dtype=torch.float64) if x.is_floating_point() else torch.ones_like(x) for x in known.example]
    names = [name for name, _ in known.program.model.named_parameters() if name in parameters]  # and not those of the loss
    with positive(known.program.model) as model, torch.enable_grad():
        outputs = model(*inputs)
        total = (outputs if isinstance(outputs, Tensor) else outputs[0]).sum()
        gradients = torch.autograd.grad(total, [parameters[name] for name in names], allow_unused=True)
    flows = {name: flow for name, flow in zip(names, gradients, strict=True) if flow is not None}
    return {
        name: (flows[name].double() * p.detach().double()).abs() if name in flows else torch.zeros_like(p)
        for name, p in parameters.items()
    }


@contextlib.contextmanager
def positive(model: nn.Module) -> Iterator[nn.Module]:
    """The model with absolute weights in float64 and in evaluation mode, put back afterwards bit by bit."""
    saved = [(p, p.data) for p in (*model.parameters(), *model.buffers())]
    modes = [(module, module.training) for module in model.modules()]
    try:
        for p, data in saved:
            if data.is_floating_point():  # a buffer with infinite entries is a mask of attention, not a weight
                is_weight = isinstance(p, nn.Parameter) or bool(data.isfinite().all())
                p.data = data.double().abs() if is_weight else data.double()
        yield model.eval()
    finally:
        for p, data in saved:
            p.data = data
        for module, mode in modes:
            module.training = mode


def released_gradient(known: Known) -> Scores:
    """|released|; infinite where nothing was, or no number."""
    parameters = parameters_of(known.program)
    seen = {name: known.released[name].abs() for name in parameters if name in known.released}
    return {name: seen[name].nan_to_num(torch.inf, torch.inf) if name in seen else unknown(p) for name, p in parameters.items()}


CRITERIA = {
    criterion.name: criterion
    for criterion in (
        Criterion("random", "random numbers", random, is_random=True),
        Criterion("magnitude", "the weights", magnitude),
        Criterion("snip", "a public batch and the weights", snip, needs="public_batch"),
        Criterion("public gradient", "a public batch", public_gradient, needs="public_batch"),
        Criterion("synflow", "the weights, the buffers and the shape of an input", synflow, needs="example", is_iterative=True),
        Criterion("released gradient", "gradients that were released with noise", released_gradient, is_random=True),
    )
}
PRIVATE = (
    "gradient",
    "gradients",
    "grad",
    "per-example gradient",
    "norm",
    "norms",
    "loss",
    "losses",
    "fisher",
    "movement",
    "grasp",
)


def criterion_named(name: str) -> Criterion:
    """A row of CRITERIA; refuses what would look at private data."""
    if name in CRITERIA:
        return CRITERIA[name]
    if name.lower() in PRIVATE:
        raise InvalidInput(
            f"criterion={name!r} would choose by gradients of the private data without noise, which is not private. Use "
            '"released gradient" (what training has released already) or "public gradient" with public_batch='
        )
    raise InvalidInput(f"criterion={name!r} does not exist; use one of {', '.join(CRITERIA)}, or masks= of your own")
