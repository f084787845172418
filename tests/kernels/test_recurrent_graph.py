"""Operations of recurrent layers are functional; captured graphs are small and right for any batch size."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpcompile import torch_private
from dpcompile.kernels import recurrent_ops
from dpcompile.kernels.recurrent import RecurrentSites

aten = torch.ops.aten
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")  # by one of torch's own kernels
T, B, D, H, P = 5, 11, 3, 7, 2
"""Steps, examples, input features, hidden features, features of a projected state."""

MODULES: dict[str, Callable[..., nn.RNNBase]] = {
    "lstm": nn.LSTM,
    "lstm_projected": lambda *sizes, **options: nn.LSTM(*sizes, proj_size=P, **options),
    "gru": nn.GRU,
    "rnn_tanh": nn.RNN,
    "rnn_relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}


def random(*shape: int) -> Tensor:
    """Positive numbers, which no activation sends to a constant."""
    return torch.rand(*shape, dtype=torch.float64)


def weights(gates: int, hidden: int = H) -> tuple[Tensor, ...]:
    """w_ih, w_hh, b_ih, b_hh."""
    return random(gates * H, D), random(gates * H, hidden), random(gates * H), random(gates * H)


def lstm_samples(w_hr: Tensor | None) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """Arguments of lstm and lstm_backward."""
    x, gates, cells, c0, hidden = random(T, B, D), random(T, B, 4 * H), random(T, B, H), random(B, H), H if w_hr is None else P
    forward = (x, random(B, hidden), c0, *weights(4, hidden), w_hr, False)
    return forward, (random(T, B, hidden), random(B, hidden), c0, gates, cells, random(B, H), random(4 * H, hidden), w_hr, False)


def operation_samples() -> dict[str, tuple[object, ...]]:
    """Arguments of every operation, in float64."""
    sequence, state, x = random(T, B, H), random(B, H), random(T, B, D)
    gru_saved = (random(T, B, 3 * H), random(T, B, H), random(T, B, H), random(3 * H, H))
    (lstm, lstm_backward), (projected, projected_backward) = lstm_samples(None), lstm_samples(random(P, H))
    return {
        "dpcompile::lstm": lstm,
        "dpcompile::lstm_backward": lstm_backward,
        "dpcompile::lstm projected": projected,
        "dpcompile::lstm_backward projected": projected_backward,
        "dpcompile::gru": (x, state, *weights(3), False),
        "dpcompile::gru_backward": (sequence, state, *gru_saved, False),
        "dpcompile::rnn": (x, state, *weights(1), "tanh", False),
        "dpcompile::rnn_backward": (sequence, state, random(T, B, H), random(H, H), "tanh", False),
    }


def operation(name: str) -> Any:
    return getattr(torch.ops.dpcompile, name.split(maxsplit=1)[0].removeprefix("dpcompile::")).default


def test_every_operation_has_samples() -> None:
    assert {name.split()[0] for name in operation_samples()} == set(recurrent_ops.EXAMPLE_DIMS)


@pytest.mark.parametrize("name", operation_samples())
def test_operations_are_functional_and_traced_shapes_are_real_shapes(name: str) -> None:
    for reverse in (False, True):
        arguments = (*operation_samples()[name][:-1], reverse)
        torch.library.opcheck(operation(name), arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", operation_samples())
def test_the_table_says_where_the_example_axis_is(name: str) -> None:
    """Example 2 alone is replaced: all its slices move, and nothing else does."""
    table, arguments = recurrent_ops.EXAMPLE_DIMS[name.split(maxsplit=1)[0]], operation_samples()[name]
    assert list(table.arguments) == [argument.name for argument in operation(name)._schema.arguments]
    dims = list(table.arguments.values())
    changed = [replaced(argument, dim, 2) for argument, dim in zip(arguments, dims, strict=True)]
    before, after = operation(name)(*arguments), operation(name)(*changed)
    for left, right, dim in zip(before, after, table.results, strict=True):
        moved = (left != right).movedim(dim, 0).flatten(1)
        assert moved[2].all()
        assert not moved[[example for example in range(B) if example != 2]].any()


def replaced(argument: object, dim: int | None, example: int) -> object:
    if dim is None or not isinstance(argument, Tensor):
        return argument
    changed = argument.clone()
    changed.select(dim, example).mul_(0.5)
    return changed


class Classifier(nn.Module):
    """A recurrent layer and a linear head on the mean over time; returns one loss per example."""

    def __init__(self, recurrent: nn.RNNBase) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.head = nn.Linear((recurrent.proj_size or recurrent.hidden_size) * (2 if recurrent.bidirectional else 1), 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self.recurrent(x)[0].mean(1)), y, reduction="none")


def captured(model: Classifier, steps: int) -> tuple[torch_private.Fakes, torch.fx.GraphModule]:
    """The joint graph of losses and parameter gradients for a symbolic number of examples, functionalised."""
    names, parameters = zip(*model.named_parameters(), strict=True)

    def joint(*tensors: Tensor) -> list[Tensor]:
        held = [tensor.detach().requires_grad_() for tensor in tensors[:-2]]
        x, y = tensors[-2:]
        torch._check(x.shape[0] == y.shape[0])
        with RecurrentSites():
            losses = torch.func.functional_call(model, dict(zip(names, held, strict=True)), (x, y))
        return [losses.detach(), *torch.autograd.grad(losses.sum(), held)]

    mode = torch_private.new_fakes()
    batch = (torch.randn(B, steps, model.recurrent.input_size), torch.zeros(B, dtype=torch.long))
    fakes = [torch_private.fake(mode, p, None, 23) for p in parameters] + [torch_private.fake(mode, t, 0, 23) for t in batch]
    with torch_private.tracing_context(mode):
        first = torch_private.trace(joint, fakes)
        interpreter = torch.fx.Interpreter(first)
        replay = torch.func.functionalize(lambda *a: interpreter.run(*a, enable_io_processing=False), remove="mutations")
        return mode, torch_private.trace(replay, fakes)


def assert_right_for_any_batch_size(run: Callable[..., list[Tensor]], model: Classifier, sizes: tuple[int, ...]) -> None:
    parameters = list(model.parameters())
    for examples in sizes:
        x, y = torch.randn(examples, T, D), torch.randint(0, 3, (examples,))
        losses = model(x, y)
        expected = [losses.detach(), *torch.autograd.grad(losses.sum(), parameters)]
        found = run(*(p.detach() for p in parameters), x, y)
        torch.testing.assert_close(list(found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", MODULES)
def test_one_capture_is_right_for_every_batch_size_and_conditions_none(kind: str) -> None:
    model = Classifier(MODULES[kind](D, H, num_layers=2, bidirectional=True, batch_first=True))
    mode, graph = captured(model, T)
    assert len(torch_private.guards(mode)) == 1  # that x and y have the same number of examples
    assert_right_for_any_batch_size(graph, model, (1, 2, 5))


@pytest.mark.parametrize("kind", MODULES)
def test_graph_size_does_not_depend_on_the_sequence_length(kind: str) -> None:
    model = Classifier(MODULES[kind](D, H, num_layers=2, batch_first=True))
    short, long = (captured(model, steps)[1] for steps in (3, 7))
    assert [node.target for node in short.graph.nodes if node.op == "call_function"] == [
        node.target for node in long.graph.nodes if node.op == "call_function"
    ]


@pytest.mark.parametrize("kind", MODULES)
def test_every_weight_has_one_contraction(kind: str) -> None:
    """mm: two weights or three, the head's weight and the head's input gradient. sum: two biases and the head's."""
    model = Classifier(MODULES[kind](D, H, batch_first=True))
    _, graph = captured(model, T)
    targets = [node.target for node in graph.graph.nodes]
    assert targets.count(aten.mm.default) == (5 if model.recurrent.proj_size else 4)
    assert targets.count(aten.sum.dim_IntList) == 3


@pytest.mark.parametrize("kind", ["lstm", "lstm_projected"])
def test_two_layers_of_256_steps_are_traced_in_seconds(kind: str) -> None:
    model = Classifier(MODULES[kind](D, H, num_layers=2, batch_first=True))
    start = perf_counter()
    captured(model, 256)
    assert perf_counter() - start < 10


def test_one_inductor_compilation_is_right_for_every_batch_size() -> None:
    model = Classifier(nn.GRU(D, H, batch_first=True))
    mode, graph = captured(model, T)
    assert_right_for_any_batch_size(torch_private.compile_inductor(mode, graph), model, (1, 2, 17))
