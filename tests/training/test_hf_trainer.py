"""transformers' Trainer with private steps: the engine's plain loop exactly; checkpoints, adapters, losses and refusals."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_case import COUNT, EXPECTED, LENGTH, WORDS, Sentences, arguments, gpt2, trainer_for
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from training_case import values
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    TrainerCallback,
    default_data_collator,
)

from dpcompile import InvalidInput, dpcompile
from dpcompile.training import PrivacyEngine
from dpcompile.training.hf_arguments import check_arguments
from dpcompile.training.hf_losses import classification_losses, next_token_losses, token_losses, usual_loss
from dpcompile.training.hf_trainer import LEDGER, PrivateTrainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::UserWarning:torch.utils.data")


def bert(kind: Any, **options: Any) -> Any:
    """One layer, without draws."""
    torch.manual_seed(3)
    sizes: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    dropout: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return kind(BertConfig(**sizes, **dropout, intermediate_size=10, max_position_embeddings=LENGTH, **options))


def plain_loop(model: nn.Module, steps: int, dataset: Any, loss: Any, norm: float = 0.5) -> PrivacyEngine:
    """The engine's own loop with the same learning rates."""
    engine = PrivacyEngine(accountant="rdp", seed=5)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.3)
    module, private, batches = engine.make_private(
        module=dpcompile(model, loss, max_grad_norm=norm), optimizer=optimizer, noise_multiplier=0.7, pad_batches=False,
        data_loader=DataLoader(dataset, batch_size=EXPECTED, collate_fn=default_data_collator),
    )  # fmt: skip
    model.train()
    while private.session.completed < steps:
        for batch in batches:
            optimizer.param_groups[0]["lr"] = 0.3 * (1 - private.session.completed / steps)
            module(**batch)
            private.step()
            if private.session.completed == steps:
                break
    return engine


