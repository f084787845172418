"""Recurrent layers as one operation per direction have torch's values and gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from dpcompile.ir.errors import UnsupportedOperation
from dpcompile.kernels.recurrent import RecurrentSites

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
OPTIONS = {
    "plain": {},
    "without_bias": {"bias": False},
    "batch_first": {"batch_first": True},
    "bidirectional": {"bidirectional": True},
    "two_layers_bidirectional": {"num_layers": 2, "bidirectional": True, "batch_first": True},
}


def sample(module: nn.RNNBase, steps: int = T, examples: int = B) -> tuple[Tensor, ...]:
    """x and the initial states, all wanting a gradient."""
    layers = module.num_layers * (2 if module.bidirectional else 1)
    sequence = (examples, steps) if module.batch_first else (steps, examples)
    widths = [module.proj_size or H, *[H] * isinstance(module, nn.LSTM)]
    shapes = [(*sequence, module.input_size), *[(layers, examples, width) for width in widths]]
    return tuple(torch.randn(shape).to(dtype_of(module)).requires_grad_() for shape in shapes)


def dtype_of(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def outputs(module: nn.RNNBase, x: Tensor, *states: Tensor) -> list[Tensor]:
    out, final = module(x, states if len(states) == 2 else states[0]) if states else module(x)
    return [out, *final] if isinstance(final, tuple) else [out, final]


def values_and_gradients(module: nn.RNNBase, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs, then the gradients of a random linear function of them."""
    torch.manual_seed(1)
    results = outputs(module, *inputs)
    torch.manual_seed(2)
    terms = [(result * torch.randn(result.shape, dtype=torch.float64)).sum() for result in results]
    total = torch.stack(terms).sum()
    return [*results, *torch.autograd.grad(total, [*inputs, *module.parameters()])]


def assert_equal_to_torch(module: nn.RNNBase, inputs: tuple[Tensor, ...], tolerance: float) -> None:
    """Errors are measured against the largest entry of each tensor."""
    expected = values_and_gradients(module, inputs)
    with RecurrentSites():
        found = values_and_gradients(module, inputs)
    for left, right in zip(found, expected, strict=True):
        assert (left.shape, left.dtype, left.stride()) == (right.shape, right.dtype, right.stride())
        assert (left - right).abs().max() <= tolerance * right.abs().max().clamp(min=1)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", MODULES)
def test_values_and_all_gradients_are_those_of_torch(kind: str, options: dict[str, object]) -> None:
    module = MODULES[kind](D, H, dtype=torch.float64, **options)
    assert_equal_to_torch(module, sample(module), 1e-14)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize(("steps", "examples"), [(1, 1), (1, 11), (512, 2)])
def test_one_step_one_example_and_long_sequences_are_right(kind: str, steps: int, examples: int) -> None:
    module = MODULES[kind](D, H, dtype=torch.float64)
    assert_equal_to_torch(module, sample(module, steps, examples), 1e-12)


@pytest.mark.parametrize("kind", MODULES)
def test_float32_is_right_to_its_precision(kind: str) -> None:
    module = MODULES[kind](D, H)
    assert_equal_to_torch(module, sample(module), 1e-5)


@pytest.mark.parametrize("kind", MODULES)
def test_bfloat16_stays_near_float64(kind: str) -> None:
    low = MODULES[kind](D, H, dtype=torch.bfloat16)
    high = MODULES[kind](D, H, dtype=torch.float64)
    high.load_state_dict(low.state_dict())
    inputs = sample(low)
    expected = values_and_gradients(high, tuple(t.detach().double().requires_grad_() for t in inputs))
    with RecurrentSites():
        found = values_and_gradients(low, inputs)
    for left, right in zip(found, expected, strict=True):
        assert left.dtype == torch.bfloat16
        assert (left - right).norm() <= 0.02 * right.norm()  # five roundings of 2^-9 relative each


def test_bfloat16_keeps_adding_where_a_bfloat16_state_would_stop() -> None:
    module = nn.RNN(1, 1, nonlinearity="relu", bias=False, dtype=torch.bfloat16)
    for weight in module.parameters():
        nn.init.ones_(weight)
    with RecurrentSites():
        out, _ = module(torch.full((512, B, 1), 2.0**-6, dtype=torch.bfloat16))
    assert torch.equal(out[-1], torch.full((B, 1), 8.0, dtype=torch.bfloat16))


