"""A small LightningModule and its private training for the tests."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from training_case import loader, network

from dpcompile.training.lightning_callback import PrivateTraining

QUIET = (
    "ignore:The '(train|val)_dataloader' does not have many workers",
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
    "ignore:.*LeafSpec",
)
"""Warnings of Lightning that say nothing here."""
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Classifier(LightningModule):
    """An ordinary module, which knows nothing of privacy."""

    def __init__(self) -> None:
        super().__init__()
        self.model = network()
        self.beside = nn.Linear(2, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, targets = batch
        loss = F.cross_entropy(self.model(inputs), targets)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        inputs, targets = batch
        self.log("accuracy", (self.model(inputs).argmax(1) == targets).double().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)]


def private_training(module: LightningModule, **options: Any) -> PrivateTraining:
    """The callback with the usual noise."""
    usual: dict[str, Any] = (
        {"accountant": "rdp"} if "target_epsilon" in options else {"noise_multiplier": 1.0, "accountant": "rdp"}
    )
    return PrivateTraining(module, loader(), **{"max_grad_norm": 0.3, "seed": 3, **usual, **options})


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    """A quiet trainer on the CPU."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
    usual = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "precision": "64-true", "default_root_dir": folder}
    return Trainer(callbacks=list(callbacks), **{**quiet, **usual, **options})


def fit(module: Classifier, folder: Path, given: dict[str, Any] | None = None, **options: Any) -> PrivateTraining:
    """Train; 5 steps an epoch."""
    private = private_training(module, **(given or {}))
    trainer(folder, private, **options).fit(module, private.loader)
    return private
