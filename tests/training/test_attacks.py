"""What would release more than the ledger counts, or count an example more than once, is refused or counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from opacus.accountants import RDPAccountant
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from training_case import EXAMPLES, data, finish, loader, made, network, train, values

from dpcompile import InvalidInput, dpcompile
from dpcompile.training import BatchMemoryManager, PrivacyEngine
from dpcompile.training.checkpoint import load, save


class Complex(nn.Module):
    """A complex table added to a real loss."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(5, width, dtype=torch.cdouble))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(x.to(torch.cdouble) @ self.w).flatten(1).sum(1)


@pytest.mark.parametrize("secure", [False, True])
def test_both_parts_of_a_complex_parameter_get_the_whole_noise(secure: bool) -> None:
    model = Complex(2000)
    private = dpcompile(model, loss=lambda m, x, y: m(x), max_grad_norm=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine = PrivacyEngine(secure_mode=secure, seed=None if secure else 3)
    module, noisy, batches = engine.make_private(
        module=private, optimizer=optimizer, data_loader=loader(), noise_multiplier=2.0, sample_rate=1e-9
    )
    module(*next(iter(batches)))
    noisy.step()
    for part in (model.w.real, model.w.imag):
        assert stats.kstest((part.detach().flatten() * 12 / 0.6).numpy(), "norm").pvalue > 1e-4


def test_runs_of_one_engine_are_counted_one_by_one() -> None:
    engine = PrivacyEngine(seed=1)
    spent = []
    for _ in range(2):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        triple = engine.make_private(
            module=model, optimizer=optimizer, data_loader=loader(), noise_multiplier=1.0, poisson_sampling=False
        )
        finish(triple, 5)
        spent.append(engine.get_epsilon(1e-3))
    assert len(engine.accountant.ledger) == 2
    assert spent[1] > 1.2 * spent[0]


@pytest.mark.parametrize(("seed", "passes"), [(None, 2), (5, 1)])
def test_a_pass_that_is_begun_anew_is_counted_anew(seed: int | None, passes: int, tmp_path: Path) -> None:
    triple = made(network(), seed=seed, poisson_sampling=False)
    finish(triple, 2)
    save(tmp_path / "run", *triple)
    again = made(network(), seed=seed, poisson_sampling=False)
    load(tmp_path / "run", *again)
    finish(again, 3)
    assert len(again[1].accountant.ledger) == passes


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    triple = made(network(), poisson_sampling=False)
    finish(triple, 2)
    save(tmp_path / "run", *triple)
    with pytest.raises(InvalidInput, match=r"\(60, 12\).*\(60, 6\)"):
        load(tmp_path / "run", *made(network(), poisson_sampling=False, data_loader=loader(6)))


def test_another_librarys_accountant_hears_of_what_was_spent_before(tmp_path: Path) -> None:
    def private() -> Any:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        engine = PrivacyEngine(accountant=RDPAccountant(), seed=3)
        return engine.make_private(module=model, optimizer=optimizer, data_loader=loader(), noise_multiplier=1.0)

    first, second = private(), private()
    finish(first, 4)
    save(tmp_path / "run", *first)
    load(tmp_path / "run", *second)
    assert second[1].get_epsilon(1e-3) == first[1].get_epsilon(1e-3) > 0


def test_going_back_in_the_same_run_is_refused(tmp_path: Path) -> None:
    triple = made(network(), seed=None)
    save(tmp_path / "run", *triple)
    finish(triple, 2)
    with pytest.raises(InvalidInput, match="spent more than the checkpoint knows"):
        load(tmp_path / "run", *triple)


def test_a_given_generator_never_repeats_its_noise(tmp_path: Path) -> None:
    triple = made(network(), seed=None, noise_generator=torch.Generator().manual_seed(7))
    save(tmp_path / "run", *triple)
    with pytest.raises(InvalidInput, match="drawn again"):
        load(tmp_path / "run", *triple)


def by_size(rows: list[Any]) -> Any:
    """A collate function that sorts, as packed sequences want it."""
    rows = sorted(rows, key=lambda row: float(row[0].sum()))
    return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])


def test_rows_that_fill_a_batch_up_are_put_behind_what_collate_returns() -> None:
    ends = []
    for options in ({}, {"pad_batches": True, "physical_batch_size": 40}):
        model = network()
        rows = DataLoader(TensorDataset(*data()), batch_size=12, collate_fn=by_size)
        finish(made(model, data_loader=rows, **options), 4)
        ends.append(values(model))
    assert (ends[0] - ends[1]).abs().max() < 1e-12


def test_a_batch_that_was_fetched_ahead_is_refused() -> None:
    module, _, batches = made(network(), pad_batches=True, physical_batch_size=40)
    fetched = iter(batches)
    inputs, targets = next(fetched)
    next(fetched)
    with pytest.raises(InvalidInput, match="skipped, or fetched before"):
        nn.functional.cross_entropy(module(inputs), targets).backward()


def test_an_iteration_ends_where_another_one_begins() -> None:
    _, _, batches = made(network())
    first = iter(batches)
    next(first)
    next(iter(batches))
    with pytest.raises(InvalidInput, match="another iteration"):
        next(first)


def test_a_draw_is_never_released_twice_after_an_error() -> None:
    module, optimizer, batches = made(network())
    numbers: list[int] = []

    def fail(*_: Any) -> None:
        numbers.append(optimizer.session.completed)
        raise KeyboardInterrupt

    optimizer.observers.append(fail)
    for _ in range(3):
        inputs, targets = next(iter(batches))
        nn.functional.cross_entropy(module(inputs), targets).backward()
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    assert numbers == [1, 2, 3]
    assert len(optimizer.accountant.ledger) == 3


def test_sums_of_physical_batches_are_held_once() -> None:
    triple = made(network(), physical_batch_size=2)
    for _ in train(triple, 1):
        assert all(step.grads == {} for step in triple[1].session.steps)


def test_samplings_that_an_accountant_does_not_know_are_refused_at_once() -> None:
    model = network()
    given: dict[str, Any] = {"module": model, "data_loader": loader(), "noise_multiplier": 1.0}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with pytest.raises(InvalidInput, match='accountant="pld" only'):
        PrivacyEngine(accountant="rdp").make_private(optimizer=optimizer, truncated_batch_size=EXAMPLES, **given)
    with pytest.raises(InvalidInput, match="accounts Poisson sampling only"):
        PrivacyEngine(accountant=RDPAccountant()).make_private(optimizer=optimizer, poisson_sampling=False, **given)


def test_a_group_that_is_refused_is_not_added() -> None:
    _, optimizer, _ = made(network())
    with pytest.raises(InvalidInput, match="does not have"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_sizes_that_are_none_are_refused(size: Any) -> None:
    with (
        pytest.raises(InvalidInput, match="whole number"),
        BatchMemoryManager(data_loader=made(network())[2], max_physical_batch_size=size),
    ):
        pass


def test_epsilon_is_never_rounded_down() -> None:
    triple = made(network())
    finish(triple, 3)
    said = float(triple[1].accountant.statement(1e-3).split(",")[0].removeprefix("("))
    assert said >= triple[1].get_epsilon(1e-3)
