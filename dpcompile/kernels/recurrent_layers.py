"""Differentiable recurrent layers with one gradient contraction per weight, whatever the sequence length.

The gradient of a recurrent weight is a sum over time steps and examples of (delta of the gates) x (operand).
The operations of recurrent_ops return all deltas; the contraction is then written here once, in ATen, so that
it looks like that of a linear layer:

  deltas: f[T, B, 4H], d_h: f[T, B, P], d_h0, d_c0 = lstm_backward(...)
  d_w_ih: f[4H, d] = t(view(deltas, [T*B, 4H])) @ view(x, [T*B, d])
  d_w_hh: f[4H, P] = t(view(deltas, [T*B, 4H])) @ view(h_prev, [T*B, P])
  d_w_hr: f[P, H] = t(view(d_h, [T*B, P])) @ view(o * tanh(cells), [T*B, H])
  d_b_ih = d_b_hh: f[4H] = sum(deltas, [0, 1])
  d_x: f[T, B, d] = view(view(deltas, [T*B, 4H]) @ w_ih)

h_prev is the state that each step began with. Only an LSTM with projections has w_hr; without one, P is H. In
a GRU the hidden part of the new gate is multiplied by the reset gate, so w_hh and b_hh take deltas of their own.
Each bias has its own sum: both count in a gradient norm.

Second derivatives are refused.
"""

from typing import Any

import torch
from torch import Tensor

from dpcompile.ir.errors import UnsupportedOperation, refusal
from dpcompile.kernels import recurrent_ops

Gradients = tuple[Tensor | None, ...]


class LSTMLayer(torch.autograd.Function):
    """One direction of an LSTM layer, with or without a projection of its hidden state.

    (x: f[T, B, d], h0: f[B, P], c0: f[B, H], weights, reverse) -> out: f[T, B, P], h_n: f[B, P], c_n: f[B, H].
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h0: Tensor,
        c0: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
        w_hr: Tensor | None,
        reverse: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, h_n, c_n, gates, cells = recurrent_ops.lstm(x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, reverse)
        ctx.save_for_backward(x, h0, c0, w_ih, w_hh, w_hr, out, gates, cells)
        ctx.set_materialize_grads(False)
        ctx.reverse = reverse
        return out, h_n, c_n

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None) -> Gradients:
        _refuse_second_order()
        x, h0, c0, w_ih, w_hh, w_hr, out, gates, cells = ctx.saved_tensors
        deltas, d_h, d_h0, d_c0 = recurrent_ops.lstm_backward(d_out, d_h_n, d_c_n, gates, cells, c0, w_hh, w_hr, ctx.reverse)
        needs_x, _, _, *needs_weights, needs_w_hr, _ = ctx.needs_input_grad
        h_prev = _previous(out, h0, ctx.reverse)
        weights = _weight_gradients(needs_weights, deltas, x, deltas, h_prev)
        d_w_hr = _projection_gradient(d_h, gates, cells) if needs_w_hr else None
        return (_input_gradient(needs_x, deltas, w_ih), d_h0, d_c0, *weights, d_w_hr, None)


class GRULayer(torch.autograd.Function):
    """One direction of a GRU layer.

    (x: f[T, B, d], h0: f[B, H], weights, reverse) -> out: f[T, B, H], h_n: f[B, H].
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h0: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
        reverse: bool,
    ) -> tuple[Tensor, Tensor]:
        out, h_n, gates, new_hidden = recurrent_ops.gru(x, h0, w_ih, w_hh, b_ih, b_hh, reverse)
        ctx.save_for_backward(x, h0, w_ih, w_hh, out, gates, new_hidden)
        ctx.set_materialize_grads(False)
        ctx.reverse = reverse
        return out, h_n

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_h_n: Tensor | None) -> Gradients:
        _refuse_second_order()
        x, h0, w_ih, w_hh, out, gates, new_hidden = ctx.saved_tensors
        h_prev = _previous(out, h0, ctx.reverse)
        input_deltas, hidden_deltas, d_h0 = recurrent_ops.gru_backward(d_out, d_h_n, gates, new_hidden, h_prev, w_hh, ctx.reverse)
        needs_x, _, *needs_weights, _ = ctx.needs_input_grad
        weights = _weight_gradients(needs_weights, input_deltas, x, hidden_deltas, h_prev)
        return (_input_gradient(needs_x, input_deltas, w_ih), d_h0, *weights, None)


