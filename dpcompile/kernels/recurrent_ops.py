"""Custom operations of recurrent layers: one node forward and one node backward per layer and direction.

Traced step by step, an LSTM has about seventy nodes per time step and every weight has one contraction per
time step. As one operation per direction the graph does not grow with the sequence length. The operations are
opaque to compilers on purpose: the loop inside is sequential, and the contractions that matter for per-
example gradients stand outside, in ATen (see recurrent_layers).

The operations are functional: they do not write to an argument, and no result shares memory with an argument
or another result. `EXAMPLE_DIMS` says where the example axis is, for analyses that must treat the operations
as a whole.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from dpcompile.kernels import recurrent_loops


class ExampleDims(NamedTuple):
    """The dim of the example axis of every argument (by name) and result.

    None: the same for all examples, or not a tensor.
    """

    arguments: dict[str, int | None]
    results: tuple[int, ...]


# Not torch.library.custom_op: it adds 0.25 ms to every call, as much as ten time steps.
LIBRARY: Final = torch.library.Library("dpcompile", "FRAGMENT")

Results = tuple[Tensor, ...]

_WEIGHTS: Final = {"w_ih": None, "w_hh": None, "b_ih": None, "b_hh": None}

EXAMPLE_DIMS: Final[dict[str, ExampleDims]] = {
    # results: out, h_n, c_n, gates, cells
    "dpcompile::lstm": ExampleDims({"x": 1, "h0": 0, "c0": 0, **_WEIGHTS, "w_hr": None, "reverse": None}, (1, 0, 0, 1, 1)),
    # results: deltas, d_h, d_h0, d_c0
    "dpcompile::lstm_backward": ExampleDims(
        {"d_out": 1, "d_h_n": 0, "d_c_n": 0, "gates": 1, "cells": 1, "c0": 0, "w_hh": None, "w_hr": None, "reverse": None},
        (1, 1, 0, 0),
    ),
    # results: out, h_n, gates, new_hidden
    "dpcompile::gru": ExampleDims({"x": 1, "h0": 0, **_WEIGHTS, "reverse": None}, (1, 0, 1, 1)),
    # results: input_deltas, hidden_deltas, d_h0
    "dpcompile::gru_backward": ExampleDims(
        {"d_out": 1, "d_h_n": 0, "gates": 1, "new_hidden": 1, "h_prev": 1, "w_hh": None, "reverse": None},
        (1, 1, 0),
    ),
    # results: out, h_n
    "dpcompile::rnn": ExampleDims({"x": 1, "h0": 0, **_WEIGHTS, "nonlinearity": None, "reverse": None}, (1, 0)),
    # results: deltas, d_h0
    "dpcompile::rnn_backward": ExampleDims(
        {"d_out": 1, "d_h_n": 0, "out": 1, "w_hh": None, "nonlinearity": None, "reverse": None}, (1, 0)
    ),
}


def _lstm_shapes(
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
    steps, examples, projected, hidden = x.shape[0], x.shape[1], w_hh.shape[1], c0.shape[1]
    out, cells = (x.new_empty(steps, examples, features) for features in (projected, hidden))
    h_n, c_n = (x.new_empty(examples, features) for features in (projected, hidden))
    return out, h_n, c_n, x.new_empty(steps, examples, 4 * hidden), cells


def _lstm_backward_shapes(
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
    d_h = gates.new_empty(*gates.shape[:2], 0 if w_hr is None else w_hr.shape[0])
    return gates.new_empty(gates.shape), d_h, gates.new_empty(c0.shape[0], w_hh.shape[1]), gates.new_empty(c0.shape)


def _gru_shapes(
    x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    steps, examples, hidden = x.shape[0], x.shape[1], w_hh.shape[1]
    out, new_hidden = (x.new_empty(steps, examples, hidden) for _ in range(2))
    return out, x.new_empty(examples, hidden), x.new_empty(steps, examples, 3 * hidden), new_hidden


def _gru_backward_shapes(
    d_out: Tensor | None,
    d_h_n: Tensor | None,
    gates: Tensor,
    new_hidden: Tensor,
    h_prev: Tensor,
    w_hh: Tensor,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    input_deltas, hidden_deltas = (gates.new_empty(gates.shape) for _ in range(2))
    return input_deltas, hidden_deltas, gates.new_empty(h_prev.shape[1:])


def _rnn_shapes(
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    nonlinearity: str,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    examples, hidden = x.shape[1], w_hh.shape[1]
    return x.new_empty(x.shape[0], examples, hidden), x.new_empty(examples, hidden)


def _rnn_backward_shapes(
    d_out: Tensor | None, d_h_n: Tensor | None, out: Tensor, w_hh: Tensor, nonlinearity: str, reverse: bool
) -> tuple[Tensor, Tensor]:
    return out.new_empty(out.shape), out.new_empty(out.shape[1:])


def _define(name: str, loop: Callable[..., Results], shapes: Callable[..., Results]) -> Callable[..., Results]:
    """Define `torch.ops.dpcompile.<name>`; what runs is `loop`, what a trace sees is `shapes`."""

    def run(*args: Any) -> Results:
        with torch.no_grad():  # the loop writes into buffers; gradients are those of recurrent_layers
            return loop(*args)

    schema = torch.library.infer_schema(loop, mutates_args=())
    LIBRARY.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"dpcompile::{name}", shapes, lib=LIBRARY)
    overload: Callable[..., Results] = getattr(torch.ops.dpcompile, name).default
    return overload


lstm = _define("lstm", recurrent_loops.lstm, _lstm_shapes)
lstm_backward = _define("lstm_backward", recurrent_loops.lstm_backward, _lstm_backward_shapes)
gru = _define("gru", recurrent_loops.gru, _gru_shapes)
gru_backward = _define("gru_backward", recurrent_loops.gru_backward, _gru_backward_shapes)
rnn = _define("rnn", recurrent_loops.rnn, _rnn_shapes)
rnn_backward = _define("rnn_backward", recurrent_loops.rnn_backward, _rnn_backward_shapes)
