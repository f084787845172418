"""Private training by Lightning's Trainer: an ordinary LightningModule, one callback, and the callback's loader.

from dpcompile.training.lightning_callback import PrivateTraining
private = PrivateTraining(module, loader, noise_multiplier=1.0, max_grad_norm=1.0)    # module.model is what is trained
Trainer(callbacks=[private], max_epochs=3).fit(module, private.loader)
print(private.statement(1e-5))

During a training step `module.model` stands for the private drop-in, so that `training_step` runs unchanged: it calls
`self.model(...)` once on the whole batch and returns a mean (or sum) over examples. As with every loss outside of the compiled
step, that it is one is NOT verified. Values that training_step logs are computed without noise, and are not private. Move the
module to its GPU before, so that plan and noise are for it.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.utils.data import DataLoader

from dpcompile.ir.errors import InvalidInput
from dpcompile.training.engine import PrivacyEngine
from dpcompile.training.optimizer import check_optimizer
from dpcompile.training.resume import check_continues, continue_run, run_state

EXACT = ("32-true", "64-true")


class PrivateTraining(Callback):
    """Makes the training of one LightningModule private.

    module: computes its outputs by the submodule named `attribute`, which holds all that is trained. loader: the user's own.
    target_epsilon, target_delta and epochs, or noise_multiplier, and everything else: as for
    PrivacyEngine.make_private(_with_epsilon). Lightning's checkpoints hold the ledger.
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
        **options: Any,
    ) -> None:
        super().__init__()
        self.module, self.attribute = module, attribute
        self.ordinary = getattr(module, attribute, None)
        if not isinstance(self.ordinary, nn.Module):
            raise InvalidInput(
                f"the LightningModule has no submodule {attribute!r}; name the one that is trained with attribute="
            )
        if options.get("physical_batch_size") is not None or options.get("pad_batches"):
            raise InvalidInput(
                "Lightning ends an epoch after len(loader) batches, so that a step must be one batch: leave physical_batch_size= "
                "and pad_batches= out, and bound the memory of a large draw with memory_budget= or microbatch="
            )
        options.pop("pad_batches", None)
        options.pop("physical_batch_size", None)
        self.engine = PrivacyEngine(accountant=accountant, secure_mode=secure_mode, seed=seed)
        make = self.engine.make_private_with_epsilon if "target_epsilon" in options else self.engine.make_private
        # Lightning makes the optimizer when training starts, and it takes the place of this one.
        stand_in = torch.optim.SGD([p for p in self.ordinary.parameters() if p.requires_grad])
        self.most_steps: int | None = None
        self.drop_in, self.optimizer, self.loader = make(
            module=self.ordinary, optimizer=stand_in, data_loader=loader, pad_batches=False, **options
        )
        if "target_epsilon" in options:
            self.most_steps = options["epochs"] * len(self.loader)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what would not be private."""
        check_trainer(trainer, pl_module)
        if pl_module is not self.module:
            raise InvalidInput(
                "fit another LightningModule with another PrivateTraining; this one is of the module it was made with"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the optimizer that the module has configured behind the noise."""
        (given,) = trainer.optimizers  # Lightning refuses several where it optimizes by itself
        if given is not self.optimizer:
            check_optimizer(given, self.optimizer.private)
            self.optimizer.original_optimizer = given
            trainer.optimizers = [self.optimizer]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The private model takes the ordinary one's place."""
        if self.most_steps is not None and self.loader.session.completed >= self.most_steps:
            raise InvalidInput(
                f"target_epsilon was given for {self.most_steps} steps, and they are taken; give epochs= all epochs of the "
                "training, or noise_multiplier="
            )
        if trainer.optimizers != [self.optimizer]:
            raise InvalidInput(
                "another callback has replaced the private optimizer, and would update without noise; leave it out"
            )
        setattr(pl_module, self.attribute, self.drop_in)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The ordinary model is back, for validation and checkpoints."""
        setattr(pl_module, self.attribute, self.ordinary)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The ordinary model is back."""
        setattr(pl_module, self.attribute, self.ordinary)

    def get_epsilon(self, delta: float) -> float:
        """Epsilon of all steps so far."""
        return self.engine.get_epsilon(delta)

    def statement(self, delta: float) -> str:
        """What may be said of the trained model."""
        return self.engine.statement(delta)

    def state_dict(self) -> dict[str, Any]:
        """What was spent, for Lightning's checkpoints; the state of the noise for seeded runs only."""
        return {**run_state(self.optimizer, self.loader), "noise": self.optimizer.noise.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        if (state_dict["noise"] is None) != (self.optimizer.noise.state() is None):
            raise InvalidInput(
                "the checkpoint is of a run with a seed and this one has none, or the reverse; give the same seed="
            )
        check_continues(state_dict, self.optimizer, self.loader)
        continue_run(state_dict, self.optimizer, self.loader, state_dict["noise"] is not None)
        self.loader.resumed = 0  # Lightning counts the batches of an epoch itself
        if state_dict["noise"] is not None:
            self.optimizer.noise.set_state(state_dict["noise"])


def check_trainer(trainer: Trainer, module: LightningModule) -> None:
    """Refuse settings that change gradients or draws behind the accountant's back."""
    if trainer.gradient_clip_val:
        raise InvalidInput(
            "Trainer(gradient_clip_val=...) clips the gradient of the whole batch; every example is clipped to max_grad_norm= "
            "already. Leave gradient_clip_val out"
        )
    if trainer.accumulate_grad_batches != 1:
        raise InvalidInput(
            "Trainer(accumulate_grad_batches=...) would release several draws as one; raise the loader's batch_size, and give "
            "memory_budget= or microbatch= for memory"
        )
    if trainer.world_size > 1 or not isinstance(trainer.strategy, SingleDeviceStrategy):
        raise InvalidInput("private training runs in one process on one device so far; give Trainer(devices=1) and no strategy=")
    if trainer.precision not in EXACT:
        raise InvalidInput(
            f"precision={trainer.precision!r} is not one of {', '.join(EXACT)}, which private training supports so far"
        )
    if not module.automatic_optimization:
        raise InvalidInput("automatic_optimization=False is not supported; for a loop of your own use PrivacyEngine.make_private")
