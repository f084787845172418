"""Private training by the Trainer of transformers: its loop, schedulers, logs, evaluation and callbacks, our step.

from dpcompile.training.hf_trainer import PrivateTrainer       # instead of: from transformers import Trainer
trainer = PrivateTrainer(model, args, train_dataset=data, target_epsilon=3.0, target_delta=1e-5)
trainer.train()
print(trainer.statement(1e-5))

Every step of the Trainer is one Poisson draw, one compiled step on all of it, and one noisy release. `args.max_grad_norm` and
`args.seed` do not reach clipping, draws and noise. What is logged as `loss_not_private` (and what `train()` returns as
training_loss) is computed on the training data without noise; so is `trainer_state.json`, which repeats the logs. What only
counts what was drawn (total_flos) is left out. A resumed run goes on with the checkpoint's noise multiplier and clip norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from dpcompile.ir.errors import InvalidInput
from dpcompile.losses import PerExampleLoss
from dpcompile.module import PrivateModule, dpcompile
from dpcompile.training.arguments import check_budget, sampling_for
from dpcompile.training.calibrate import noise_multiplier_for
from dpcompile.training.engine import PrivacyEngine, Triple
from dpcompile.training.hf_arguments import check_arguments
from dpcompile.training.hf_losses import usual_loss
from dpcompile.training.hf_records import read_ledger, renamed, write_ledger
from dpcompile.training.loader import PrivateLoader, check_loader
from dpcompile.training.module import PrivateLoss
from dpcompile.training.optimizer import PrivateOptimizer
from dpcompile.training.release import whole
from dpcompile.training.resume import Target, check_run_with_noise, go_on_with_noise, run_with_noise
from dpcompile.training.sampling import Draws

LEDGER = "privacy.json"


class EpochOfSteps(TrainerCallback):
    """The epoch by steps: a resumed run's loader yields the rest of an epoch, which the Trainer would take for its beginning."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Behind every step, before logs and checkpoints."""
        state.epoch = state.global_step / len(kwargs["train_dataloader"])


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
        given: Any = self.args
        if given.max_grad_norm is None:
            given.max_grad_norm = 0.0  # the same, and a number, which the Trainer compares
        expected = self.args.train_batch_size if expected_batch_size is None else expected_batch_size
        self.expected_batch_size = whole(expected, "expected_batch_size")
        self.noise_multiplier, self.target_epsilon, self.target_delta = noise_multiplier, target_epsilon, target_delta
        self.taken_over: str | None = None  # the checkpoint that is being loaded, once its ledger is ours
        net: Any = self.model
        usual = usual_loss(net) if loss is None else None
        self.is_loss_usual = usual is not None
        self.engine = PrivacyEngine(accountant=accountant, secure_mode=secure_mode, seed=seed)
        self.private = dpcompile(
            net, usual if loss is None else loss, max_grad_norm=max_per_example_norm, clipping=clipping,
            **(compile_options or {}),
        )  # fmt: skip
        check_all_optimized(self.private, net)
        self.args.ignore_data_skip = True  # a resumed run goes on with its next draw; there are no batches to skip
        self.callback_handler.callbacks.insert(0, EpochOfSteps())

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; refuses what was changed since, and names in its metrics what is not private."""
        check_arguments(self)
        self.check_unchanged()
        result: Any = super().train(*args, **kwargs)
        return result._replace(metrics=renamed(result.metrics))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The private loader, made with the private optimizer at the first call; it is not given to accelerate."""
        return self.private_loader

    def triple(self) -> Triple:
        """Step, optimizer and loader, made when they are first asked for."""
        if self.engine.made is None:
            self.make_private()
        return self.engine.triple()

    def make_private(self) -> None:
        """Step, optimizer and loader of this training."""
        loader, target = self.plain_loader(), None
        if self.noise_multiplier is None:
            target, self.noise_multiplier = self.noise_for_target(loader)
        _, self.optimizer, _ = self.engine.make_private(
            module=self.private, optimizer=self.create_optimizer(), data_loader=loader, noise_multiplier=self.noise_multiplier,
            expected_batch_size=self.expected_batch_size, pad_batches=False,
        )  # fmt: skip
        self.engine.target, self.drawn_from = target, self.train_dataset

    def check_unchanged(self) -> None:
        """Refuse a model or a data set that would be ignored."""
        if self.model is not self.private.model:
            raise InvalidInput("trainer.model was replaced, but the steps are those of the first; make a new PrivateTrainer")
        if self.engine.made is not None and self.train_dataset is not self.drawn_from:
            raise InvalidInput(
                "trainer.train_dataset was replaced, but draws and accounting are of the first; make a new PrivateTrainer"
            )

    @property
    def step_module(self) -> PrivateLoss:
        """The compiled step."""
        module: PrivateLoss = self.triple()[0]
        return module

    @property
    def private_optimizer(self) -> PrivateOptimizer:
        """The optimizer behind accelerate's wrapper."""
        return self.triple()[1]

    @property
    def private_loader(self) -> PrivateLoader:
        """The loader that draws."""
        return self.triple()[2]

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

    def noise_for_target(self, loader: DataLoader[Any]) -> tuple[Target, float]:
        """The target, and the least noise that keeps all steps of the training within it; further steps are refused."""
        assert self.target_epsilon is not None and self.target_delta is not None, "check_budget comes first"
        sampling = sampling_for(loader, self.expected_batch_size, None, None, True)
        epoch = len(Draws(1, sampling, self.expected_batch_size, 0))
        epochs = self.args.num_train_epochs
        target = Target(
            self.target_epsilon, self.target_delta, self.args.max_steps if self.args.max_steps > 0 else math.ceil(epochs * epoch)
        )
        kind = self.engine.accountant.kind
        return target, noise_multiplier_for(target.epsilon, target.delta, sampling, target.steps, kind)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Clipped sums of one draw, which the optimizer will release; returns the mean loss of its examples, NOT private."""
        self.check_step()
        model.train()
        optimizer: Any = self.optimizer
        if callable(getattr(optimizer, "train", None)):  # an optimizer without a schedule keeps two sets of weights
            optimizer.train()
        inputs = self._prepare_inputs(inputs)
        if self.is_loss_usual and "labels" not in inputs:
            raise InvalidInput(
                f"the batches have no labels, but {', '.join(inputs)}: let the data set or the data_collator give labels "
                "(DataCollatorForLanguageModeling does), or give loss=, a function loss(model, **inputs) -> f[B]"
            )
        losses: Tensor = self.step_module(**inputs).losses[: self.private_loader.counted]
        return losses.sum() / max(1, len(losses))

    def check_step(self) -> None:
        """Refuse steps beyond the target, and a loader or an optimizer without privacy."""
        if self.engine.made is None:
            raise InvalidInput("get_train_dataloader is overridden and does not give the private loader; leave it out")
        target = self.engine.target
        if target is not None and self.private_loader.session.completed >= target.steps:
            raise InvalidInput(
                f"target_epsilon was given for {target.steps} steps, and they are taken. For a longer training make a new "
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
        super().log(renamed(logs), *args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nothing is counted: it would say how many examples were drawn."""
        return 0

    def get_epsilon(self, delta: float) -> float:
        """Epsilon of all steps so far."""
        return self.engine.get_epsilon(delta)

    def statement(self, delta: float) -> str:
        """What may be said of the trained model."""
        return self.engine.statement(delta)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Optimizer and scheduler as the Trainer saves them, and the ledger beside them."""
        super()._save_optimizer_and_scheduler(output_dir)
        write_ledger(Path(output_dir) / LEDGER, run_with_noise(self.private_optimizer, self.private_loader))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Weights of a checkpoint, once its ledger was found to be one to go on from, and is ours."""
        self.take_over(resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The rest of it."""
        if checkpoint is not None and self.taken_over != checkpoint:
            self.take_over(checkpoint)
        super()._load_optimizer_and_scheduler(checkpoint)
        self.taken_over = None

    def take_over(self, checkpoint: str) -> None:
        """Count what the checkpoint has spent, and go on with the next draw; where that is wrong, refuse with nothing changed."""
        state = read_ledger(Path(checkpoint) / LEDGER)
        optimizer, loader = self.private_optimizer, self.private_loader
        check_run_with_noise(state, optimizer, loader, self.engine.target)
        go_on_with_noise(state, optimizer, loader)
        self.taken_over = checkpoint


def check_all_optimized(private: PrivateModule, model: nn.Module) -> None:
    """Refuse parameters of the loss, which no optimizer of the Trainer has, and no checkpoint."""
    known = {id(parameter) for parameter in model.parameters()}
    names = [name for name, parameter in private.trainable() if id(parameter) not in known]
    if names:
        raise InvalidInput(
            f"loss= has parameters ({', '.join(names)}), which the Trainer neither optimizes nor saves; make them part of the "
            "model, or fix them with requires_grad_(False)"
        )