class Draws(TrainerCallback):
    """Notes how many examples were drawn."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sizes.append(kwargs["train_dataloader"].counted)


def test_a_training_is_the_plain_loop_of_the_engine_exactly(tmp_path: Path) -> None:
    trained, looped, seen = gpt2(), gpt2(), Draws()
    options = {"eval_strategy": "steps", "eval_steps": 3}
    trainer = trainer_for(trained, tmp_path, options, callbacks=[seen], eval_dataset=Sentences())
    trainer.train()
    engine = plain_loop(looped, 7, Sentences(), next_token_losses)
    assert torch.equal(values(trained), values(looped))
    assert trainer.engine.accountant.ledger.entries == engine.accountant.ledger.entries
    assert trainer.get_epsilon(1e-2) == engine.get_epsilon(1e-2) > 0
    assert "7 steps of Poisson sampling with probability 0.2" in trainer.statement(1e-2)
    assert len(set(seen.sizes)) > 2
    assert len(trainer.private.steps.by_key) == 1, "traced more than once"
    assert [row["step"] for row in trainer.state.log_history if "eval_loss" in row] == [3, 6, 7]


def test_logs_name_what_is_not_private_and_show_no_gradient_norm(tmp_path: Path) -> None:
    trainer = trainer_for(gpt2(), tmp_path)
    trainer.train()
    names = {name for row in trainer.state.log_history for name in row}
    assert {"loss_not_private", "train_loss_not_private", "learning_rate"} <= names
    assert not names & {"loss", "train_loss", "grad_norm"}


def test_a_second_training_goes_on_and_is_counted(tmp_path: Path) -> None:
    trainer = trainer_for(gpt2(), tmp_path, {"max_steps": 2})
    trainer.train()
    once = trainer.get_epsilon(1e-2)
    trainer.train()
    assert len(trainer.engine.accountant.ledger) == trainer.private_loader.session.completed == 4
    assert trainer.get_epsilon(1e-2) > once


def test_a_target_is_kept_and_not_exceeded(tmp_path: Path) -> None:
    options = {"max_steps": -1, "num_train_epochs": 1.5}
    trainer = trainer_for(gpt2(), tmp_path, options, target_epsilon=4.0, target_delta=1e-2)
    trainer.train()
    assert trainer.state.global_step == len(trainer.engine.accountant.ledger) == 8
    assert 3.9 < trainer.get_epsilon(1e-2) <= 4.0
    with pytest.raises(InvalidInput, match="given for 8 steps, and they are taken"):
        trainer.train()
    assert trainer.get_epsilon(1e-2) <= 4.0


def test_only_adapters_are_trained(tmp_path: Path) -> None:
    trained, looped = (adapted(gpt2()) for _ in range(2))
    before = copy.deepcopy(trained.state_dict())
    trainer_for(trained, tmp_path).train()
    plain_loop(looped, 7, Sentences(), next_token_losses)
    changed = {name for name, value in trained.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name, parameter in trained.named_parameters() if parameter.requires_grad}
    assert all("lora" in name for name in changed)
    assert torch.equal(values(trained), values(looped))


def adapted(model: nn.Module) -> Any:
    """The model with LoRA on its attention."""
    peft = pytest.importorskip("peft", reason="the adapters' library is an extra")
    torch.manual_seed(8)
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))


@pytest.mark.parametrize("seed", [5, None])
def test_a_resumed_training_goes_on_with_its_ledger(seed: int | None, tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 3}
    whole = gpt2()
    trainer_for(whole, tmp_path / "whole", options, seed=seed).train()
    assert not (tmp_path / "whole" / "checkpoint-3" / LEDGER).read_text().count('"key"')
    resumed = gpt2()
    trainer = trainer_for(resumed, tmp_path / "resumed", options, seed=seed)
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert trainer.state.global_step == len(trainer.engine.accountant.ledger) == 7
    assert trainer.private_loader.session.completed == 7
    assert torch.equal(values(whole), values(resumed)) == (seed is not None)


def test_a_checkpoint_that_does_not_say_what_was_spent_is_refused(tmp_path: Path) -> None:
    trainer_for(gpt2(), tmp_path, {"save_strategy": "steps", "save_steps": 3}).train()
    ledger = tmp_path / "checkpoint-3" / LEDGER
    with pytest.raises(InvalidInput, match="give the same seed="):
        trainer_for(gpt2(), tmp_path, seed=None).train(resume_from_checkpoint=str(ledger.parent))
    ledger.unlink()
    with pytest.raises(InvalidInput, match="what its training has spent is unknown"):
        trainer_for(gpt2(), tmp_path).train(resume_from_checkpoint=str(ledger.parent))


def single(model: nn.Module, batch: dict[str, Tensor]) -> Iterator[Tensor]:
    """The model's own loss of each example alone, which the stand-in must equal."""
    for row in range(COUNT):
        yield model(**{name: tensor[row : row + 1] for name, tensor in batch.items()}).loss


KINDS: dict[str, tuple[Any, int, Any]] = {
    "next token": (gpt2, 0, next_token_losses),
    "masked": (lambda: bert(BertForMaskedLM), 0, token_losses),
    "classes": (lambda: bert(BertForSequenceClassification, num_labels=3), 3, classification_losses),
}


@pytest.mark.parametrize("kind", KINDS)
def test_usual_losses_are_the_models_own_for_single_examples(kind: str) -> None:
    make, classes, expected = KINDS[kind]
    model, batch = make(), default_data_collator([Sentences(classes)[i] for i in range(COUNT)])
    if not classes:
        batch["labels"] = torch.where(
            torch.rand(COUNT, LENGTH, generator=torch.Generator().manual_seed(1)) < 0.3, -100, batch["labels"]
        )
    loss = usual_loss(model)
    assert loss is expected
    assert torch.allclose(loss(model, **batch), torch.stack(list(single(model, batch))), atol=1e-6)


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_other_kinds_of_labels_are_the_models_own_too(problem: str) -> None:
    model = bert(BertForSequenceClassification, num_labels=1 if problem == "regression" else 3)
    labels = torch.rand(COUNT, generator=torch.Generator().manual_seed(1))
    if problem != "regression":
        labels = torch.stack([labels, 1 - labels, labels**2], 1).round()
    batch = {"input_ids": Sentences().tokens, "labels": labels}
    losses = classification_losses(model, **batch)
    assert torch.allclose(losses, torch.stack(list(single(model, batch))), atol=1e-6)
    assert model.config.problem_type == problem


