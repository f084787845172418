"""What Lightning would do without the private callback, or behind its back, is refused; what it loads is accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateFinder
from lightning_case import QUIET, Classifier, private_training, trainer
from torch import nn
from training_case import loader, values

from dpcompile import InvalidInput
from dpcompile.training import AdaptiveQuantile
from dpcompile.training.lightning_callback import PrivateTraining

pytestmark = pytest.mark.filterwarnings(*QUIET, "ignore:`weights_only` was not set", "ignore:Be aware that when using")
NOT_TAKING_PART = "not among the callbacks of a trainer in training"


def test_without_the_callback_the_loader_hands_out_nothing(tmp_path: Path) -> None:
    module = Classifier()
    private, before = private_training(module), values(module).clone()
    for used in (trainer(tmp_path), trainer(tmp_path, private_training(Classifier()))):
        with pytest.raises(InvalidInput):
            used.fit(module, private.loader)
    with pytest.raises(InvalidInput, match=NOT_TAKING_PART):
        trainer(tmp_path).fit(module, private.loader)
    with pytest.raises(InvalidInput, match=NOT_TAKING_PART):
        next(iter(private.loader))
    assert torch.equal(values(module), before)


class Thief(Callback):
    """Takes the private callback away in the middle of an epoch."""

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        trainer.callbacks = [self]


def test_a_callback_that_is_taken_away_ends_the_training(tmp_path: Path) -> None:
    module = Classifier()
    private = private_training(module)
    with pytest.raises(InvalidInput, match=NOT_TAKING_PART):
        trainer(tmp_path, private, Thief()).fit(module, private.loader)
    assert len(private.engine.accountant.ledger) == 1


@pytest.mark.parametrize("is_first", [True, False])
def test_a_search_for_the_learning_rate_takes_no_step_without_noise(is_first: bool, tmp_path: Path) -> None:
    module = Classifier()
    module.lr = 0.1  # type: ignore[assignment]  # what the finder sets
    private, before = private_training(module), values(module).clone()
    finder = LearningRateFinder(num_training_steps=3)
    callbacks = (finder, private) if is_first else (private, finder)
    with pytest.raises(InvalidInput, match=NOT_TAKING_PART):
        trainer(tmp_path, *callbacks).fit(module, private.loader)
    assert torch.equal(values(module), before)
    trainer(tmp_path, private).fit(module, private.loader)
    assert len(private.engine.accountant.ledger) == 10


def saved(folder: Path, used: Any, module: Any, batches: Any, weights_only: bool = False) -> Path:
    """The checkpoint behind a fit."""
    used.fit(module, batches)
    used.save_checkpoint(folder / "run.ckpt", weights_only=weights_only)
    return folder / "run.ckpt"


def without_privacy(folder: Path) -> Path:
    """Of a fit without the callback."""
    return saved(folder, trainer(folder, max_epochs=1), Classifier(), loader())


def weights_alone(folder: Path) -> Path:
    """Of a private fit, but only its weights."""
    private = private_training(Classifier())
    return saved(folder, trainer(folder, private, max_epochs=1), private.module, private.loader, weights_only=True)


@pytest.mark.parametrize("make", [without_privacy, weights_alone])
def test_a_checkpoint_without_a_ledger_is_refused_and_stays_refused(make: Any, tmp_path: Path) -> None:
    path = make(tmp_path)
    private = private_training(Classifier())
    with pytest.raises(InvalidInput, match="has no ledger of this training"):
        trainer(tmp_path, private, max_epochs=3).fit(private.module, private.loader, ckpt_path=path)
    with pytest.raises(InvalidInput, match="make a new module and a new PrivateTraining"):
        trainer(tmp_path, private).fit(private.module, private.loader)
    with pytest.raises(InvalidInput, match="make a new module and a new PrivateTraining"):
        private.statement(1e-2)


class Mine(PrivateTraining):
    """A subclass, whose checkpoints the callback itself continues."""


def test_a_subclass_saves_under_the_same_name(tmp_path: Path) -> None:
    mine = Mine(Classifier(), loader(), noise_multiplier=1.0, accountant="rdp")
    path = saved(tmp_path, trainer(tmp_path, mine, max_epochs=1), mine.module, mine.loader)
    private = private_training(Classifier(), seed=None)
    trainer(tmp_path, private).fit(private.module, private.loader, ckpt_path=path)
    assert len(private.engine.accountant.ledger) == 10


def test_weights_of_a_refused_checkpoint_are_not_trained_on(tmp_path: Path) -> None:
    first = private_training(Classifier())
    path = saved(tmp_path, trainer(tmp_path, first, max_epochs=1), first.module, first.loader)
    private = private_training(Classifier(), seed=None)
    with pytest.raises(InvalidInput, match="give the same seed="):
        trainer(tmp_path, private).fit(private.module, private.loader, ckpt_path=path)
    assert torch.equal(values(private.ordinary), values(first.ordinary)), "Lightning loads before it asks"
    with pytest.raises(InvalidInput, match=r"give the same seed=.*make a new module"):
        trainer(tmp_path, private).fit(private.module, private.loader)


class Larger(Classifier):
    """One more layer, so that a checkpoint fits in part."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(2, 2)