class RNNLayer(torch.autograd.Function):
    """One direction of a plain RNN layer.

    (x: f[T, B, d], h0: f[B, H], weights, "tanh" or "relu", reverse) -> out: f[T, B, H], h_n: f[B, H].
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h0: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
        nonlinearity: str,
        reverse: bool,
    ) -> tuple[Tensor, Tensor]:
        out, h_n = recurrent_ops.rnn(x, h0, w_ih, w_hh, b_ih, b_hh, nonlinearity, reverse)
        ctx.save_for_backward(x, h0, w_ih, w_hh, out)
        ctx.set_materialize_grads(False)
        ctx.nonlinearity, ctx.reverse = nonlinearity, reverse
        return out, h_n

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_h_n: Tensor | None) -> Gradients:
        _refuse_second_order()
        x, h0, w_ih, w_hh, out = ctx.saved_tensors
        deltas, d_h0 = recurrent_ops.rnn_backward(d_out, d_h_n, out, w_hh, ctx.nonlinearity, ctx.reverse)
        needs_x, _, *needs_weights, _, _ = ctx.needs_input_grad
        h_prev = _previous(out, h0, ctx.reverse)
        weights = _weight_gradients(needs_weights, deltas, x, deltas, h_prev)
        return (_input_gradient(needs_x, deltas, w_ih), d_h0, *weights, None, None)


def _refuse_second_order() -> None:
    """Refuse create_graph=True.

    torch's once_differentiable would silently drop the derivative where the incoming gradient is constant.
    """
    if torch.is_grad_enabled():
        raise UnsupportedOperation(
            refusal(
                "second derivative of a recurrent layer",
                "",
                "its gradient is computed by an operation that has no derivative of its own",
                "leave the recurrent layer out of the gradient penalty, or unroll it with the cell modules",
            )
        )


def _weight_gradients(needs: list[bool], input_deltas: Tensor, x: Tensor, hidden_deltas: Tensor, h_prev: Tensor) -> Gradients:
    """Return the gradients of w_ih, w_hh, b_ih, b_hh, None where not needed."""
    w_ih, w_hh, b_ih, b_hh = needs
    return (
        input_deltas.flatten(0, 1).t() @ x.flatten(0, 1) if w_ih else None,
        hidden_deltas.flatten(0, 1).t() @ h_prev.flatten(0, 1) if w_hh else None,
        input_deltas.sum((0, 1)) if b_ih else None,
        hidden_deltas.sum((0, 1)) if b_hh else None,
    )


def _projection_gradient(d_h: Tensor, gates: Tensor, cells: Tensor) -> Tensor:
    """Return the gradient of w_hr; what it projects, o tanh(c), is computed again and not kept."""
    hidden = gates.chunk(4, dim=2)[3] * cells.tanh()
    return d_h.flatten(0, 1).t() @ hidden.flatten(0, 1)


def _input_gradient(needed: bool, deltas: Tensor, w_ih: Tensor) -> Tensor | None:
    """Return the gradient of x: f[T, B, d]."""
    return (deltas.flatten(0, 1) @ w_ih).view(*deltas.shape[:2], w_ih.shape[1]) if needed else None


def _previous(out: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    """Return the state that each step began with: f[T, B, H]."""
    first = h0.unsqueeze(0)
    return torch.cat((out[1:], first)) if reverse else torch.cat((first, out[:-1]))
