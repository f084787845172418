"""Arguments of transformers' Trainer that private training refuses, each with the reason and what to do instead."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from torch.utils.data import Subset
from transformers import Trainer

from dpcompile.ir.errors import InvalidInput

Check = Callable[[Any], bool]
USUAL_NORM = (None, 0, 1.0)
"""Values of args.max_grad_norm that nobody has to have chosen: 1.0 is the default."""
WHOLE_CHECKPOINTS = ("checkpoint", "all_checkpoints")
BY_METRIC = ("reduce_lr_on_plateau", "greedy", "ReduceLROnPlateau", "GreedyLR")
"""Schedulers that look at a metric: what arguments call them, and their classes."""

REFUSED: tuple[tuple[Check, str], ...] = (
    (lambda t: t.args.gradient_accumulation_steps > 1,
     "gradient_accumulation_steps is above 1: several draws would be released as one. Give per_device_train_batch_size the whole "
     'batch, and compile_options={"memory_budget": "4 GB"} or {"microbatch": 16} so that it fits'),
    (lambda t: t.args.world_size > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1,
     "several processes: private training runs in one process so far; start one"),
    (lambda t: t.args.n_gpu > 1,
     "several GPUs in one process: private training takes one so far; set CUDA_VISIBLE_DEVICES to one of them"),
    (lambda t: t.is_deepspeed_enabled or t.is_fsdp_enabled,
     "deepspeed or fsdp: private training holds the model in one process so far; leave them out"),
    (lambda t: t.accelerator.mixed_precision != "no",
     "fp16 or bf16: accelerate casts inside of the model's forward, which the compiled step does not repeat. Load the model in "
     "bfloat16 instead (dtype=torch.bfloat16), or leave it in float32"),
    (lambda t: t.args.torch_compile, 'torch_compile: the step is compiled already; give compile_options={"backend": "inductor"}'),
    (lambda t: t.args.auto_find_batch_size,
     "auto_find_batch_size changes how examples are drawn in the middle of accounting; give "
     'compile_options={"memory_budget": "4 GB"}, and the step will fit'),
    (lambda t: t.args.max_grad_norm not in USUAL_NORM,
     "args.max_grad_norm clips the gradient of the whole batch, which private training does not do; every example is clipped to "
     "max_per_example_norm=, an argument of PrivateTrainer. Leave max_grad_norm out"),
    (lambda t: t.compute_loss_func is not None,
     "compute_loss_func sees the whole batch and divides by its number of items, so that one example changes the losses of the "
     "others; give loss=, a function loss(model, **inputs) -> f[B]"),
    (lambda t: type(t).compute_loss is not Trainer.compute_loss,
     "compute_loss is overridden, but private steps do not call it; give loss=, a function loss(model, **inputs) -> f[B]"),
    (lambda t: t.label_smoother is not None,
     "label_smoothing_factor averages over all tokens of the batch; give loss=, a smoothing loss(model, **inputs) -> f[B]"),
    (lambda t: t.model_init is not None,
     "model_init makes a new model for every train(), and each would have to be accounted for; give model="),
    (lambda t: getattr(t.args, "include_num_input_tokens_seen", "no") not in ("no", False),
     "include_num_input_tokens_seen logs how many tokens were drawn, which says who was drawn and has no noise; leave it out"),
    (lambda t: t.args.push_to_hub and str(getattr(t.args.hub_strategy, "value", t.args.hub_strategy)) in WHOLE_CHECKPOINTS,
     "hub_strategy publishes whole checkpoints, whose trainer_state.json repeats losses without noise; "
     'give hub_strategy="every_save" or "end"'),
    (lambda t: follows_a_metric(t) and evaluates_on_training_data(t),
     "the scheduler chooses learning rates by a metric, and eval_dataset is (or has) the training data: a release without "
     "noise that no epsilon covers. Evaluate on other data, or use a scheduler that only counts steps"),
)  # fmt: skip


def follows_a_metric(trainer: Any) -> bool:
    """Whether the learning rate depends on an evaluation."""
    kind = trainer.args.lr_scheduler_type
    classes = [one.__name__ for one in type(trainer.lr_scheduler).__mro__]
    return any(name in BY_METRIC for name in (str(getattr(kind, "value", kind)), *classes))


def evaluates_on_training_data(trainer: Any) -> bool:
    """Whether one of the data sets for evaluation is the training's, a part of it, or what it is a part of."""
    given = trainer.eval_dataset
    sets = given.values() if isinstance(given, dict) else given if isinstance(given, (list, tuple)) else [given]
    train = trainer.train_dataset
    return train is not None and any(
        one is whole or train is part for one in sets if one is not None for whole in wholes(train) for part in wholes(one)
    )


def wholes(dataset: Any) -> list[Any]:
    """The data set, and what it is a subset of."""
    found = [dataset]
    while isinstance(found[-1], Subset):
        found.append(found[-1].dataset)
    return found


def check_arguments(trainer: Any) -> None:
    """Refuse what would not be private, or would be ignored; asked again when training begins."""
    for is_wrong, why in REFUSED:
        if is_wrong(trainer):
            raise InvalidInput(why)
