"""Rows of the zoo: recurrent layers and attention, in both layouts."""

from __future__ import annotations

from functools import partial

import zoo_layers as layers
from torch import Tensor, nn
from zoo_case import (
    floats,
    layer,
    sequence_first,
    squares_of_sequences,
)
from zoo_layers import Using

RECURRENT = (
    layer("LSTM", "one layer", lambda: layers.Recurrent(nn.LSTM), floats(7, 3)),
    layer("LSTM, sequence first", "the other layout", lambda: layers.Recurrent(nn.LSTM, True), floats(7, 3)),
    layer(
        "LSTM, two layers both ways",
        "stacked and bidirectional",
        lambda: layers.Recurrent(nn.LSTM, num_layers=2, bidirectional=True),
        floats(4, 3),
    ),
    layer(
        "LSTM, projected",
        "a projection of the hidden state",
        lambda: layers.Recurrent(nn.LSTM, proj_size=2),
        floats(4, 3),
    ),
    layer("LSTM, one step", "T=1", lambda: layers.Recurrent(nn.LSTM), floats(1, 3)),
    layer("GRU", "one layer", lambda: layers.Recurrent(nn.GRU), floats(7, 3)),
    layer(
        "GRU, sequence first both ways",
        "the other layout, bidirectional",
        lambda: layers.Recurrent(nn.GRU, True, bidirectional=True),
        floats(4, 3),
    ),
    layer(
        "GRU, two layers without bias",
        "stacked",
        lambda: layers.Recurrent(nn.GRU, num_layers=2, bias=False),
        floats(4, 3),
    ),
    layer("RNN", "tanh", lambda: layers.Recurrent(nn.RNN), floats(7, 3)),
    layer(
        "RNN, ReLU, two layers both ways",
        "the other activation",
        lambda: layers.Recurrent(nn.RNN, nonlinearity="relu", num_layers=2, bidirectional=True),
        floats(4, 3),
    ),
    layer(
        "LSTM cell",
        "a loop over time in Python",
        lambda: Using(lambda m, x: cell_loop(m.cell, x), cell=nn.LSTMCell(3, 2)),
        floats(4, 3),
    ),
    layer(
        "LSTM on sequence-first input",
        "batch_dim=1",
        lambda: Using(lambda m, x: m.rnn(x)[0], rnn=nn.LSTM(3, 5)),
        sequence_first(floats(4, 3)),
        loss=squares_of_sequences,
        batch_dim=1,
    ),
)

ATTENTION = (
    *(
        layer(
            f"self-attention, {'batch' if first else 'sequence'} first{', weights' if weights else ''}",
            "in-projection weights used in three places",
            partial(layers.Attention, first, weights),
            floats(5, 6),
        )
        for first in (True, False)
        for weights in (True, False)
    ),
    *(
        layer(
            f"cross-attention, {'batch' if first else 'sequence'} first",
            "query and memory of different lengths",
            partial(layers.Attention, first, False),
            floats(5, 6),
            floats(3, 6),
        )
        for first in (True, False)
    ),
    layer(
        "cross-attention, other widths, extra keys",
        "separate projections and bias_k",
        lambda: layers.Attention(True, True, add_bias_kv=True, add_zero_attn=True),
        floats(5, 6),
        floats(3, 6),
    ),
)


def cell_loop(cell: nn.LSTMCell, x: Tensor) -> Tensor:
    """An LSTM as a loop over a cell; f[B, T, d] to f[B, hidden]."""
    state: tuple[Tensor, Tensor] | None = None
    for step in x.unbind(1):
        state = cell(step, state)
    assert state is not None
    return state[0]
