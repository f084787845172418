"""Loops over time of LSTM, GRU and plain RNN layers, forward and backward, on plain tensors.

One layer and one direction at a time. The input part of all gates is one matrix product over all time steps.
The loop has one (GRU: two) matrix products per step. A backward loop returns the gradient of the gates' pre-
activations (the *deltas*) for all time steps and does not touch the weight gradients: those are contractions
over (time, batch) that the caller writes in ATen. Every derivative that does not depend on the incoming
gradient is computed for all steps at once before the loop, because an element-wise operation on one step
costs mostly its launch.

Considered and slower on a CPU (T = 64, B = 32, H = 128): torch's fused LSTM kernel for the hidden states
followed by one product that recomputes the gates (7.5 ms against 5.0 ms), gates laid out as [T, 4, B, H] with
a batched product per step, and weights packed ahead of time.

An LSTM may project its hidden state: h = w_hr (o tanh(c)) then has P features and c still H; else P is H.

Sizes: T steps, B examples, d input features, H hidden features, G gates (LSTM 4: i f g o; GRU 3: r z n; RNN
1). Half precision: products with the input run in the given dtype, the states and everything element-wise in
float32, and results are rounded once, when they are stored.

No function writes to its arguments or returns one of them.
"""

import torch
from torch import Tensor

from dpcompile.kernels.recurrent_steps import Order, incoming, input_part, owned, visiting_order, wide

aten = torch.ops.aten