def test_weights_that_were_loaded_in_part_are_not_trained_on(tmp_path: Path) -> None:
    path = without_privacy(tmp_path)
    private = private_training(Larger())
    with pytest.raises(RuntimeError, match="Missing key"):
        trainer(tmp_path, private).fit(private.module, private.loader, ckpt_path=path)
    with pytest.raises(InvalidInput, match="make a new module"):
        trainer(tmp_path, private).fit(private.module, private.loader)


def test_a_path_that_does_not_exist_is_no_loaded_checkpoint(tmp_path: Path) -> None:
    private = private_training(Classifier())
    with pytest.raises(FileNotFoundError):
        trainer(tmp_path, private).fit(private.module, private.loader, ckpt_path=tmp_path / "nothing.ckpt")
    trainer(tmp_path, private).fit(private.module, private.loader)
    assert len(private.engine.accountant.ledger) == 10


def test_validation_from_ones_own_checkpoint_changes_nothing_and_from_a_foreign_one_is_remembered(tmp_path: Path) -> None:
    foreign = without_privacy(tmp_path).rename(tmp_path / "foreign.ckpt")
    private = private_training(Classifier())
    used = trainer(tmp_path, private, max_epochs=1)
    own = saved(tmp_path, used, private.module, private.loader)
    trainer(tmp_path, private).fit(private.module, private.loader)
    used.validate(private.module, loader(), ckpt_path=own, verbose=False)
    assert "15 steps" in private.statement(1e-2)
    used.validate(private.module, loader(), ckpt_path=foreign, verbose=False)
    with pytest.raises(InvalidInput, match="make a new module"):
        private.statement(1e-2)


@pytest.mark.parametrize("seed", [None, 3])
def test_validation_from_a_checkpoint_that_was_gone_on_from_is_accounted_for(seed: int | None, tmp_path: Path) -> None:
    first = private_training(Classifier(), seed=seed)
    path = saved(tmp_path, trainer(tmp_path, first, max_epochs=1), first.module, first.loader)
    private = private_training(Classifier(), seed=seed)
    used = trainer(tmp_path, private)
    used.fit(private.module, private.loader, ckpt_path=path)
    used.validate(private.module, loader(), ckpt_path=path, verbose=False)
    assert "10 steps" in private.statement(1e-2)
    trainer(tmp_path, first).fit(first.module, first.loader)  # steps that the resumed run knows nothing of
    later = trainer(tmp_path, first, max_epochs=1)
    later.strategy.connect(first.module)
    later.save_checkpoint(tmp_path / "later.ckpt")
    used.validate(private.module, loader(), ckpt_path=tmp_path / "later.ckpt", verbose=False)
    with pytest.raises(InvalidInput, match="make a new module"):
        private.statement(1e-2)


def test_a_run_of_its_own_steps_takes_no_other_ledger(tmp_path: Path) -> None:
    longer = private_training(Classifier())
    path = saved(tmp_path, trainer(tmp_path, longer), longer.module, longer.loader)
    private = private_training(Classifier())
    trainer(tmp_path, private, max_epochs=1).fit(private.module, private.loader)
    with pytest.raises(InvalidInput, match="has released steps itself"):
        trainer(tmp_path, private, max_epochs=3).fit(private.module, private.loader, ckpt_path=path)


