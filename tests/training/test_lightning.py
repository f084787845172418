"""Lightning's Trainer with private steps: the engine's plain loop exactly; checkpoints and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_case import QUIET, Classifier, fit, private_training, trainer
from training_case import finish, loader, made, network, values

from dpcompile import InvalidInput

pytestmark = pytest.mark.filterwarnings(*QUIET)


class WithStranger(Classifier):
    """The optimizer has a parameter outside of the private part."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class ByHand(Classifier):
    """A loop of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def test_a_training_is_the_plain_loop_of_the_engine_exactly(tmp_path: Path) -> None:
    module, looped = Classifier(), network()
    private = private_training(module)
    used = trainer(tmp_path, private, max_epochs=3)
    used.fit(module, private.loader, loader())
    triple = made(looped)
    finish(triple, 15)
    triple[1].accountant.kind = "rdp"
    assert torch.equal(values(module.model), values(looped))
    assert private.engine.accountant.ledger.entries == triple[1].accountant.ledger.entries
    assert private.get_epsilon(1e-2) == triple[1].get_epsilon(1e-2) > 0
    assert "15 steps of Poisson sampling" in private.statement(1e-2)
    assert len(private.drop_in.inner.steps.by_key) == 1, "traced more than once"
    assert float(used.callback_metrics["accuracy"]) > 0
    assert module.model is private.ordinary


def test_a_target_is_kept_and_not_exceeded(tmp_path: Path) -> None:
    given = {"target_epsilon": 4.0, "target_delta": 1e-2, "epochs": 2}
    module = Classifier()
    with pytest.raises(InvalidInput, match="given for 10 steps, and they are taken"):
        fit(module, tmp_path, given, max_epochs=3)
    private = private_training(Classifier(), **given)
    trainer(tmp_path, private).fit(private.module, private.loader)
    assert 3.9 < private.get_epsilon(1e-2) <= 4.0


def test_a_resumed_training_goes_on_with_its_ledger(tmp_path: Path) -> None:
    whole, first, again = Classifier(), Classifier(), Classifier()
    fit(whole, tmp_path, max_epochs=3)
    private = private_training(first)
    used = trainer(tmp_path, private, max_epochs=1)
    used.fit(first, private.loader)
    used.save_checkpoint(tmp_path / "run.ckpt")
    resumed = private_training(again)
    trainer(tmp_path, resumed, max_epochs=3).fit(again, resumed.loader, ckpt_path=tmp_path / "run.ckpt")
    assert len(resumed.engine.accountant.ledger) == 15
    assert torch.equal(values(whole.model), values(again.model))


def test_a_run_without_a_seed_saves_no_noise_and_is_no_seeded_run() -> None:
    state = private_training(Classifier(), seed=None).state_dict()
    assert state["noise"] is None
    with pytest.raises(InvalidInput, match="give the same seed="):
        private_training(Classifier()).load_state_dict(state)


def test_batches_of_another_loader_are_refused_and_the_model_put_back(tmp_path: Path) -> None:
    module = Classifier()
    private = private_training(module)
    with pytest.raises(InvalidInput, match="does not come from the private loader"):
        trainer(tmp_path, private).fit(module, loader())
    assert module.model is private.ordinary


REFUSED: dict[str, tuple[type[Classifier], dict[str, Any], str]] = {
    "clipping": (Classifier, {"gradient_clip_val": 1.0}, "clips the gradient of the whole batch"),
    "accumulation": (Classifier, {"accumulate_grad_batches": 2}, "release several draws as one"),
    "half": (Classifier, {"precision": "bf16-mixed"}, "bf16-mixed"),
    "by hand": (ByHand, {}, "automatic_optimization=False"),
    "stranger": (WithStranger, {}, r"shall give self\.model\.parameters\(\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_not_be_private_is_refused(case: str, tmp_path: Path) -> None:
    kind, options, message = REFUSED[case]
    with pytest.raises(InvalidInput, match=message):
        fit(kind(), tmp_path, **options)


def test_other_modules_and_attributes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no submodule 'network'"):
        private_training(Classifier(), attribute="network")
    private = private_training(Classifier())
    with pytest.raises(InvalidInput, match="fit another LightningModule"):
        trainer(tmp_path, private).fit(Classifier(), private.loader)
