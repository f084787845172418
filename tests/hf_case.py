"""Small models, data and trainers of transformers for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from dpcompile.training.hf_trainer import PrivateTrainer

COUNT, LENGTH, WORDS, EXPECTED = 40, 7, 13, 8


class Sentences(Dataset[dict[str, Tensor]]):
    """Random tokens; labels are the tokens, or a class."""

    def __init__(self, classes: int = 0) -> None:
        generator = torch.Generator().manual_seed(6)
        self.tokens = torch.randint(0, WORDS, (COUNT, LENGTH), generator=generator)
        self.classes = classes

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.tokens[index]
        return {"input_ids": row, "labels": row[0] % self.classes if self.classes else row}


def gpt2(**options: Any) -> GPT2LMHeadModel:
    """One layer with tied embeddings, without draws."""
    torch.manual_seed(3)
    sizes: dict[str, Any] = {"vocab_size": WORDS, "n_positions": LENGTH, "n_embd": 8, "n_layer": 1, "n_head": 2}
    dropout: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropout, bos_token_id=0, eos_token_id=0, **options))


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    """A short training by SGD."""
    usual: dict[str, Any] = {
        "max_steps": 7, "per_device_train_batch_size": EXPECTED, "optim": "sgd", "learning_rate": 0.3, "logging_steps": 3,
        "lr_scheduler_type": "linear", "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    return TrainingArguments(output_dir=str(folder), **(usual | options))


def trainer_for(model: nn.Module, folder: Path, options: dict[str, Any] | None = None, **given: Any) -> PrivateTrainer:
    """A trainer with much noise."""
    usual: dict[str, Any] = {"train_dataset": Sentences(), "noise_multiplier": 0.7, "seed": 5, "max_per_example_norm": 0.5,
                             "accountant": "rdp"}  # fmt: skip
    if "target_epsilon" in given:
        del usual["noise_multiplier"]
    return PrivateTrainer(model, arguments(folder, **(options or {})), **(usual | given))
