"""Epsilon against accountants of another library, within the errors that they state; the ledger; calibration."""

from __future__ import annotations

import json
import math
from unittest import mock

import pytest
from opacus.accountants import PRVAccountant, RDPAccountant
from training_case import finish, made, network

from dpcompile import InvalidInput
from dpcompile.training import Accountant, noise_multiplier_for
from dpcompile.training.accountant import Ledger, epsilon_of
from dpcompile.training.calibrate import composed
from dpcompile.training.release import Pass, Poisson, Release, TruncatedPoisson

RUNS = ((0.01, 1.1, 500, 1e-5), (0.1, 2.0, 60, 1e-4), (0.2, 0.8, 10, 1e-3))
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::RuntimeWarning"
)


def spent(kind: str, rate: float, noise: float, steps: int, delta: float) -> float:
    """Epsilon of Poisson-sampled steps."""
    return epsilon_of(composed(Poisson(rate), noise, steps), delta, kind)


@pytest.mark.parametrize(("rate", "noise", "steps", "delta"), RUNS)
def test_privacy_loss_distributions_agree_with_opacus_prv(rate: float, noise: float, steps: int, delta: float) -> None:
    other = PRVAccountant()
    other.history = [(noise, rate, steps)]
    # Opacus' errors: eps_error 0.01 in epsilon and delta_error delta / 1000, its upper end.
    assert abs(spent("pld", rate, noise, steps, delta) - other.get_epsilon(delta)) < 0.02 + 0.002


@pytest.mark.parametrize(("rate", "noise", "steps", "delta"), RUNS)
def test_renyi_accounting_agrees_with_opacus_and_is_an_upper_bound(rate: float, noise: float, steps: int, delta: float) -> None:
    other = RDPAccountant()
    other.history = [(noise, rate, steps)]
    ours = spent("rdp", rate, noise, steps, delta)
    assert math.isclose(ours, other.get_epsilon(delta), rel_tol=0.01)
    assert ours > spent("pld", rate, noise, steps, delta)


def test_what_is_accounted_is_what_was_drawn() -> None:
    triple = made(network(), noise_multiplier=1.3)
    with mock.patch.object(triple[2].draws, "examples", wraps=triple[2].draws.examples) as examples:
        finish(triple, 5)
    drawn = [call.args[0] for call in examples.call_args_list]
    other = RDPAccountant()
    for _ in drawn:
        other.step(noise_multiplier=1.3, sample_rate=12 / 60)
    ours = Accountant("rdp")
    ours.ledger = triple[1].accountant.ledger
    assert drawn == list(range(5))
    assert math.isclose(ours.get_epsilon(1e-3), other.get_epsilon(1e-3), rel_tol=0.01)


def test_an_accountant_of_opacus_can_be_plugged_in() -> None:
    other = RDPAccountant()
    accountant = Accountant("pld", other)
    for _ in range(3):
        accountant.add(Release(Poisson(0.1), 1.5))
    assert other.history == [(1.5, 0.1, 3)]
    assert accountant.get_epsilon(1e-3) == other.get_epsilon(1e-3)
    with pytest.raises(InvalidInput, match="accounts Poisson sampling only"):
        accountant.add(Release(Pass(0), 1.5))


def test_truncation_costs_the_more_the_more_often_it_happens() -> None:
    plain = spent("pld", 0.1, 1.5, 20, 1e-3)
    rare, often = (epsilon_of(composed(TruncatedPoisson(0.1, 200, limit), 1.5, 20), 1e-3, "pld") for limit in (60, 24))
    assert plain <= rare + 1e-6
    assert math.isclose(plain, rare, rel_tol=0.01)
    assert often > 1.5 * rare


def test_equal_steps_are_counted_and_different_ones_composed() -> None:
    ledger = Ledger()
    for noise in (1.0, 1.0, 2.0, 1.0):
        ledger.add(Release(Poisson(0.1), noise))
    assert [count for _, count in ledger.entries] == [2, 1, 1]
    assert len(ledger) == 4
    together = spent("rdp", 0.1, 1.0, 3, 1e-3)
    assert epsilon_of(ledger.event(), 1e-3, "rdp") > together


def test_a_pass_counts_once_with_its_least_noise() -> None:
    ledger = Ledger()
    for noise in (1.0, 0.7, 2.0):
        ledger.add(Release(Pass(0), noise))
    ledger.add(Release(Pass(1), 3.0))
    assert ledger.entries == [(Release(Pass(0), 0.7), 1), (Release(Pass(1), 3.0), 1)]


def test_a_ledger_survives_json() -> None:
    ledger, again = Ledger(), Ledger()
    for release in (Release(Poisson(0.1), 1.0), Release(TruncatedPoisson(0.1, 50, 9), 1.0), Release(Pass(2), 0.5)):
        ledger.add(release)
    again.load_json(json.loads(json.dumps(ledger.to_json())))
    assert again.entries == ledger.entries


def test_before_the_first_step_nothing_is_spent() -> None:
    assert Accountant().get_epsilon(1e-5) == 0.0
    assert "0 steps" in Accountant().statement(1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, float("nan"), "small", True])
def test_deltas_outside_of_the_unit_interval_are_refused(delta: float) -> None:
    with pytest.raises(InvalidInput, match="delta must be between"):
        Accountant().get_epsilon(delta)


def test_an_unknown_accountant_is_refused() -> None:
    with pytest.raises(InvalidInput, match="under-estimate"):
        Accountant("gdp")


@pytest.mark.parametrize("kind", ["pld", "rdp"])
@pytest.mark.parametrize("sampling", [Poisson(0.05), Pass(0)], ids=str)
def test_calibrated_noise_is_enough_and_no_more(kind: str, sampling: Poisson | Pass) -> None:
    noise = noise_multiplier_for(2.0, 1e-4, sampling, 40, kind)
    assert epsilon_of(composed(sampling, noise, 40), 1e-4, kind) <= 2.0
    assert epsilon_of(composed(sampling, noise - 0.001, 40), 1e-4, kind) > 2.0
