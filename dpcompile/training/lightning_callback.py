"""Private training by Lightning's Trainer: an ordinary LightningModule, one callback, and the callback's loader.

from dpcompile.training.lightning_callback import PrivateTraining
private = PrivateTraining(module, loader, noise_multiplier=1.0, max_grad_norm=1.0)    # module.model is what is trained
Trainer(callbacks=[private], max_epochs=3).fit(module, private.loader)
print(private.statement(1e-5))

During a training step `module.model` stands for the private drop-in, so that `training_step` runs unchanged: it calls
`self.model(...)` once on the whole batch and returns a mean (or sum) over examples. As with every loss outside of the compiled
step, that it is one is NOT verified. Values that training_step logs are computed without noise, and are not private. Move the
module to its GPU before, so that plan and noise are for it. The loader hands out batches only while this callback takes part in
the fit, for without it they would be trained on without clipping, noise and accounting.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from dpcompile.ir.errors import InvalidInput
from dpcompile.recall import version_of
from dpcompile.training.arguments import check_budget
from dpcompile.training.engine import PrivacyEngine
from dpcompile.training.lightning_arguments import check_module, check_options, check_trainer
from dpcompile.training.optimizer import check_optimizer
from dpcompile.training.resume import check_run_with_noise, go_on_with_noise, is_counted, run_with_noise


class PrivateTraining(Callback):
    """Makes the training of one LightningModule private.

    module: computes its outputs by the submodule named `attribute`, which holds all that is trained. loader: the user's own.
    target_epsilon, target_delta and epochs, or noise_multiplier, and everything else: as for
    PrivacyEngine.make_private(_with_epsilon). public_metric: whether what a ReduceLROnPlateau follows is computed from public
    data alone, which is why it need not be counted. Lightning's checkpoints hold the ledger; a resumed run goes on with the
    checkpoint's noise multiplier and clip norm. Raises InvalidInput for what would not be private.
    """

    def __init__(
        self,
        module: LightningModule,
        loader: DataLoader[Any],
        *,
        attribute: str = "model",
        accountant: Any = "pld",
        secure_mode: bool = False,
        seed: int | None = None,
        public_metric: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.ordinary: nn.Module = check_module(module, attribute)
        check_budget(options.get("noise_multiplier"), options.get("target_epsilon"), options.get("target_delta"), accountant)
        options = check_options(options)
        self.module, self.attribute, self.public_metric = module, attribute, public_metric
        self.engine = PrivacyEngine(accountant=accountant, secure_mode=secure_mode, seed=seed)
        make = self.engine.make_private_with_epsilon if "target_epsilon" in options else self.engine.make_private
        # Lightning makes the optimizer when training starts, and it takes the place of this one.
        stand_in = torch.optim.SGD([p for p in self.ordinary.parameters() if p.requires_grad])
        self.drop_in, self.optimizer, self.loader = make(
            module=self.ordinary, optimizer=stand_in, data_loader=loader, pad_batches=False, **options
        )
        self.loader.guard = self.check_taking_part
        self.trainer: Any = None  # the one in whose fit this callback is
        self.refused: str | None = None  # why a checkpoint was, whose weights are in the module
        self.stage: str | None = None
        self.is_loaded, self.weights = False, weights_of(module)

    @property
    def state_key(self) -> str:
        """The name of the ledger in checkpoints: one for all subclasses, since without it the steps would be forgotten."""
        return "dpcompile.PrivateTraining"

    def check_taking_part(self) -> None:
        """Refuse batches to any loop that this callback has no part in."""
        if self.trainer is None or not self.trainer.training or not any(self is one for one in self.trainer.callbacks):
            raise InvalidInput(
                "this loader is of a PrivateTraining that is not among the callbacks of a trainer in training, so that its "
                "batches would be trained on without clipping, noise and accounting. Give Trainer(callbacks=[private]). Finders "
                "of learning rates and batch sizes take all callbacks away; try such values in fits of their own. Validate, and "
                "look at the data, with a loader of yours"
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before Lightning loads a checkpoint."""
        self.stage, self.is_loaded, self.weights = stage, False, weights_of(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what would not be private."""
        self.check_weights()
        if trainer.ckpt_path is not None and not self.is_loaded:
            self.refused = UNKNOWN
            raise InvalidInput(UNKNOWN)
        check_trainer(trainer, pl_module)
        if pl_module is not self.module:
            raise InvalidInput(
                "fit another LightningModule with another PrivateTraining; this one is of the module it was made with"
            )
        self.trainer = trainer

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the optimizer that the module has configured behind the noise."""
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs if config.reduce_on_plateau]
        schedulers += [c.scheduler for c in trainer.lr_scheduler_configs if isinstance(c.scheduler, ReduceLROnPlateau)]
        if schedulers and not self.public_metric:
            raise InvalidInput(
                f"{type(schedulers[0]).__name__} chooses learning rates by a metric: computed from training data, it is a "
                "release without noise that no epsilon covers. Use a scheduler that only counts steps; or say "
                "public_metric=True if the metric is computed from public data alone"
            )
        (given,) = trainer.optimizers  # Lightning refuses several where it optimizes by itself
        if given is not self.optimizer:
            check_optimizer(given, self.optimizer.private, f"configure_optimizers shall give self.{self.attribute}.parameters()")
            self.optimizer.original_optimizer = given
            trainer.optimizers = [self.optimizer]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The private model takes the ordinary one's place."""
        target = self.engine.target
        if target is not None and self.loader.session.completed >= target.steps:
            raise InvalidInput(
                f"target_epsilon was given for {target.steps} steps, and they are taken; give epochs= all epochs of the "
                "training, or noise_multiplier="
            )
        if trainer.optimizers != [self.optimizer]:
            raise InvalidInput(
                "another callback has replaced the private optimizer, and would update without noise; leave it out"
            )
        setattr(pl_module, self.attribute, self.drop_in)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The ordinary model is back, for validation and checkpoints."""
        self.put_back()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same where the module has ended the epoch before the batch."""
        self.put_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The ordinary model is back; weights of a checkpoint whose ledger was not reached are remembered."""
        if weights_of(pl_module) != self.weights:
            self.note_loaded_weights(trainer)
        self.put_back()
        self.trainer = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The ordinary model is back, and the loader hands out nothing more."""
        self.note_loaded_weights(trainer)
        self.put_back()
        self.trainer = None

    def put_back(self) -> None:
        """The ordinary model is the module's."""
        setattr(self.module, self.attribute, self.ordinary)

    def note_loaded_weights(self, trainer: Trainer) -> None:
        """Remember that the weights are of a checkpoint that the ledger knows nothing of."""
        if trainer.ckpt_path is not None and not self.is_loaded and self.refused is None:
            self.refused = UNKNOWN

    def check_weights(self) -> None:
        """Refuse to speak of weights, or go on from them, that a refused checkpoint has left in the module."""
        if self.refused is not None:
            raise InvalidInput(
                f"Lightning has loaded the weights of a checkpoint that was refused ({self.refused}), and what they have spent "
                "is not in this ledger; make a new module and a new PrivateTraining"
            )

    def get_epsilon(self, delta: float) -> float:
        """Epsilon of all steps so far."""
        return self.engine.get_epsilon(delta)

    def statement(self, delta: float) -> str:
        """What may be said of the trained model."""
        self.check_weights()
        return self.engine.statement(delta)

    def state_dict(self) -> dict[str, Any]:
        """What was spent, for Lightning's checkpoints; the state of the noise for seeded runs only."""
        return run_with_noise(self.optimizer, self.loader)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; for validation and tests, only see whether the weights are of this run."""
        if self.stage not in (None, "fit"):
            self.is_loaded = is_counted(state_dict, self.loader)
            return
        try:
            check_run_with_noise(state_dict, self.optimizer, self.loader, self.engine.target)
        except InvalidInput as error:
            self.refused = str(error)
            raise
        go_on_with_noise(state_dict, self.optimizer, self.loader)
        self.loader.resumed = 0  # Lightning counts the batches of an epoch itself
        self.is_loaded = True


UNKNOWN = (
    "the checkpoint has no ledger of this training, so that what its steps have spent is unknown: it is of a fit without "
    "PrivateTraining, of another run, or of weights alone"
)


def weights_of(module: nn.Module) -> list[tuple[int, int]]:
    """What changes when a checkpoint is loaded: which parameters there are, and how often each was written."""
    return [(id(parameter), version_of(parameter)) for parameter in module.parameters()]
