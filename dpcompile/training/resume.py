"""How a run goes on from a checkpoint: what it has spent, which draw is next, and that no draw or noise is used again.

A seeded run goes on with its own draws. Any other gets a new key, so that no draw is repeated; a pass over all examples that was
begun is then begun anew under another name, and counted once more. Noise multiplier and clip norm are the checkpoint's, whatever
the run was made with; they may be changed behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from dpcompile.criteria.state import is_own, restore, state_of
from dpcompile.ir.errors import InvalidInput
from dpcompile.training.accountant import rounded_up
from dpcompile.training.loader import PrivateLoader
from dpcompile.training.noise import GeneratorNoise
from dpcompile.training.optimizer import PrivateOptimizer
from dpcompile.training.release import Pass, Release

NAMES = {"ledger", "completed", "place", "run", "earlier", "drawn_from", "made_with", "noise_multiplier", "max_grad_norm"}


@dataclass(frozen=True)
class Target:
    """What a whole training may spend: at most `epsilon` at `delta`, in `steps` logical steps."""

    epsilon: float
    delta: float
    steps: int


def run_state(optimizer: PrivateOptimizer, loader: PrivateLoader) -> dict[str, Any]:
    """Plain data: the ledger, the place in the run, what the draws are made from, and noise and clip norm of what comes."""
    return {
        "ledger": optimizer.accountant.ledger.to_json(),
        "completed": optimizer.session.completed,
        "place": loader.place,
        "run": loader.draws.run,
        "earlier": loader.draws.earlier,
        "drawn_from": [loader.draws.count, loader.draws.expected],
        "made_with": optimizer.made_with,
        "noise_multiplier": optimizer.noise_multiplier,
        "max_grad_norm": optimizer.max_grad_norm,
    }


def run_with_noise(optimizer: PrivateOptimizer, loader: PrivateLoader) -> dict[str, Any]:
    """The same, the noise's state (u8 tensor), which only a seeded run has, and which parts of the parameters are trained: for
    checkpoints of other trainers."""
    return {**run_state(optimizer, loader), "noise": optimizer.noise.state(), "selection": selection_state(optimizer)}


def selection_state(optimizer: PrivateOptimizer) -> dict[str, Any] | None:
    """Which parts of the parameters are trained, where passes choose them."""
    chooser = optimizer.private.chooser
    return None if chooser is None else state_of(chooser)


def check_selection(state: Any, optimizer: PrivateOptimizer) -> None:
    """Refuse a state of a run with other passes."""
    chooser = optimizer.private.chooser
    if (state is None) != (chooser is None) or (chooser is not None and not is_own(chooser, state)):
        raise InvalidInput(
            "the checkpoint is of a run with other passes= (pruning, dropping); compile the module with the same ones"
        )


def go_on_selecting(state: Any, optimizer: PrivateOptimizer) -> None:
    """Train the parts that the checkpoint's run was training."""
    if optimizer.private.chooser is not None:
        restore(optimizer.private.chooser, state)


def check_run_with_noise(state: Any, optimizer: PrivateOptimizer, loader: PrivateLoader, target: Target | None) -> None:
    """Refuse a state that `run_with_noise` did not write, or that this run cannot go on from."""
    if not isinstance(state, dict) or not state.keys() >= {*NAMES, "noise", "selection"}:
        raise InvalidInput(
            "the checkpoint's record of what was spent is incomplete: it is damaged, or of another version; use another one"
        )
    if (state["noise"] is None) != (optimizer.noise.state() is None):
        raise InvalidInput("the checkpoint is of a run with a seed and this one has none, or the reverse; give the same seed=")
    check_selection(state["selection"], optimizer)
    check_continues(state, optimizer, loader)
    check_target_kept(state, optimizer, loader, target, state["noise"] is not None)


def go_on_with_noise(state: dict[str, Any], optimizer: PrivateOptimizer, loader: PrivateLoader) -> None:
    """Take over what `run_with_noise` wrote."""
    continue_run(state, optimizer, loader, state["noise"] is not None)
    go_on_selecting(state["selection"], optimizer)
    if state["noise"] is not None:
        optimizer.noise.set_state(state["noise"])


