"""Scores that order nothing are refused; random order is uniform over units and independent of other draws from the seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo_case import squares
from zoo_networks import mlp

from dpcompile import GradientDropping, InvalidInput, PrePruning, dpcompile
from dpcompile.criteria.ranking import largest

TURNS = 400


def told(private: Any) -> dict[str, Tensor]:
    """The masks."""
    selection = private.program.selection
    return {name: selection.mask(name).clone() for name in selection.layouts}


def frequencies(model: nn.Module, dropping: GradientDropping) -> dict[str, Tensor]:
    """How often each row of each weight is trained."""
    private, total = dpcompile(model, loss=squares, passes=[dropping]), dict[str, Tensor]()
    for _ in range(TURNS):
        for name, mask in told(private).items():
            if mask.dim() > 1:
                total[name] = total.get(name, torch.zeros(len(mask))) + mask.flatten(1).any(1)
        private.reselect()
    return {name: count / TURNS for name, count in total.items()}


@pytest.mark.parametrize("rate", [0.75, 0.25])
def test_large_and_small_layers_are_drawn_alike(rate: float) -> None:
    model = nn.Sequential(nn.Linear(60, 60), nn.Linear(60, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    found = frequencies(model, GradientDropping(rate, "random", granularity="layers", seed=0))
    deviation = (rate * (1 - rate) / TURNS) ** 0.5
    assert all(abs(float(share[0]) - (1 - rate)) < 5 * deviation for share in found.values()), found


@pytest.mark.parametrize("rate", [0.8, 0.2])
def test_wide_and_narrow_rows_are_drawn_alike(rate: float) -> None:
    model = nn.Sequential(nn.Linear(300, 10), nn.Linear(10, 4), nn.Linear(4, 10))
    found = frequencies(model, GradientDropping(rate, "random", granularity="rows", scope="global", seed=0))
    assert all(abs(float(share.mean()) - (1 - rate)) < 0.05 for share in found.values()), found


@pytest.mark.parametrize("kind", [PrePruning, GradientDropping])
def test_what_is_drawn_has_nothing_to_do_with_initial_weights_of_the_same_seed(kind: Any) -> None:
    torch.manual_seed(0)
    model = mlp(30, 40, 20)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    masks = told(dpcompile(model, loss=squares, passes=[kind(0.5, "random", seed=0)]))
    for name, mask in masks.items():
        overlap = float((mask & (weights[name] > weights[name].median())).sum() / mask.sum())
        assert abs(overlap - 0.5) < 5 * 0.5 / int(mask.sum()) ** 0.5


def test_the_two_passes_draw_apart() -> None:
    model = mlp(30, 40, 20)
    first, second = (told(dpcompile(model, loss=squares, passes=[kind(0.5, "random", seed=0)]))
                     for kind in (PrePruning, GradientDropping))  # fmt: skip
    assert not torch.equal(first["0.weight"], second["0.weight"])


def test_scores_without_an_order_are_refused_and_change_nothing() -> None:
    model, x = mlp(5, 7, 3), torch.randn(8, 5)
    x[3, 2] = torch.nan
    before = [p.detach().clone() for p in model.parameters()]
    for choice in (PrePruning(0.5, "snip", public_batch=(x,)), GradientDropping(0.5, "public gradient", public_batch=(x,))):
        with pytest.raises(InvalidInput, match="no finite score"):
            dpcompile(model, loss=squares, passes=[choice])
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


class Attention(nn.Module):
    """Attention with its mask in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 4)
        self.register_buffer("mask", torch.full((6, 6), -torch.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        """f[B, 6, 8] -> f[B, 4]."""
        q, k, v = self.qkv(x).chunk(3, -1)
        result: Tensor = self.out((torch.softmax(q @ k.transpose(1, 2) + self.mask, -1) @ v).mean(1))
        return result


def test_masks_in_buffers_are_no_weights() -> None:
    pruning = PrePruning(0.5, "synflow", scope="global", example=(torch.randn(2, 6, 8),), iterations=5)
    masks = told(dpcompile(Attention(), loss=squares, passes=[pruning]))
    assert sum(int(mask.sum()) for mask in masks.values()) == (24 * 8 + 4 * 8) // 2


class Counting(nn.Module):
    """Keeps a tensor of its forward, and counts them."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.seen = mlp(5, 7, 3), torch.zeros(())
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """f[B, 5] -> f[B, 3]."""
        self.calls += 1
        self.seen = x.detach().mean()
        result: Tensor = self.inner(x)
        return result


def test_scores_of_public_data_leave_nothing_in_the_model() -> None:
    model = Counting()
    seen = model.seen
    private = dpcompile(model, loss=squares, passes=[GradientDropping(0.5, "public gradient", public_batch=(torch.randn(3, 5),))])
    for _ in range(3):
        private.reselect()
    assert model.seen is seen and int(model.calls) == 0


def test_a_public_gradient_without_the_loss_is_refused() -> None:
    with pytest.raises(InvalidInput, match="a loss for each of the 4 public examples"):
        dpcompile(mlp(5, 7, 3), passes=[PrePruning(0.5, "snip", public_batch=(torch.randn(4, 5),))])


@pytest.mark.parametrize("size", [0, 1, 2, 7, 13])
def test_the_largest_are_those_that_a_stable_sort_puts_first(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    for kinds in (3, 1000):  # with ties and without
        scores = torch.randint(kinds, (size,), generator=generator).double()
        scores[scores == 1], scores[scores == 2] = -torch.inf, torch.inf
        for count in range(size + 1):
            expected = torch.zeros(size, dtype=torch.bool)
            expected[torch.argsort(scores, descending=True, stable=True)[:count]] = True
            assert torch.equal(largest(scores, count), expected & (scores > -torch.inf))