@pytest.mark.parametrize("kind", MODULES)
def test_default_states_are_zero(kind: str) -> None:
    module = MODULES[kind](D, H, dtype=torch.float64)
    assert_equal_to_torch(module, sample(module)[:1], 1e-14)


@pytest.mark.parametrize("kind", MODULES)
def test_memory_layout_of_the_operands_does_not_matter(kind: str) -> None:
    module = MODULES[kind](D, H, dtype=torch.float64)
    strided = tuple(t.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for t in sample(module))
    assert_equal_to_torch(module, strided, 1e-14)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("kind", ["lstm", "lstm_projected"])
def test_a_gradient_that_comes_from_one_output_only_is_right(kind: str, which: int) -> None:
    module = MODULES[kind](D, H, dtype=torch.float64)
    inputs = sample(module)
    expected = torch.autograd.grad(outputs(module, *inputs)[which].sum(), [*inputs, *module.parameters()])
    with RecurrentSites():
        found = torch.autograd.grad(outputs(module, *inputs)[which].sum(), [*inputs, *module.parameters()])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", MODULES)
def test_dropout_between_layers_draws_what_torch_draws(kind: str) -> None:
    module = MODULES[kind](D, H, num_layers=2, dropout=0.5, dtype=torch.float64)
    assert_equal_to_torch(module, sample(module), 1e-14)
    assert_equal_to_torch(module.eval(), sample(module), 1e-14)


@pytest.mark.parametrize("kind", ["lstm", "lstm_projected"])
def test_unbatched_input_keeps_working(kind: str) -> None:
    module = MODULES[kind](D, H, dtype=torch.float64)
    x = torch.randn(T, D, dtype=torch.float64)
    with RecurrentSites():
        out, _ = module(x)
    torch.testing.assert_close(out, module(x)[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("frozen", ["weight_hh_l0", "weight_hr_l0"])
def test_a_frozen_weight_gets_no_gradient(frozen: str) -> None:
    module = nn.LSTM(D, H, proj_size=P)
    module.get_parameter(frozen).requires_grad_(False)
    with RecurrentSites():
        module(torch.randn(T, B, D))[0].sum().backward()
    assert [name for name, weight in module.named_parameters() if weight.grad is None] == [frozen]


@pytest.mark.parametrize("kind", MODULES)
def test_an_empty_batch_gives_empty_outputs_and_zero_gradients(kind: str) -> None:
    module = MODULES[kind](D, H)
    inputs = sample(module, examples=0)
    with RecurrentSites():
        results = outputs(module, *inputs)
        total = torch.stack([result.sum() for result in results]).sum()
        gradients = torch.autograd.grad(total, list(module.parameters()))
    assert results[0].shape == (T, 0, module.proj_size or H)
    assert all(not gradient.any() for gradient in gradients)


def test_autocast_casts_as_it_does_for_other_layers() -> None:
    module = nn.GRU(D, H)
    x = torch.randn(T, B, D)
    with torch.autocast("cpu", dtype=torch.bfloat16), RecurrentSites():
        out, _ = module(x)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert {p.grad.dtype for p in module.parameters() if p.grad is not None} == {torch.float32}
    assert (out - module(x)[0]).abs().max() <= 0.02


def test_an_empty_sequence_is_torchs_error() -> None:
    with RecurrentSites(), pytest.raises(RuntimeError, match="sequence length"):
        nn.GRU(D, H)(torch.randn(0, B, D))


def test_packed_sequences_are_refused_with_the_way_out() -> None:
    packed = pack_padded_sequence(torch.randn(T, 2, D), [5, 2])
    for make in MODULES.values():
        with RecurrentSites(), pytest.raises(UnsupportedOperation, match="pad the sequences"):
            make(D, H)(packed)


@pytest.mark.parametrize("kind", MODULES)
def test_second_derivatives_are_refused(kind: str) -> None:
    module = MODULES[kind](D, H)
    with RecurrentSites():
        out, _ = module(torch.randn(T, B, D))
    with pytest.raises(UnsupportedOperation, match="second derivative"):
        torch.autograd.grad(out.sum(), list(module.parameters()), create_graph=True)