def lstm(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run one LSTM layer on x: f[T, B, d] from h0: f[B, P] and c0: f[B, H].

    Returns out: f[T, B, P], h_n: f[B, P], c_n: f[B, H], gates: f[T, B, 4H], cells: f[T, B, H]. `gates` are
    after their activation, in torch's order i, f, g, o.
    """
    order, hidden = visiting_order(x.shape[0], reverse), c0.shape[1]
    gates = input_part(x, w_ih, b_ih, b_hh)
    out, cells = (gates.new_empty(*x.shape[:2], features) for features in (h0.shape[1], hidden))
    transposed = w_hh.t().to(gates.dtype).contiguous()  # 15 % faster per product than the transposed view
    i, f, g, o = (gate.unbind(0) for gate in gates.chunk(4, dim=2))
    i_and_f, all_gates = gates[:, :, : 2 * hidden].unbind(0), gates.unbind(0)
    h_at, c_at = out.unbind(0), cells.unbind(0)
    h, c, squashed = h0.to(gates.dtype), c0.to(gates.dtype), gates.new_empty(c0.shape)
    project = None if w_hr is None else w_hr.t().to(gates.dtype).contiguous()
    hidden_at = h_at if project is None else (squashed,) * len(h_at)
    for t in order.steps:
        all_gates[t].addmm_(h, transposed)
        i_and_f[t].sigmoid_()
        g[t].tanh_()
        o[t].sigmoid_()
        c = torch.mul(f[t], c, out=c_at[t]).addcmul_(i[t], g[t])
        h = torch.mul(o[t], torch.tanh(c, out=squashed), out=hidden_at[t])
        if project is not None:
            h = torch.mm(h, project, out=h_at[t])
    h_n, c_n = h.to(x.dtype, copy=True), c.to(x.dtype, copy=True)
    return out.to(x.dtype), h_n, c_n, gates.to(x.dtype), cells.to(x.dtype)


def lstm_backward(
    d_out: Tensor | None,
    d_h_n: Tensor | None,
    d_c_n: Tensor | None,
    gates: Tensor,
    cells: Tensor,
    c0: Tensor,
    w_hh: Tensor,
    w_hr: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run one LSTM layer backward; an incoming gradient that is None is zero.

    Returns deltas: f[T, B, 4H], d_h: f[T, B, P] (f[T, B, 0] without a projection, where nothing needs it), d_h0:
    f[B, P] and d_c0: f[B, H]. The deltas of i, f, g are dc times a factor and that of o is the gradient of
    o tanh(c) times a factor; the factors are known beforehand.
    """
    dtype, order, hidden = gates.dtype, visiting_order(gates.shape[0], reverse), c0.shape[1]
    gates, cells, c0, w_hh = (wide(tensor) for tensor in (gates, cells, c0, w_hh))
    deltas, to_cell = _lstm_factors(gates, cells, c0, order)
    d_h = cells.new_empty(*cells.shape[:2], 0 if w_hr is None else w_hr.shape[0])
    grad, dc = incoming(d_out, cells if w_hr is None else d_h), owned(d_c_n, cells)
    dh = d_h0 = owned(d_h_n, grad).add_(grad[order.last])
    dh_at = (dh,) * len(order.steps)  # of one step at a time, until a projection needs them all
    if w_hr is not None:
        w_hr, dh, dh_at = wide(w_hr), torch.empty_like(dc), d_h.unbind(0)
        dh_at[order.last].copy_(d_h0)
    i_f_g = deltas.view(*cells.shape[:2], 4, hidden)[:, :, :3].unbind(0)
    o, forget = deltas[:, :, 3 * hidden :].unbind(0), gates[:, :, hidden : 2 * hidden].unbind(0)
    delta_at, to_cell_at, grad_at, dc_per_gate = (
        deltas.unbind(0),
        to_cell.unbind(0),
        grad.unbind(0),
        dc.unsqueeze(1),
    )
    for t in reversed(order.steps):
        if w_hr is not None:
            torch.mm(dh_at[t], w_hr, out=dh)
        dc.addcmul_(dh, to_cell_at[t])
        i_f_g[t].mul_(dc_per_gate)
        o[t].mul_(dh)
        dc.mul_(forget[t])
        if t == order.first:
            torch.mm(delta_at[t], w_hh, out=d_h0)
        else:
            before = t + 1 if reverse else t - 1
            torch.addmm(grad_at[before], delta_at[t], w_hh, out=dh_at[before])
    return deltas.to(dtype), d_h.to(dtype), d_h0.to(dtype), dc.to(dtype)


def _lstm_factors(gates: Tensor, cells: Tensor, c0: Tensor, order: Order) -> tuple[Tensor, Tensor]:
    """Return the factors of the deltas: f[T, B, 4H], and dc/dh = o (1 - tanh(c)^2): f[T, B, H]."""
    i, f, g, o = gates.chunk(4, dim=2)
    factors = torch.empty_like(gates)
    factor_i, factor_f, factor_g, factor_o = factors.chunk(4, dim=2)
    squashed = cells.tanh()
    aten.sigmoid_backward.grad_input(g, i, grad_input=factor_i)
    aten.sigmoid_backward.grad_input(cells[order.earlier], f[order.later], grad_input=factor_f[order.later])
    aten.sigmoid_backward.grad_input(c0, f[order.first], grad_input=factor_f[order.first])
    aten.tanh_backward.grad_input(i, g, grad_input=factor_g)
    aten.sigmoid_backward.grad_input(squashed, o, grad_input=factor_o)
    return factors, aten.tanh_backward.grad_input(o, squashed, grad_input=squashed)


def gru(
    x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run one GRU layer on x: f[T, B, d] from h0: f[B, H].

    Returns out: f[T, B, H], h_n: f[B, H], gates: f[T, B, 3H], new_hidden: f[T, B, H]. `gates` are after their
    activation, in torch's order r, z, n; `new_hidden` is W_hn h + b_hn, which r multiplies.
    """
    order, hidden = visiting_order(x.shape[0], reverse), h0.shape[1]
    bias_n, bias_r_z = w_hh.new_zeros(hidden), b_hh
    if b_hh is not None:
        bias_n, bias_r_z = b_hh[2 * hidden :], torch.cat((b_hh[: 2 * hidden], bias_n))
    gates = input_part(x, w_ih, b_ih, bias_r_z)
    out, new_hidden = (gates.new_empty(*x.shape[:2], hidden) for _ in range(2))
    transposed = w_hh.t().to(gates.dtype)
    transposed_r_z, transposed_n = (
        transposed[:, : 2 * hidden].contiguous(),
        transposed[:, 2 * hidden :].contiguous(),
    )
    bias_n = bias_n.to(gates.dtype)
    r, z, n = (gate.unbind(0) for gate in gates.chunk(3, dim=2))
    r_and_z, h_at, new_at = gates[:, :, : 2 * hidden].unbind(0), out.unbind(0), new_hidden.unbind(0)
    h = h0.to(gates.dtype)
    for t in order.steps:
        r_and_z[t].addmm_(h, transposed_r_z).sigmoid_()
        torch.addmm(bias_n, h, transposed_n, out=new_at[t])
        n[t].addcmul_(r[t], new_at[t]).tanh_()
        h = torch.lerp(n[t], h, z[t], out=h_at[t])
    return out.to(x.dtype), h.to(x.dtype, copy=True), gates.to(x.dtype), new_hidden.to(x.dtype)


def gru_backward(
    d_out: Tensor | None,
    d_h_n: Tensor | None,
    gates: Tensor,
    new_hidden: Tensor,
    h_prev: Tensor,
    w_hh: Tensor,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one GRU layer backward; an incoming gradient that is None is zero.

    Returns input_deltas and hidden_deltas: f[T, B, 3H], d_h0: f[B, H]. The two deltas differ in the new gate,
    whose hidden part is multiplied by r. `h_prev: f[T, B, H]` is the state that each step began with.
    All deltas are dh times a factor that is known beforehand.
    """
    dtype, order, hidden = gates.dtype, visiting_order(gates.shape[0], reverse), h_prev.shape[2]
    gates, new_hidden, h_prev, w_hh = (wide(tensor) for tensor in (gates, new_hidden, h_prev, w_hh))
    hidden_deltas, factor_n = _gru_factors(gates, new_hidden, h_prev)
    grad, d_h0, dh_all = (
        incoming(d_out, h_prev),
        h_prev.new_empty(h_prev.shape[1:]),
        torch.empty_like(h_prev),
    )
    dh_at, grad_at, delta_at = dh_all.unbind(0), grad.unbind(0), hidden_deltas.unbind(0)
    per_gate, z = (
        hidden_deltas.view(*h_prev.shape[:2], 3, hidden).unbind(0),
        gates[:, :, hidden : 2 * hidden].unbind(0),
    )
    dh_at[order.last].copy_(grad_at[order.last] if d_h_n is None else grad_at[order.last] + d_h_n)
    for t in reversed(order.steps):
        dh = dh_at[t]
        per_gate[t].mul_(dh.unsqueeze(1))
        if t == order.first:
            torch.mul(dh, z[t], out=d_h0).addmm_(delta_at[t], w_hh)
        else:
            before = t + 1 if reverse else t - 1
            torch.addcmul(grad_at[before], dh, z[t], out=dh_at[before]).addmm_(delta_at[t], w_hh)
    input_deltas = hidden_deltas.clone()
    torch.mul(factor_n, dh_all, out=input_deltas[:, :, 2 * hidden :])
    return input_deltas.to(dtype), hidden_deltas.to(dtype), d_h0.to(dtype)


def _gru_factors(gates: Tensor, new_hidden: Tensor, h_prev: Tensor) -> tuple[Tensor, Tensor]:
    """Return d(hidden part of r, z, n)/dh: f[T, B, 3H] and d(input part of n)/dh: f[T, B, H]."""
    r, z, n = gates.chunk(3, dim=2)
    factors = torch.empty_like(gates)
    factor_r, factor_z, factor_rn = factors.chunk(3, dim=2)
    factor_n = aten.tanh_backward(1 - z, n)
    aten.sigmoid_backward.grad_input(factor_n * new_hidden, r, grad_input=factor_r)
    aten.sigmoid_backward.grad_input(h_prev - n, z, grad_input=factor_z)
    torch.mul(factor_n, r, out=factor_rn)
    return factors, factor_n


def rnn(
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    nonlinearity: str,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Run one plain RNN layer ("tanh" or "relu") on x: f[T, B, d]: out: f[T, B, H], h_n: f[B, H]."""
    order = visiting_order(x.shape[0], reverse)
    out = input_part(x, w_ih, b_ih, b_hh)
    activate = torch.tanh_ if nonlinearity == "tanh" else torch.relu_
    transposed, h, h_at = w_hh.t().to(out.dtype).contiguous(), h0.to(out.dtype), out.unbind(0)
    for t in order.steps:
        h = activate(h_at[t].addmm_(h, transposed))
    return out.to(x.dtype), h.to(x.dtype, copy=True)


def rnn_backward(
    d_out: Tensor | None, d_h_n: Tensor | None, out: Tensor, w_hh: Tensor, nonlinearity: str, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Run one plain RNN layer backward: deltas: f[T, B, H], d_h0: f[B, H]."""
    dtype, order = out.dtype, visiting_order(out.shape[0], reverse)
    out, w_hh = wide(out), wide(w_hh)
    one = out.new_ones(()).expand(out.shape)
    deltas = aten.tanh_backward(one, out) if nonlinearity == "tanh" else aten.threshold_backward(one, out, 0)
    grad, dh = incoming(d_out, out), owned(d_h_n, out)
    dh += grad[order.last]
    delta_at, grad_at = deltas.unbind(0), grad.unbind(0)
    for t in reversed(order.steps):
        delta_at[t].mul_(dh)
        if t == order.first:
            torch.mm(delta_at[t], w_hh, out=dh)
        else:
            torch.addmm(grad_at[t + 1 if reverse else t - 1], delta_at[t], w_hh, out=dh)
    return deltas.to(dtype), dh.to(dtype)
