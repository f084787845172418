"""How a run goes on from a checkpoint: what it has spent, which draw is next, and that no draw or noise is used again.

A seeded run goes on with its own draws. Any other gets a new key, so that no draw is repeated; a pass over all examples that was
begun is then begun anew under another name, and counted once more.
"""

from __future__ import annotations

from typing import Any

from dpcompile.ir.errors import InvalidInput
from dpcompile.training.loader import PrivateLoader
from dpcompile.training.noise import GeneratorNoise
from dpcompile.training.optimizer import PrivateOptimizer


def run_state(optimizer: PrivateOptimizer, loader: PrivateLoader) -> dict[str, Any]:
    """Plain data: the ledger, the place in the run, and what the draws are made from."""
    return {
        "ledger": optimizer.accountant.ledger.to_json(),
        "completed": optimizer.session.completed,
        "place": loader.place,
        "run": loader.draws.run,
        "drawn_from": [loader.draws.count, loader.draws.expected],
    }


def check_continues(state: dict[str, Any], optimizer: PrivateOptimizer, loader: PrivateLoader) -> None:
    """Refuse a state that this run cannot go on from without spending more than it counts."""
    if state["drawn_from"] != [loader.draws.count, loader.draws.expected]:
        raise InvalidInput(
            f"the checkpoint is of a run with {tuple(state['drawn_from'])} (examples, expected_batch_size), and this one has "
            f"{(loader.draws.count, loader.draws.expected)}; its steps would be counted wrongly"
        )
    if sum(count for _, count in state["ledger"]) < len(optimizer.accountant.ledger):
        raise InvalidInput(
            "this run has spent more than the checkpoint knows of; going back would forget it. Make a new engine, load "
            "there, and add up what both have spent"
        )
    if isinstance(optimizer.noise, GeneratorNoise) and optimizer.noise.is_given:
        raise InvalidInput(
            "noise_generator= was given, and its state is in no checkpoint: the noise of the run's beginning would be drawn "
            "again. Leave it out, or use seed="
        )


def continue_run(state: dict[str, Any], optimizer: PrivateOptimizer, loader: PrivateLoader, is_seeded: bool) -> None:
    """Take over what was spent, and go on with the next draw."""
    optimizer.accountant.restore(state["ledger"])
    optimizer.session.clear()
    optimizer.session.completed, loader.resumed = state["completed"], state["place"]
    loader.epoch_begin = state["completed"] - state["place"]
    if is_seeded:
        loader.draws.run = state["run"]
    else:
        loader.draws.renew()
