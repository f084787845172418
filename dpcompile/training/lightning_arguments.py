"""What private training refuses of a LightningModule, of PrivateTraining's arguments and of Lightning's Trainer."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

from dpcompile.ir.errors import InvalidInput

EXACT = ("32-true", "64-true")
SILENT = ("physical_batch_size", "noise_multiplier", "target_epsilon", "target_delta", "epochs")
"""Options that say nothing when they are None."""


def check_module(module: Any, attribute: str) -> nn.Module:
    """The submodule that is trained."""
    if not isinstance(module, LightningModule):
        raise InvalidInput(
            f"module must be a LightningModule, got {type(module).__name__}; of a torch.compile(module) give the module itself, "
            'and backend="inductor" for the compiled step'
        )
    ordinary = getattr(module, attribute, None)
    if not isinstance(ordinary, nn.Module):
        raise InvalidInput(f"the LightningModule has no submodule {attribute!r}; name the one that is trained with attribute=")
    return ordinary


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options for the engine: without those that say nothing; refuse those that Lightning's loop does not allow."""
    if options.get("physical_batch_size") is not None or options.get("pad_batches"):
        raise InvalidInput(
            "Lightning ends an epoch after len(loader) batches, so that a step must be one batch: leave physical_batch_size= "
            "and pad_batches= out, and bound the memory of a large draw with memory_budget= or microbatch="
        )
    kept = {name: value for name, value in options.items() if not (name in SILENT and value is None) and name != "pad_batches"}
    if "target_epsilon" in kept and "epochs" not in kept:
        raise InvalidInput("epochs= is missing: a target_epsilon needs the number of epochs of the whole training")
    if "target_epsilon" not in kept:
        for name in ("target_delta", "epochs"):
            if name in kept:
                raise InvalidInput(f"{name}= belongs to target_epsilon=; leave it out beside noise_multiplier=")
    return kept


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
    if getattr(module, "_compiler_ctx", None) is not None:
        raise InvalidInput(
            "torch.compile(module) would trace into the private step, which is compiled already; make the module anew, fit it "
            'without torch.compile, and give PrivateTraining backend="inductor"'
        )
