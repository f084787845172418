"""Embedding bags: exact where every bag lies within one example, else refused with a way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import errors, expect
from torch import Tensor, nn
from zoo_case import squares
from zoo_layers import Using

from dpcompile import DPCompileError, dpcompile

MODES = ("sum", "mean", "max")


def ids(bag: int = 5) -> Tensor:
    """Indices i64[4, bag] with repeats; one bag holds the same index only."""
    drawn = torch.randint(0, 7, (4, bag), generator=torch.Generator().manual_seed(0))
    drawn[2] = 1
    return drawn


def bags(call: Any = None, **options: Any) -> nn.Module:
    """An EmbeddingBag of seven rows, called in this way."""
    layer = nn.EmbeddingBag(7, 3, **options).double()
    return layer if call is None else Using(call, e=layer)


def flat(m: Any, x: Tensor) -> Tensor:
    """The bags as one list with regular offsets."""
    return m.e(x.reshape(-1), torch.arange(0, x.numel(), x.shape[1]))


def largest_error(model: nn.Module, *batch: Tensor) -> float:
    """The largest deviation of a step from the plain loop."""
    expected = expect(model, squares, batch)
    return max(errors(dpcompile(model, loss=squares, max_grad_norm=expected.max_grad_norm)(*batch), expected).values())


@pytest.mark.parametrize("padding", [None, 1, -2])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("call", [None, flat], ids=["two axes", "one list"])
def test_bags_of_one_size_equal_the_loop(call: Any, mode: str, padding: int | None) -> None:
    assert largest_error(bags(call, mode=mode, padding_idx=padding), ids()) < 1e-12


@pytest.mark.parametrize("learned", [False, True])
def test_weights_per_sample(learned: bool) -> None:
    weight = nn.Embedding(7, 1).double()
    model = Using(
        lambda m, x, w: m.e(x, per_sample_weights=m.w(x).squeeze(2) if learned else w),
        e=bags(mode="sum"),
        w=weight.requires_grad_(learned),
    )
    assert largest_error(model, ids(), torch.randn(4, 5, dtype=torch.float64)) < 1e-12


def test_weights_per_sample_of_a_flat_list() -> None:
    def call(m: Any, x: Tensor, w: Tensor) -> Tensor:
        return m.e(x.reshape(-1), torch.arange(0, x.numel(), 5), per_sample_weights=w.reshape(-1))

    assert largest_error(bags(call, mode="sum"), ids(), torch.randn(4, 5, dtype=torch.float64)) < 1e-12


def test_last_offset_and_several_bags_per_example() -> None:
    def last(m: Any, x: Tensor) -> Tensor:
        return m.e(x.reshape(-1), torch.arange(0, x.numel() + 1, 5))

    def several(m: Any, x: Tensor) -> Tensor:
        return m.e(x.reshape(-1), torch.arange(0, x.numel(), 2)).reshape(x.shape[0], -1)

    assert largest_error(bags(last, include_last_offset=True), ids()) < 1e-12
    assert largest_error(bags(several), ids(6)) < 1e-12


def crossing(m: Any, x: Tensor) -> Tensor:
    """Bags of two over examples of five."""
    return m.e(x.reshape(-1), torch.arange(0, x.numel(), 2))[: x.shape[0]]


def computed(m: Any, x: Tensor) -> Tensor:
    """Offsets that are numbers of their own."""
    return m.e(x.reshape(-1), torch.arange(x.shape[0]) * 5)


def overwritten(m: Any, x: Tensor) -> Tensor:
    """Regular offsets, changed afterwards."""
    offsets = torch.arange(0, x.numel(), 5)
    offsets[1:] += 1
    return m.e(x.reshape(-1), offsets)


def shifted(m: Any, x: Tensor) -> Tensor:
    """Offsets that do not begin at zero."""
    return m.e(x.reshape(-1), torch.arange(1, x.numel(), 5))


@pytest.mark.parametrize("call", [crossing, computed, overwritten, shifted], ids=lambda call: call.__name__)
def test_other_offsets_are_refused_with_a_way_out(call: Any) -> None:
    with pytest.raises(DPCompileError, match=r"(?s)embedding_bag.*2-D input"):
        dpcompile(bags(call, mode="sum"), loss=squares)(ids())


def test_offsets_in_the_batch_are_refused() -> None:
    model = bags(lambda m, x, offsets: m.e(x, offsets), mode="sum")
    with pytest.raises(DPCompileError, match=r"2-D input"):
        dpcompile(model, loss=squares)(torch.arange(4) % 7, torch.arange(4))


def test_list_of_the_transposed_ids_is_refused() -> None:
    model = bags(lambda m, x: m.e(x.t().reshape(-1), torch.arange(0, x.numel(), 5)), mode="sum")
    with pytest.raises(DPCompileError, match="reshape"):
        dpcompile(model, loss=squares)(ids())


@pytest.mark.parametrize(
    ("options", "word"),
    [({"scale_grad_by_freq": True}, "scale_grad_by_freq"), ({"max_norm": 0.5}, "max_norm")],
    ids=["frequency", "max_norm"],
)
def test_options_that_couple_examples_are_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(DPCompileError, match=word):
        dpcompile(bags(mode="sum", **options), loss=squares)(ids())