def check_continues(state: dict[str, Any], optimizer: PrivateOptimizer, loader: PrivateLoader) -> None:
    """Refuse a state that this run cannot go on from without spending more than it counts."""
    if state["drawn_from"] != [loader.draws.count, loader.draws.expected]:
        raise InvalidInput(
            f"the checkpoint is of a run with {tuple(state['drawn_from'])} (examples, expected_batch_size), and this one has "
            f"{(loader.draws.count, loader.draws.expected)}; its steps would be counted wrongly"
        )
    known, accountant = sum(count for _, count in state["ledger"]), optimizer.accountant
    if known < len(accountant.ledger) or (accountant.released and state["completed"] < optimizer.session.completed):
        raise InvalidInput(
            "this run has spent more than the checkpoint knows of; going back would forget it. Make a new engine (trainer, "
            "callback), load there, and add up what both have spent"
        )
    if accountant.released and state["run"] != loader.draws.run:
        raise InvalidInput(
            "this run has released steps itself, and the checkpoint is of another run, whose ledger would take the place of "
            "theirs. Make a new engine (trainer, callback), load there, and add up what both have spent"
        )
    if isinstance(optimizer.noise, GeneratorNoise) and optimizer.noise.is_given:
        raise InvalidInput(
            "noise_generator= was given, and its state is in no checkpoint: the noise of the run's beginning would be drawn "
            "again. Leave it out, or use seed="
        )


def check_target_kept(
    state: dict[str, Any], optimizer: PrivateOptimizer, loader: PrivateLoader, target: Target | None, is_seeded: bool
) -> None:
    """Refuse to go on where the checkpoint's steps and those that are left of the training spend more than the target, or
    than the noise that was asked for would."""
    if target is None:
        check_noise_kept(state, optimizer)
        return
    coming = releases_to_come(state, loader, target, is_seeded)
    spent = optimizer.accountant.epsilon_with(state["ledger"], coming, target.delta)
    if spent > target.epsilon:
        raise InvalidInput(
            f"the checkpoint's steps had less noise than target_epsilon={target.epsilon:g} needs: with the {target.steps} steps "
            f"of the whole training, the rest at the checkpoint's noise multiplier {state['noise_multiplier']:g}, epsilon is "
            f"{rounded_up(spent):g}. Give noise_multiplier={state['made_with']!r}, a target_epsilon of at least "
            f"{rounded_up(spent):g}, or a shorter training"
        )


def check_noise_kept(state: dict[str, Any], optimizer: PrivateOptimizer) -> None:
    """Refuse to go on with less noise than this run was made with; what schedulers have changed since is the run's own."""
    if optimizer.made_with > state["made_with"] * (1 + 1e-9):
        raise InvalidInput(
            f"the checkpoint's run was made with noise_multiplier={state['made_with']:g}, and goes on with less noise than the "
            f"{optimizer.made_with:g} that is asked for here. Give noise_multiplier={state['made_with']!r}; for more noise from "
            "here on, set the private optimizer's noise_multiplier once the checkpoint is loaded"
        )


def releases_to_come(state: dict[str, Any], loader: PrivateLoader, target: Target, is_seeded: bool) -> Iterator[Release]:
    """What the ledger will hold behind the checkpoint's steps."""
    for number in range(state["completed"], target.steps):
        sampling = loader.draws.sampling_of(number)
        if isinstance(sampling, Pass):  # without a seed the draws get a new name, which no run has
            sampling = replace(sampling, run=state["run"] if is_seeded else "")
        yield Release(sampling, state["noise_multiplier"])


def continue_run(state: dict[str, Any], optimizer: PrivateOptimizer, loader: PrivateLoader, is_seeded: bool) -> None:
    """Take over what was spent, and go on with the next draw."""
    optimizer.accountant.restore(state["ledger"])
    optimizer.session.clear()
    optimizer.session.completed, loader.resumed = state["completed"], state["place"]
    loader.epoch_begin = state["completed"] - state["place"]
    optimizer.noise_multiplier, optimizer.made_with = state["noise_multiplier"], state["made_with"]
    optimizer.max_grad_norm = state["max_grad_norm"]
    loader.draws.earlier = dict(state["earlier"])
    if is_seeded:
        loader.draws.run = state["run"]
    else:
        loader.draws.earlier[state["run"]] = state["completed"]
        loader.draws.renew()


def is_counted(state: dict[str, Any], loader: PrivateLoader) -> bool:
    """Whether the ledger of this run holds all that the weights of this state have spent."""
    known = {**loader.draws.earlier, loader.draws.run: loader.session.completed}
    return bool(state["completed"] <= known.get(state["run"], -1))
