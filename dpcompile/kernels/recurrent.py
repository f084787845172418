"""Replace nn.LSTM, nn.GRU and nn.RNN during capture by layers with one gradient contraction per weight.

    with RecurrentSites():
        model(...)

The modules call torch.lstm, torch.gru, torch.rnn_tanh or torch.rnn_relu; the mode answers these calls with
the layers of recurrent_layers: one operation forward and one backward per layer and direction, then ordinary
contractions. Parameters, results and random numbers are those of torch: dropout between layers is F.dropout.

Left to torch: empty sequences (its error), and the cell modules, which a loop of the model unrolls. Refused:
packed sequences, where the number of examples changes from step to step.

Guarantee: the replaced call has the same signature, shapes, dtypes and devices as torch's. Second derivatives
are refused.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dpcompile import torch_private
from dpcompile.ir.errors import UnsupportedOperation, refusal
from dpcompile.kernels.recurrent_layers import GRULayer, LSTMLayer, RNNLayer

States = tuple[Tensor, ...]
"""h or (h, c) of all layers, each f[layers * directions, B, H]; of one direction, each f[B, H].

H counts the features of the state: an LSTM with projections has fewer in h than in c."""

Layer = Callable[[Tensor, States, tuple[Tensor | None, ...], bool], tuple[Tensor, ...]]
"""(x: f[T, B, d], states, (w_ih, w_hh, b_ih, b_hh[, w_hr]), reverse) -> out: f[T, B, H], final states."""


class Call(NamedTuple):
    """The arguments of torch.lstm, torch.gru and torch.rnn_*, in their order."""

    input: Tensor
    hx: Tensor | Sequence[Tensor]
    params: Sequence[Tensor]
    has_biases: bool
    num_layers: int
    dropout: float
    train: bool
    bidirectional: bool
    batch_first: bool

    @property
    def directions(self) -> int:
        """1, or 2 for a bidirectional module."""
        return 2 if self.bidirectional else 1

    @property
    def weights_per_direction(self) -> int:
        """How many entries of `params` belong to one direction of one layer."""
        return len(self.params) // (self.num_layers * self.directions)

    def weights(self, position: int) -> tuple[Tensor | None, ...]:
        """w_ih, w_hh, b_ih, b_hh and, if projected, w_hr of one direction of one layer; biases may be None."""
        start = position * self.weights_per_direction
        w_ih, w_hh, *more = self.params[start : start + self.weights_per_direction]
        return (w_ih, w_hh, *more) if self.has_biases else (w_ih, w_hh, None, None, *more)


def _lstm_layer(x: Tensor, states: States, weights: tuple[Tensor | None, ...], reverse: bool) -> tuple[Tensor, ...]:
    w_hr = weights[4] if len(weights) == 5 else None
    result: tuple[Tensor, ...] = LSTMLayer.apply(x, *states, *weights[:4], w_hr, reverse)  # type: ignore[no-untyped-call]
    return result


def _gru_layer(x: Tensor, states: States, weights: tuple[Tensor | None, ...], reverse: bool) -> tuple[Tensor, ...]:
    result: tuple[Tensor, ...] = GRULayer.apply(x, *states, *weights, reverse)  # type: ignore[no-untyped-call]
    return result


def _rnn_layer(nonlinearity: str) -> Layer:
    def layer(x: Tensor, states: States, weights: tuple[Tensor | None, ...], reverse: bool) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = RNNLayer.apply(x, *states, *weights, nonlinearity, reverse)  # type: ignore[no-untyped-call]
        return result

    return layer


LAYERS: Final[dict[Callable[..., Any], Layer]] = {
    torch.lstm: _lstm_layer,
    torch.gru: _gru_layer,
    torch.rnn_tanh: _rnn_layer("tanh"),
    torch.rnn_relu: _rnn_layer("relu"),
}


class RecurrentSites(TorchFunctionMode):
    """While active, recurrent modules run as one operation per layer and direction.

    Raises UnsupportedOperation for packed sequences, and in backward for second derivatives.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch_private.pack_padded_sequence:  # what a trace shows of pack_padded_sequence
            raise UnsupportedOperation(_packed_sequence(func))
        layer = LAYERS.get(func)
        if layer is None:
            return func(*args, **kwargs)
        if "batch_sizes" in kwargs or (len(args) > 3 and not isinstance(args[3], bool)):
            raise UnsupportedOperation(_packed_sequence(func))
        call = Call(*args, **kwargs)
        if call.input.shape[0 if not call.batch_first else 1] == 0:
            return func(*args, **kwargs)
        return run_layers(layer, _autocast(call))


def run_layers(layer: Layer, call: Call) -> tuple[Tensor, ...]:
    """Run all layers and directions.

    Returns out: f[T, B, directions * H] (f[B, T, ...] if batch_first), then the final states.
    """
    states = (call.hx,) if isinstance(call.hx, Tensor) else tuple(call.hx)
    # A copy in sequence-first order, once; otherwise every contraction over (T, B) would make its own.
    x = call.input.transpose(0, 1).clone(memory_format=torch.contiguous_format) if call.batch_first else call.input
    final: list[States] = []
    with torch.autocast(x.device.type, enabled=False):
        for index in range(call.num_layers):
            if index > 0 and call.dropout > 0 and call.train:
                x = F.dropout(x, call.dropout, training=True)
            x, after = _run_layer(layer, call, index, x, states)
            final += after
    h_and_c = tuple(torch.stack(parts) for parts in zip(*final, strict=True))
    return (x.transpose(0, 1) if call.batch_first else x, *h_and_c)


def _run_layer(layer: Layer, call: Call, index: int, x: Tensor, states: States) -> tuple[Tensor, list[States]]:
    """Run the directions of one layer: out: f[T, B, directions * H], and the final states of each."""
    outs: list[Tensor] = []
    final: list[States] = []
    for direction in range(call.directions):
        position = index * call.directions + direction
        initial = tuple(state[position] for state in states)
        out, *after = layer(x, initial, call.weights(position), direction == 1)
        outs.append(out)
        final.append(tuple(after))
    return (torch.cat(outs, dim=2) if len(outs) > 1 else outs[0]), final


def _autocast(call: Call) -> Call:
    """Cast what autocast would cast inside torch's own kernel."""
    device = call.input.device.type
    if not torch.is_autocast_enabled(device):
        return call
    dtype = torch.get_autocast_dtype(device)
    hx = call.hx.to(dtype) if isinstance(call.hx, Tensor) else tuple(state.to(dtype) for state in call.hx)
    return call._replace(input=call.input.to(dtype), hx=hx, params=[weight.to(dtype) for weight in call.params])


def _packed_sequence(func: Callable[..., Any]) -> str:
    return refusal(
        f"torch.{func.__name__} on a packed sequence",
        "",
        "the number of examples changes from step to step, so no tensor has an example axis",
        "pad the sequences to one length and mask the loss of the padding",
    )