def test_a_loss_of_the_user_and_a_loss_inside_of_the_model_train_alike(tmp_path: Path) -> None:
    outside, inside = gpt2(), gpt2()
    trainer_for(outside, tmp_path, {"max_steps": 2}, loss=next_token_losses).train()

    def per_example(logits: Tensor, labels: Tensor, vocab_size: int, **kwargs: Any) -> Tensor:
        return F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none").mean(1)

    inside.loss_function = per_example
    assert usual_loss(inside) is None
    trainer_for(inside, tmp_path, {"max_steps": 2}).train()
    assert torch.allclose(values(outside), values(inside), atol=1e-6)


def test_a_loss_over_the_whole_batch_is_refused(tmp_path: Path) -> None:
    model = bert(BertForMaskedLM)
    model.loss_type = "ForSomethingElse"
    with pytest.raises(InvalidInput, match="the loss is a scalar"):
        trainer_for(model, tmp_path).train()


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "accumulation": ({"gradient_accumulation_steps": 2}, {}, "several draws would be released as one"),
    "norm": ({"max_grad_norm": 0.5}, {}, "max_per_example_norm="),
    "half": ({"bf16": True}, {}, "fp16 or bf16"),
    "batch size": ({"auto_find_batch_size": True}, {}, "auto_find_batch_size"),
    "smoothing": ({"label_smoothing_factor": 0.1}, {}, "label_smoothing_factor"),
    "loss": ({}, {"compute_loss_func": lambda *_: 0}, "compute_loss_func sees the whole batch"),
    "both": ({}, {"noise_multiplier": 1.0, "target_epsilon": 1.0}, "not both"),
    "neither": ({}, {"noise_multiplier": None}, "not both"),
    "no delta": ({}, {"target_epsilon": 1.0}, "target_delta= is missing"),
    "impossible target": ({}, {"target_epsilon": -1.0, "target_delta": 1e-3}, "positive finite"),
    "expected": ({}, {"expected_batch_size": 0}, "expected_batch_size must be"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_not_be_private_is_refused(case: str, tmp_path: Path) -> None:
    options, given, message = REFUSED[case]
    with pytest.raises(InvalidInput, match=message):
        trainer_for(gpt2(), tmp_path, options, **given)


def test_a_sampler_of_its_own_is_refused(tmp_path: Path) -> None:
    trainer = trainer_for(gpt2(), tmp_path, {"train_sampling_strategy": "group_by_length"})
    with pytest.raises(InvalidInput, match="LengthGroupedSampler"):
        trainer.train()


def test_processes_and_models_made_anew_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="model_init makes a new model"):
        PrivateTrainer(
            model_init=lambda: gpt2(n_inner=9), args=arguments(tmp_path), train_dataset=Sentences(), noise_multiplier=1.0
        )

    class Own(PrivateTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(*args, **kwargs)

    with pytest.raises(InvalidInput, match="compute_loss is overridden"):
        Own(gpt2(), arguments(tmp_path), train_dataset=Sentences(), noise_multiplier=1.0)
    trainer = trainer_for(gpt2(), tmp_path)
    trainer.args._n_gpu = 2
    with pytest.raises(InvalidInput, match="several GPUs"):
        check_arguments(trainer)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidInput, match="several processes"):
        check_arguments(trainer)


def test_an_optimizer_without_noise_is_refused(tmp_path: Path) -> None:
    model = gpt2()
    trainer = trainer_for(model, tmp_path, {"max_steps": 1})
    trainer.train()
    before = values(model).clone()
    trainer.optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    with pytest.raises(InvalidInput, match="would update without noise"):
        trainer.train()
    assert torch.equal(values(model), before)
