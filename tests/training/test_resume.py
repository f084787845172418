"""Going on from a checkpoint: no run takes another's ledger, no target is exceeded, and what was changed stays changed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_case import finish, loader, made, network, values

from dpcompile import InvalidInput
from dpcompile.training import PrivacyEngine
from dpcompile.training.checkpoint import load, save
from dpcompile.training.resume import check_run_with_noise, go_on_with_noise, run_with_noise


def targeted(model: nn.Module, epochs: int, **options: Any) -> PrivacyEngine:
    """An engine that may spend 4 in so many epochs of 5 steps."""
    engine = PrivacyEngine(accountant="rdp", **options)
    engine.make_private_with_epsilon(
        module=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.5), data_loader=loader(), epochs=epochs,
        target_epsilon=4.0, target_delta=1e-2,
    )  # fmt: skip
    return engine


def made_like(message: str) -> float:
    """The noise multiplier that a refusal names."""
    return float(message.split("Give noise_multiplier=")[1].split(", a target", maxsplit=1)[0])


@pytest.mark.parametrize("seed", [None, 3])
def test_a_longer_training_than_the_target_was_for_is_refused_with_nothing_changed(seed: int | None, tmp_path: Path) -> None:
    first, second = targeted(network(), 2, seed=seed), targeted(network().double(), 4, seed=seed)
    finish(first.triple(), 10)
    first.save_checkpoint(path=tmp_path / "run")
    model = second.triple()[0].model
    with torch.no_grad():
        model[0].weight.zero_()
    before = values(model).clone()
    with pytest.raises(InvalidInput, match="less noise than target_epsilon=4 needs") as refused:
        second.load_checkpoint(path=tmp_path / "run")
    assert torch.equal(values(model), before)
    assert len(second.accountant.ledger) == 0
    made = made_like(str(refused.value))
    finish(first.triple(), 20)
    second = PrivacyEngine(accountant="rdp", seed=seed)
    model = network()
    second.make_private(
        module=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.5), data_loader=loader(), noise_multiplier=made
    )
    second.load_checkpoint(path=tmp_path / "run")  # the first way out
    finish(second.triple(), 20)
    assert second.get_epsilon(1e-2) == first.get_epsilon(1e-2)
    named = float(str(refused.value).split("epsilon is ")[1].split(". Give")[0])
    assert math.isclose(named, first.get_epsilon(1e-2), abs_tol=1.1e-4), "the epsilon that all steps would have spent"


@pytest.mark.parametrize("seed", [None, 3])
def test_the_same_training_goes_on_within_its_target(seed: int | None, tmp_path: Path) -> None:
    first, second = targeted(network(), 2, seed=seed), targeted(network(), 2, seed=seed)
    finish(first.triple(), 7)
    first.save_checkpoint(path=tmp_path / "run")
    second.load_checkpoint(path=tmp_path / "run")
    finish(second.triple(), 10)
    assert 3.9 < second.get_epsilon(1e-2) <= 4.0


def test_less_noise_than_is_asked_for_is_refused(tmp_path: Path) -> None:
    first, more, less = made(network(), noise_multiplier=1.0), made(network(), noise_multiplier=2.0), made(network(), 0.5)
    finish(first, 1)
    first[1].noise_multiplier = 0.75  # a scheduler's
    save(tmp_path / "run", *first)
    with pytest.raises(InvalidInput, match="less noise than the 2 that is asked for"):
        load(tmp_path / "run", *more)
    assert (more[1].noise_multiplier, len(more[1].accountant.ledger)) == (2.0, 0)
    for triple in (less, made(network())):
        load(tmp_path / "run", *triple)
        assert triple[1].noise_multiplier == 0.75


@pytest.mark.parametrize("seed", [None, 3])
def test_a_pass_that_is_begun_anew_counts_towards_the_target(seed: int | None, tmp_path: Path) -> None:
    def passing() -> PrivacyEngine:
        model, engine = network(), PrivacyEngine(accountant="rdp", seed=seed)
        engine.make_private_with_epsilon(
            module=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.5), data_loader=loader(), epochs=2,
            target_epsilon=4.0, target_delta=1e-2, poisson_sampling=False,
        )  # fmt: skip
        return engine

    first, second = passing(), passing()
    finish(first.triple(), 7)
    first.save_checkpoint(path=tmp_path / "run")
    if seed is None:  # its draws get a new name, under which the second pass is a third one
        with pytest.raises(InvalidInput, match="less noise than"):
            second.load_checkpoint(path=tmp_path / "run")
        return
    second.load_checkpoint(path=tmp_path / "run")
    finish(second.triple(), 10)
    assert second.get_epsilon(1e-2) <= 4.0


def test_a_run_that_has_released_takes_only_its_own_ledger(tmp_path: Path) -> None:
    longer, other = made(network()), made(network())
    finish(longer, 10)
    save(tmp_path / "longer", *longer)
    finish(other, 5)
    before = values(other[0].model).clone()
    with pytest.raises(InvalidInput, match="has released steps itself"):
        load(tmp_path / "longer", *other)
    assert torch.equal(values(other[0].model), before)
    assert len(other[1].accountant.ledger) == 5
    save(tmp_path / "own", *other)
    load(tmp_path / "own", *other)
    assert len(other[1].accountant.ledger) == 5


def test_an_earlier_step_of_the_same_pass_is_going_back(tmp_path: Path) -> None:
    triple = made(network(), poisson_sampling=False)
    finish(triple, 1)
    save(tmp_path / "run", *triple)
    finish(triple, 3)
    with pytest.raises(InvalidInput, match="spent more than the checkpoint knows"):
        load(tmp_path / "run", *triple)


def test_noise_and_clip_norm_that_were_changed_come_back() -> None:
    first, second = made(network()), made(network())
    first[1].noise_multiplier, first[1].max_grad_norm = 1.7, 0.25
    state = run_with_noise(first[1], first[2])
    assert (state["noise_multiplier"], state["max_grad_norm"]) == (1.7, 0.25)
    go_on_with_noise(state, second[1], second[2])
    assert (second[1].noise_multiplier, second[1].max_grad_norm) == (1.7, 0.25)
    for missing in ("ledger", "run", "noise_multiplier", "noise"):
        damaged = {name: value for name, value in state.items() if name != missing}
        with pytest.raises(InvalidInput, match="incomplete"):
            check_run_with_noise(damaged, second[1], second[2], None)


KEYS: dict[Any, Any] = {
    "a.b": torch.zeros(2),
    "a": {"b": torch.ones(2)},
    1: {"1": 2},
    False: 3,
    2.5: (1, [2.0, None]),
    "a.b#1": torch.full((1,), 5.0),
}


def test_keys_and_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    triple = made(network())
    given: dict[Any, Any] = {**KEYS, 7: {0: torch.arange(3), "0": torch.arange(4)}}
    save(tmp_path / "run", *triple, extra=given)
    found = load(tmp_path / "run", *triple)
    assert list(found) == list(given)
    assert [type(key) for key in found] == [type(key) for key in given]
    assert torch.equal(found["a.b"], torch.zeros(2)) and torch.equal(found["a"]["b"], torch.ones(2))
    assert torch.equal(found["a.b#1"], torch.full((1,), 5.0))
    assert torch.equal(found[7][0], torch.arange(3)) and torch.equal(found[7]["0"], torch.arange(4))
    assert found[2.5] == (1, [2.0, None])


@pytest.mark.parametrize("key", [("a", 1), None, torch.float32, frozenset()])
def test_other_keys_are_refused_when_saving(key: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="would not come back as it is"):
        save(tmp_path / "run", *made(network()), extra={"held": {key: 1}})
    assert not (tmp_path / "run").exists()