def test_a_resumed_run_keeps_its_target(tmp_path: Path) -> None:
    given = {"target_epsilon": 4.0, "target_delta": 1e-2}
    first = private_training(Classifier(), **given, epochs=2)
    path = saved(tmp_path, trainer(tmp_path, first), first.module, first.loader)
    again = private_training(Classifier(), **given, epochs=4)
    with pytest.raises(InvalidInput, match="less noise than target_epsilon=4 needs"):
        trainer(tmp_path, again, max_epochs=4).fit(again.module, again.loader, ckpt_path=path)


def test_a_resumed_run_keeps_a_clip_norm_that_has_moved(tmp_path: Path) -> None:
    moving = {"clipping": AdaptiveQuantile(), "max_grad_norm": 5.0}
    whole, first, again = (private_training(Classifier(), **moving) for _ in range(3))
    trainer(tmp_path, whole, max_epochs=3).fit(whole.module, whole.loader)
    path = saved(tmp_path, trainer(tmp_path, first, max_epochs=1), first.module, first.loader)
    trainer(tmp_path, again, max_epochs=3).fit(again.module, again.loader, ckpt_path=path)
    assert again.optimizer.max_grad_norm == whole.optimizer.max_grad_norm != 5.0
    assert torch.equal(values(again.ordinary), values(whole.ordinary))


class OnPlateau(Classifier):
    """Its learning rate follows the loss of training."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "loss"}}


def test_a_learning_rate_that_follows_a_loss_is_refused_unless_it_is_public(tmp_path: Path) -> None:
    private = private_training(OnPlateau())
    with pytest.raises(InvalidInput, match="ReduceLROnPlateau chooses learning rates by a metric"):
        trainer(tmp_path, private).fit(private.module, private.loader)
    public = private_training(OnPlateau(), public_metric=True)
    trainer(tmp_path, public).fit(public.module, public.loader)
    assert "learning rates that follow a loss" in public.statement(1e-2)


class Curious(Classifier):
    """Looks into its model wherever hooks may."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        layers: Any = self.model
        assert len(layers) == len(list(layers)) == 3
        assert bool(layers)
        return super().training_step(batch, batch_idx)

    def on_after_backward(self) -> None:
        self.size = self.get_submodule("model")[0].weight.numel()  # type: ignore[index]


def test_hooks_look_into_the_model_as_ever(tmp_path: Path) -> None:
    module = Curious()
    private = private_training(module)
    trainer(tmp_path, private, max_steps=1).fit(module, private.loader)
    assert module.size == 35


class Skipping(Classifier):
    """Ends every epoch at its third batch."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
        return -1 if batch_idx == 2 else None


def test_the_model_is_put_back_where_an_epoch_ends_before_its_batch(tmp_path: Path) -> None:
    private = private_training(Skipping())
    trainer(tmp_path, private).fit(private.module, private.loader)
    assert private.module.model is private.ordinary
    assert len(private.engine.accountant.ledger) == 4


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"noise_multiplier": None}, "give noise_multiplier=, or target_epsilon="),
    "both": ({"noise_multiplier": 1.0, "target_epsilon": 1.0, "target_delta": 1e-3}, "and not both"),
    "no delta": ({"target_epsilon": 1.0, "epochs": 2}, "target_delta= is missing"),
    "no epochs": ({"target_epsilon": 1.0, "target_delta": 1e-3}, "epochs= is missing"),
    "epochs alone": ({"noise_multiplier": 1.0, "epochs": 2}, "epochs= belongs to target_epsilon="),
}


@pytest.mark.parametrize("case", WRONG)
def test_half_a_budget_is_refused(case: str) -> None:
    options, message = WRONG[case]
    with pytest.raises(InvalidInput, match=message):
        PrivateTraining(Classifier(), loader(), **options)


def test_compiled_and_ordinary_modules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="must be a LightningModule, got Sequential"):
        PrivateTraining(Classifier().model, loader(), noise_multiplier=1.0)  # type: ignore[arg-type]
    private = private_training(Classifier())
    compiled: Any = torch.compile(private.module, backend="eager")
    with pytest.raises(InvalidInput, match=r"torch\.compile\(module\)"):
        trainer(tmp_path, private).fit(compiled, private.loader)
