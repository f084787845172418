"""An LSTM that projects its hidden state: one site per weight, one graph whatever the number of steps, and the loop's results."""

from __future__ import annotations

from collections.abc import Callable
from time import process_time
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import errors, expect
from torch import Tensor, nn

from dpcompile import MixedExamplesError, dpcompile
from dpcompile.kernels import recurrent_ops

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")  # by one of torch's own kernels
D, H, P = 3, 5, 2
"""Input features, hidden features, features of the projected state."""
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "without bias": {"bias": False},
    "two layers both ways": {"num_layers": 2, "bidirectional": True},
    "two layers both ways without bias": {"num_layers": 2, "bidirectional": True, "bias": False},
    "sequence first": {"batch_first": False},
    "sequence first both ways": {"batch_first": False, "bidirectional": True},
}


class Tagger(nn.Module):
    """f[B, T, 3], with or without an initial state of the examples' own, to f[B, T, 4] and the final cells."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.rnn = nn.LSTM(D, H, proj_size=P, **{"batch_first": True, **options})
        self.head = nn.Linear(P * (2 if self.rnn.bidirectional else 1), 4)

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and cells, both with the examples first."""
        initial = tuple(state.transpose(0, 1).contiguous() for state in states) or None
        out, (_, cells) = self.rnn(x if self.rnn.batch_first else x.transpose(0, 1), initial)
        return self.head(out if self.rnn.batch_first else out.transpose(0, 1)), cells.transpose(0, 1)


def squares(model: Callable[..., tuple[Tensor, Tensor]], *batch: Tensor) -> Tensor:
    """One loss per example, which scores and cells both enter."""
    scores, cells = model(*batch)
    return scores.square().sum((1, 2)) + cells.sin().sum((1, 2))


def model_with(**options: Any) -> Tagger:
    """The same in every call, in float64."""
    torch.manual_seed(0)
    return Tagger(**options).double()


def sequences(size: int, steps: int = 6) -> Tensor:
    """f[B, T, 3]."""
    return torch.randn(size, steps, D, generator=torch.Generator().manual_seed(size)).double()


def check(model: nn.Module, batch: tuple[Tensor, ...], **options: Any) -> Any:
    """Losses, norms, factors and sums equal those of the loop over single examples."""
    expected = expect(model, squares, batch)
    private = dpcompile(model, loss=squares, max_grad_norm=expected.max_grad_norm, example_batch=batch, **options)
    assert float(expected.norms.min()) > 0
    assert max(errors(private(*batch), expected).values()) < 1e-9
    return private


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_step_equals_the_loop_for_every_batch_size(options: dict[str, Any]) -> None:
    model = model_with(**options)
    private = check(model, (sequences(3),))
    for size in (1, 7):
        expected = expect(model, squares, (sequences(size),), max_grad_norm=private.max_grad_norm)
        assert max(errors(private(sequences(size)), expected).values()) < 1e-9


@pytest.mark.parametrize("size", [1, 3, 7])
def test_examples_may_bring_their_initial_states(size: int) -> None:
    states = torch.randn(size, 1, P).double(), torch.randn(size, 1, H).double()
    check(model_with(), (sequences(size), *states))


class Learned(nn.Module):
    """Initial states that all examples share and that are trained."""

    def __init__(self) -> None:
        super().__init__()
        self.tagger = model_with()
        self.h, self.c = (nn.Parameter(torch.rand(1, width)) for width in (P, H))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the tagger."""
        found: tuple[Tensor, Tensor] = self.tagger(x, *(state.expand(x.shape[0], 1, -1) for state in (self.h, self.c)))
        return found


@pytest.mark.parametrize("size", [1, 3, 7])
def test_initial_states_may_be_learned(size: int) -> None:
    check(Learned().double(), (sequences(size),))


@pytest.mark.parametrize(
    "options",
    [*({"strategy": name} for name in ("gram", "materialize", "fused")), {"schedule": "two-pass"}, {"schedule": "microbatch"}],
    ids=str,
)
def test_every_strategy_and_schedule_gives_the_same(options: dict[str, Any]) -> None:
    check(model_with(num_layers=2, bidirectional=True), (sequences(7),), **options)


def test_every_projection_is_one_site_and_every_direction_one_operation() -> None:
    private = check(model_with(num_layers=2, bidirectional=True), (sequences(3),))
    targets = [node.target for node in private.graph_module.graph.nodes]
    assert targets.count(recurrent_ops.lstm) == targets.count(recurrent_ops.lstm_backward) == 4
    sites = [choice.site for choice in private.report().plan.choices if "weight_hr" in choice.site.parameter]
    assert [(site.equation, len(site.terms)) for site in sites] == [("bti,bto->oi", 1)] * 4


def test_the_graph_is_that_of_any_number_of_steps() -> None:
    graphs = [check(model_with(), (sequences(3, steps),)).graph_module.graph for steps in (8, 64)]
    short, long = ([node.target for node in graph.nodes if node.op == "call_function"] for graph in graphs)
    assert len(short) == len(long)


def test_512_steps_compile_in_seconds() -> None:
    start = process_time()  # of this process, for others may be busy
    private = dpcompile(model_with(), loss=squares, example_batch=(sequences(2, 512),))
    private(sequences(2, 512))
    assert process_time() - start < 10


def test_inductor_computes_the_same() -> None:
    check(model_with(), (sequences(3),), backend="inductor")


def test_a_sum_over_the_batch_as_a_sequence_of_its_own_is_refused() -> None:
    """All examples would enter each example's loss."""

    def mixed(model: Tagger, x: Tensor) -> Tensor:
        together = F.pad(model.rnn(x)[0], (0, D - P)).sum(0, keepdim=True)
        return squares(model, x) + squares(model, together)

    with pytest.raises(MixedExamplesError, match="a sum over the batch") as caught:
        dpcompile(model_with(), loss=mixed, example_batch=(sequences(3),))
    assert "dpcompile.lstm" in str(caught.value)


def test_a_projection_that_depends_on_the_batch_is_refused() -> None:
    """The weights of a recurrent layer must be the same for all examples."""

    def scaled(model: Tagger, x: Tensor) -> Tensor:
        weights = {name: p * x.sum() if "weight_hr" in name else p for name, p in model.named_parameters()}
        return squares(lambda *batch: torch.func.functional_call(model, weights, batch), x)

    with pytest.raises(MixedExamplesError, match="depend on the batch"):
        dpcompile(model_with(), loss=scaled, example_batch=(sequences(3),))
