"""Private training by the Trainer of transformers: its loop, schedulers, logs, evaluation and callbacks, our step.

from dpcompile.training.hf_trainer import PrivateTrainer       # instead of: from transformers import Trainer
trainer = PrivateTrainer(model, args, train_dataset=data, target_epsilon=3.0, target_delta=1e-5)
trainer.train()
print(trainer.statement(1e-5))

Every step of the Trainer is one Poisson draw, one compiled step on all of it, and one noisy release. `args.max_grad_norm` and
`args.seed` do not reach clipping, draws and noise. What is logged as `loss_not_private` (and what `train()` returns as
training_loss) is computed on the training data without noise; so is `trainer_state.json`, which repeats the logs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer

from dpcompile.ir.errors import InvalidInput
from dpcompile.losses import PerExampleLoss
from dpcompile.module import dpcompile
from dpcompile.training.arguments import check_budget, sampling_for
from dpcompile.training.calibrate import noise_multiplier_for
from dpcompile.training.engine import PrivacyEngine
from dpcompile.training.hf_arguments import check_arguments
from dpcompile.training.hf_losses import usual_loss
from dpcompile.training.loader import PrivateLoader, check_loader
from dpcompile.training.module import PrivateLoss
from dpcompile.training.optimizer import PrivateOptimizer
from dpcompile.training.release import whole
from dpcompile.training.resume import check_continues, continue_run, run_state
from dpcompile.training.sampling import Draws

LEDGER = "privacy.json"
RENAMED = {"loss": "loss_not_private", "train_loss": "train_loss_not_private"}


class PrivateTrainer(Trainer):
    """transformers' Trainer with private steps.

    noise_multiplier, or target_epsilon and target_delta: how much noise; a target holds for the training that `args` describes
    when it begins, and more steps than that are refused. max_per_example_norm: the clip norm of every example. loss:
    `loss(model, **inputs) -> f[B]`; by default the one in `hf_losses` for the kind of model, else what the model itself returns
    as its loss, one value per example. expected_batch_size: the public divisor, args.train_batch_size by default. seed: for
    tests. compile_options: for dpcompile (memory_budget, microbatch, strategy, ...), which bound what a large draw needs.
    Raises InvalidInput for arguments that would not be private, or have no effect.
    """

    def __init__(
        self,
        *args: Any,
        noise_multiplier: float | None = None,
        target_epsilon: float | None = None,
        target_delta: float | None = None,
        max_per_example_norm: float = 1.0,
        loss: PerExampleLoss | None = None,
        expected_batch_size: int | None = None,
        clipping: str = "flat",
        accountant: Any = "pld",
        secure_mode: bool = False,
        seed: int | None = None,
        compile_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        check_budget(noise_multiplier, target_epsilon, target_delta, accountant)
        super().__init__(*args, **kwargs)
        check_arguments(self)
        expected = self.args.train_batch_size if expected_batch_size is None else expected_batch_size
        self.expected_batch_size = whole(expected, "expected_batch_size")
        self.noise_multiplier, self.target_epsilon, self.target_delta = noise_multiplier, target_epsilon, target_delta
        self.most_steps: int | None = None
        net: Any = self.model
        self.engine = PrivacyEngine(accountant=accountant, secure_mode=secure_mode, seed=seed)
        self.private = dpcompile(
            net, usual_loss(net) if loss is None else loss, max_grad_norm=max_per_example_norm, clipping=clipping,
            **(compile_options or {}),
        )  # fmt: skip
        self.args.ignore_data_skip = True  # a resumed run goes on with its next draw; there are no batches to skip

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The private loader, made with the private optimizer at the first call; it is not given to accelerate."""
        if self.engine.made is None:
            self.make_private()
        return self.private_loader

    def make_private(self) -> None:
        """Step, optimizer and loader of this training."""
        loader = self.plain_loader()
        if self.noise_multiplier is None:
            self.noise_multiplier = self.noise_for_target(loader)
        _, self.optimizer, _ = self.engine.make_private(
            module=self.private, optimizer=self.create_optimizer(), data_loader=loader, noise_multiplier=self.noise_multiplier,
            expected_batch_size=self.expected_batch_size, pad_batches=False,
        )  # fmt: skip

    @property
    def step_module(self) -> PrivateLoss:
        """The compiled step."""
        module: PrivateLoss = self.engine.triple()[0]
        return module

    @property
    def private_optimizer(self) -> PrivateOptimizer:
        """The optimizer behind accelerate's wrapper."""
        return self.engine.triple()[1]

    @property
    def private_loader(self) -> PrivateLoader:
        """The loader that draws."""
        return self.engine.triple()[2]

    def plain_loader(self) -> DataLoader[Any]:
        """The Trainer's loader as the user's arguments describe it, without accelerate's wrapper."""
        like = super().get_train_dataloader()
        options = self.args.dataloader_num_workers, self.args.dataloader_prefetch_factor, self.args.dataloader_persistent_workers
        loader: DataLoader[Any] = DataLoader(
            like.dataset, batch_size=self.expected_batch_size, sampler=self._get_train_sampler(like.dataset),
            collate_fn=like.collate_fn, pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            num_workers=options[0], prefetch_factor=options[1], persistent_workers=options[2],
            multiprocessing_context=self.args.dataloader_multiprocessing_context, worker_init_fn=like.worker_init_fn,
        )  # fmt: skip
        check_loader(loader, poisson_sampling=True)
        return loader

    def noise_for_target(self, loader: DataLoader[Any]) -> float:
        """The least noise that keeps all steps of the training within the target; further steps are refused."""
        assert self.target_epsilon is not None and self.target_delta is not None, "check_budget comes first"
        sampling = sampling_for(loader, self.expected_batch_size, None, None, True)
        epoch = len(Draws(1, sampling, self.expected_batch_size, 0))
        epochs = self.args.num_train_epochs
        self.most_steps = self.args.max_steps if self.args.max_steps > 0 else math.ceil(epochs * epoch)
        kind = self.engine.accountant.kind
        return noise_multiplier_for(self.target_epsilon, self.target_delta, sampling, self.most_steps, kind)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Clipped sums of one draw, which the optimizer will release; returns the mean loss of its examples, NOT private."""
        self.check_step()
        model.train()
        inputs = self._prepare_inputs(inputs)
        losses: Tensor = self.step_module(**inputs).losses[: self.private_loader.counted]
        return losses.sum() / max(1, len(losses))

    def check_step(self) -> None:
        """Refuse steps beyond the target, and an optimizer that would update without noise."""
        if self.most_steps is not None and self.private_loader.session.completed >= self.most_steps:
            raise InvalidInput(
                f"target_epsilon was given for {self.most_steps} steps, and they are taken. For a longer training make a new "
                "trainer with the epochs or max_steps that are wanted, or give noise_multiplier="
            )
        if getattr(self.optimizer, "optimizer", self.optimizer) is not self.private_optimizer:
            raise InvalidInput(
                "trainer.optimizer is not the private one, and would update without noise; give optimizers= to "
                "PrivateTrainer, which takes another one only before train()"
            )

    def _clip_grad_norm(self, model: nn.Module) -> None:
        """Nothing: every example is clipped already, and what is in p.grad here has no noise yet."""

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> None:
        """Nothing is logged: the norm of a sum without noise is not private."""

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer's log, which says of losses on training data that they are not private."""
        super().log({RENAMED.get(name, name): value for name, value in logs.items()}, *args, **kwargs)

    def get_epsilon(self, delta: float) -> float:
        """Epsilon of all steps so far."""
        return self.engine.get_epsilon(delta)

    def statement(self, delta: float) -> str:
        """What may be said of the trained model."""
        return self.engine.statement(delta)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Optimizer and scheduler as the Trainer saves them, and the ledger beside them."""
        super()._save_optimizer_and_scheduler(output_dir)
        noise = self.private_optimizer.noise.state()
        state = {
            **run_state(self.private_optimizer, self.private_loader),
            "noise": None if noise is None else noise.tolist(),
        }
        (Path(output_dir) / LEDGER).write_text(json.dumps(state), encoding="utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Continue from such a checkpoint; refuse one that does not say what was spent."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.load_ledger(Path(checkpoint) / LEDGER)

    def load_ledger(self, path: Path) -> None:
        """Take over what was spent, and go on with the next draw."""
        if not path.exists():
            raise InvalidInput(
                f"the checkpoint has no {LEDGER}, so that what its training has spent is unknown: it was saved by another "
                "trainer, or with save_only_model=True. To start anew from its weights, load them into the model"
            )
        state, optimizer, loader = json.loads(path.read_text(encoding="utf-8")), self.private_optimizer, self.private_loader
        if (state["noise"] is None) != (optimizer.noise.state() is None):
            raise InvalidInput(
                "the checkpoint is of a run with a seed and this one has none, or the reverse; give the same seed="
            )
        check_continues(state, optimizer, loader)
        continue_run(state, optimizer, loader, state["noise"] is not None)
        if state["noise"] is not None:
            optimizer.noise.set_state(torch.tensor(state["noise"], dtype=torch.uint8))
