"""Draws: distributed as the accountant assumes, a function of key and step alone, complete in their physical batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.utils.data import Dataset
from training_case import EXAMPLES, loader, made, network

from dpcompile import InvalidInput
from dpcompile.training.release import Pass, Poisson, TruncatedPoisson
from dpcompile.training.sampling import Draws, parts

STEPS = 4000


def memberships(seed: int) -> np.ndarray:
    """bool[STEPS, 20]: who is in which step at rate 0.3."""
    draws = Draws(20, Poisson(0.3), 6, seed)
    found = np.zeros((STEPS, 20), bool)
    for step in range(STEPS):
        found[step, draws.examples(step)] = True
    return found


def test_sizes_are_binomial() -> None:
    sizes = memberships(1).sum(1)
    observed = np.bincount(sizes, minlength=21)
    expected = stats.binom(20, 0.3).pmf(np.arange(21)) * STEPS
    common = expected > 5
    pooled = [np.append(a[common], a[~common].sum()) for a in (observed, expected)]
    assert stats.chisquare(*pooled).pvalue > 0.01


def test_examples_are_drawn_alike_and_independently_of_each_other_and_of_the_step_before() -> None:
    found = memberships(1)
    rates = found.sum(0)
    assert stats.chisquare(np.stack([rates, STEPS - rates]), np.array([[0.3], [0.7]]) * STEPS, axis=0).pvalue.min() > 0.01 / 20
    bound = stats.norm.ppf(1 - 0.005 / 400) / np.sqrt(STEPS)
    together = np.corrcoef(found.T) - np.eye(20)
    following = np.corrcoef(found[1:].T, found[:-1].T)[:20, 20:]
    assert np.abs(together).max() < bound
    assert np.abs(following).max() < bound


def test_a_draw_depends_on_key_and_step_only() -> None:
    first, second = (Draws(50, Poisson(0.4), 20, 9) for _ in range(2))
    assert [first.examples(5).tolist(), first.examples(2).tolist()] == [second.examples(5).tolist(), second.examples(2).tolist()]
    assert first.examples(2).tolist() != first.examples(3).tolist()
    assert Draws(50, Poisson(0.4), 20, 10).examples(2).tolist() != first.examples(2).tolist()


def test_draws_without_a_seed_differ() -> None:
    keys = {Draws(50, Poisson(0.4), 20).key for _ in range(3)}
    assert len(keys) == 3


def test_truncated_draws_are_a_random_part() -> None:
    draws = Draws(20, TruncatedPoisson(0.5, 20, 4), 10, 3)
    found = np.bincount(np.concatenate([draws.examples(step) for step in range(STEPS)]), minlength=20)
    assert max(len(draws.examples(step)) for step in range(STEPS)) == 4
    assert stats.chisquare(found).pvalue > 0.01


def test_a_pass_holds_every_example_once() -> None:
    draws = Draws(23, Pass(0), 5, 3)
    assert len(draws) == 5
    for turn in range(3):
        seen = np.concatenate([draws.examples(turn * 5 + place) for place in range(5)])
        assert sorted(seen) == list(range(23))


@given(st.integers(0, 30), st.one_of(st.none(), st.integers(1, 13)), st.booleans())
def test_physical_batches_hold_the_draw_once(drawn: int, limit: int | None, is_padded: bool) -> None:
    rows = np.arange(100, 100 + drawn)
    made_parts = list(parts(rows, 7, limit, is_padded))
    counted = [row for batch, physical in made_parts for row in batch[: physical.counted]]
    assert counted == rows.tolist()
    assert all(len(batch) == max(1, physical.counted) for batch, physical in made_parts)
    assert all(physical.size >= len(batch) for batch, physical in made_parts)
    assert [p.is_first for _, p in made_parts] == [True] + [False] * (len(made_parts) - 1)
    assert [p.is_last for _, p in made_parts] == [False] * (len(made_parts) - 1) + [True]
    assert all(int(p.mask(torch.device("cpu")).sum()) == p.counted for _, p in made_parts)
    if limit is not None:
        assert all(p.size == limit if is_padded else p.size <= limit for _, p in made_parts)


class Numbers(Dataset[Any]):
    """Example i is i, as a dict, with a text that the loader's own collate function must see."""

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> Any:
        return {"number": index, "text": str(index)}


def joined(rows: list[Any]) -> Any:
    """A collate function."""
    return torch.tensor([row["number"] for row in rows]), "|".join(row["text"] for row in rows)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_collate_functions_are_kept(workers: int) -> None:
    batches = loader_of(Numbers(), workers)
    seen: list[int] = []
    for numbers, text in batches:
        physical = batches.session.current
        assert physical is not None
        assert (
            numbers.tolist()
            == batches.draws.examples(physical.number)[seen.count(physical.number) * 4 :][: len(numbers)].tolist()
        )
        assert text == "|".join(str(int(n)) for n in numbers)
        seen.append(physical.number)
    assert sorted(set(seen)) == list(range(5))


def loader_of(dataset: Any, workers: int) -> Any:
    """The private loader, batches of at most 4."""
    user = torch.utils.data.DataLoader(dataset, batch_size=12, num_workers=workers, collate_fn=joined)
    return made(network(), data_loader=user, physical_batch_size=4)[2]


def test_an_iterable_dataset_is_refused() -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([1, 2])

    with pytest.raises(InvalidInput, match="iterable dataset"):
        made(network(), data_loader=torch.utils.data.DataLoader(Stream(), batch_size=2))


def test_a_private_loader_is_not_made_private_again() -> None:
    with pytest.raises(InvalidInput, match="private already"):
        made(network(), data_loader=made(network())[2])


def test_leaving_an_epoch_early_repeats_no_draw() -> None:
    module, optimizer, batches = made(network())
    numbers = []
    for _ in range(4):
        for place, (inputs, targets) in enumerate(batches):
            numbers.append(batches.session.completed)
            torch.nn.functional.cross_entropy(module(inputs), targets).backward()
            optimizer.step()
            if place == 2:
                break
    assert numbers == list(range(12))


def test_the_length_of_an_epoch_is_what_sees_every_example_once_on_average() -> None:
    assert len(made(network())[2]) == EXAMPLES // 12
    assert len(made(network(), data_loader=loader(EXAMPLES))[2]) == 1
