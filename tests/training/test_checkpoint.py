"""Checkpoints: a killed and resumed run is the run itself; nothing secret is in the file; other models are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from training_case import data, finish, made, network, train, values

from dpcompile import InvalidInput
from dpcompile.training import make_private
from dpcompile.training.checkpoint import load, save
from dpcompile.training.engine import Triple


def dropping() -> nn.Module:
    """A network that draws."""
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.4), nn.Linear(7, 3))


def with_adam(model: nn.Module) -> Triple:
    """A float32 run with Adam, several physical batches per step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    batches = DataLoader(TensorDataset(*data(torch.float32)), batch_size=12)
    return make_private(module=model, optimizer=optimizer, data_loader=batches, noise_multiplier=1.0, max_grad_norm=0.3, seed=3,
                        physical_batch_size=5)  # fmt: skip


@pytest.mark.parametrize("stop", [1, 5, 7])
def test_a_resumed_run_is_bit_identical(stop: int, tmp_path: Path) -> None:
    whole = dropping()
    torch.manual_seed(11)
    uninterrupted = with_adam(whole)
    finish(uninterrupted, 12)
    first = dropping()
    torch.manual_seed(11)
    triple = with_adam(first)
    finish(triple, stop)
    save(tmp_path / "run", *triple, extra={"epoch": 1, "losses": [0.5, 0.25]})
    again = dropping()
    torch.manual_seed(99)
    resumed = with_adam(again)
    assert load(tmp_path / "run", *resumed) == {"epoch": 1, "losses": [0.5, 0.25]}
    assert resumed[2].place == stop % 5
    finish(resumed, 12)
    assert torch.equal(values(whole), values(again))
    assert resumed[1].accountant.ledger.entries == uninterrupted[1].accountant.ledger.entries


def test_a_resumed_epoch_has_the_steps_that_were_left(tmp_path: Path) -> None:
    triple = made(network())
    finish(triple, 7)
    save(tmp_path / "run", *triple)
    resumed = made(network())
    load(tmp_path / "run", *resumed)
    assert sum(1 for _ in epoch(resumed)) == 3
    assert sum(1 for _ in epoch(resumed)) == 5


def epoch(triple: Triple) -> Iterator[None]:
    """One loop over the loader."""
    module, optimizer, batches = triple
    for inputs, targets in batches:
        nn.functional.cross_entropy(module(inputs), targets).backward()
        optimizer.step()
        yield


def test_a_private_run_leaves_nothing_that_repeats_its_noise(tmp_path: Path) -> None:
    triple = made(network(), seed=None)
    finish(triple, 2)
    save(tmp_path / "run", *triple)
    with safe_open(tmp_path / "run", "pt") as file:
        assert not [name for name in file.keys() if name.startswith("seeded")]  # noqa: SIM118
        assert str(triple[2].draws.key) not in file.metadata()["state"]
    resumed = made(network(), seed=None)
    load(tmp_path / "run", *resumed)
    assert resumed[1].get_epsilon(1e-3) == triple[1].get_epsilon(1e-3)
    finish(resumed, 3)
    finish(triple, 3)
    assert not torch.equal(values(resumed[0].model), values(triple[0].model))


def test_another_model_is_refused_and_nothing_changed(tmp_path: Path) -> None:
    triple = made(network())
    finish(triple, 2)
    save(tmp_path / "run", *triple)
    other = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    before = values(other).clone()
    with pytest.raises(InvalidInput, match=r"another model: 0.weight has shape \(7, 5\) there and \(8, 5\) here"):
        load(tmp_path / "run", *made(other))
    with pytest.raises(InvalidInput, match="only in the checkpoint"):
        load(tmp_path / "run", *made(nn.Sequential(nn.Linear(5, 7)).double()))
    assert torch.equal(values(other), before)


@pytest.mark.parametrize("seed", [None, 4])
def test_another_seed_is_refused(seed: int | None, tmp_path: Path) -> None:
    triple = made(network())
    save(tmp_path / "run", *triple)
    with pytest.raises(InvalidInput, match="another seed"):
        load(tmp_path / "run", *made(network(), seed=seed))


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    for name in ("text", "nothing"):
        with pytest.raises(InvalidInput, match="cannot be read as a checkpoint"):
            load(tmp_path / name, *made(network()))


def test_the_middle_of_a_step_is_no_place_for_a_checkpoint(tmp_path: Path) -> None:
    triple = made(network(), physical_batch_size=2)
    next(train(triple, 1))
    with pytest.raises(InvalidInput, match="middle of a logical step"):
        save(tmp_path / "run", *triple)


def test_extra_holds_plain_data_only(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="without pickle"):
        save(tmp_path / "run", *made(network()), extra=object())
    assert not (tmp_path / "run").exists()
