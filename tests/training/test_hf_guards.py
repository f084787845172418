"""What the Trainer of transformers would do behind the ledger's back is refused; what it writes says what is not private."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_case import COUNT, LENGTH, WORDS, Sentences, arguments, gpt2, trainer_for
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Subset, random_split
from training_case import values
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, default_data_collator

from dpcompile import InvalidInput
from dpcompile.training import TrainingLog
from dpcompile.training.hf_losses import next_token_losses
from dpcompile.training.hf_trainer import LEDGER, PrivateTrainer

SAVING = {"save_strategy": "steps", "save_steps": 3}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::UserWarning:torch.utils.data")


def without_privacy(folder: Path) -> Path:
    """A checkpoint of transformers' own training."""
    Trainer(gpt2(), arguments(folder, **SAVING), train_dataset=Sentences()).train()
    return folder / "checkpoint-3"


def with_another_seed(folder: Path) -> Path:
    """A checkpoint of a private run without a seed."""
    trainer_for(gpt2(), folder, SAVING, seed=None).train()
    return folder / "checkpoint-3"


def cut(folder: Path) -> Path:
    """One whose ledger was not written to its end."""
    trainer_for(gpt2(), folder, SAVING).train()
    ledger = folder / "checkpoint-3" / LEDGER
    ledger.write_text(ledger.read_text()[:40])
    return ledger.parent


REFUSED_CHECKPOINTS: dict[str, tuple[Any, str]] = {
    "without privacy": (without_privacy, "what its training has spent is unknown"),
    "another seed": (with_another_seed, "give the same seed="),
    "cut": (cut, "is damaged"),
}


@pytest.mark.parametrize("case", REFUSED_CHECKPOINTS)
def test_a_refused_checkpoint_leaves_the_weights_alone(case: str, tmp_path: Path) -> None:
    make, message = REFUSED_CHECKPOINTS[case]
    path, model = make(tmp_path / "run"), gpt2()
    before = values(model).clone()
    trainer = trainer_for(model, tmp_path / "again")
    with pytest.raises(InvalidInput, match=message):
        trainer.train(resume_from_checkpoint=str(path))
    assert torch.equal(values(model), before)
    assert len(trainer.engine.accountant.ledger) == 0


def test_a_checkpoint_that_fails_later_is_counted_already(tmp_path: Path) -> None:
    trainer_for(gpt2(), tmp_path, SAVING).train()
    (tmp_path / "checkpoint-3" / "trainer_state.json").unlink()
    trainer = trainer_for(gpt2(), tmp_path / "again")
    with pytest.raises(FileNotFoundError):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert len(trainer.engine.accountant.ledger) == 3, "its weights are in the model"


def test_a_run_of_its_own_steps_takes_no_other_ledger(tmp_path: Path) -> None:
    trainer_for(gpt2(), tmp_path, SAVING).train()
    trainer = trainer_for(gpt2(), tmp_path / "again", {"max_steps": 5})
    trainer.train()
    with pytest.raises(InvalidInput, match="has released steps itself"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert len(trainer.engine.accountant.ledger) == 5


def test_a_resumed_run_keeps_its_target(tmp_path: Path) -> None:
    given: Any = {"target_epsilon": 4.0, "target_delta": 1e-2}
    trainer_for(gpt2(), tmp_path, SAVING, **given).train()
    longer = trainer_for(gpt2(), tmp_path / "longer", {"max_steps": 14}, **given)
    with pytest.raises(InvalidInput, match="less noise than target_epsilon=4 needs"):
        longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    same = trainer_for(gpt2(), tmp_path / "same", **given)
    same.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert 3.9 < same.get_epsilon(1e-2) <= 4.0
    assert len(same.engine.accountant.ledger) == 7


def test_epochs_of_a_resumed_run_go_on(tmp_path: Path) -> None:
    options = {"max_steps": -1, "num_train_epochs": 2, "logging_steps": 1}
    whole = trainer_for(gpt2(), tmp_path, {**options, **SAVING})
    whole.train()
    again = trainer_for(gpt2(), tmp_path / "again", options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    epochs = [(row["step"], row["epoch"]) for row in again.state.log_history]
    assert epochs == [(row["step"], row["epoch"]) for row in whole.state.log_history]
    assert epochs[3] == (4, 0.8)


def test_metrics_and_logs_count_nothing_that_was_drawn(tmp_path: Path) -> None:
    trainer = trainer_for(gpt2(), tmp_path, {**SAVING, "skip_memory_metrics": False})
    metrics = trainer.train().metrics
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    written = json.loads((tmp_path / "train_results.json").read_text())
    names = {*metrics, *written, *(name for row in trainer.state.log_history for name in row)}
    assert "train_loss_not_private" in names
    public = {name for name in names if not name.endswith("_not_private")}
    usual = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "epoch", "step", "learning_rate"}
    assert public <= usual | {name for name in names if name.startswith(("init_mem_", "before_init_mem"))}
    assert trainer.state.total_flos == 0


def test_samples_per_second_count_the_expected_batches(tmp_path: Path) -> None:
    metrics = trainer_for(gpt2(), tmp_path).train().metrics
    drawn = metrics["train_samples_per_second"] / metrics["train_steps_per_second"]
    assert drawn == pytest.approx(8, rel=0.01), "a constant, whatever was drawn"


def follows(evaluated: Any, **options: Any) -> dict[str, Any]:
    """A learning rate that follows evaluations of this data."""
    return {"options": {"eval_strategy": "steps", "eval_steps": 3, "lr_scheduler_type": "reduce_lr_on_plateau", **options},
            "eval_dataset": evaluated}  # fmt: skip


def test_a_learning_rate_that_follows_the_training_data_is_refused(tmp_path: Path) -> None:
    data = Sentences()
    for evaluated in (data, {"a": Sentences(), "b": data}, Subset(data, [1, 2, 3])):
        with pytest.raises(InvalidInput, match="chooses learning rates by a metric"):
            trainer_for(gpt2(), tmp_path, train_dataset=data, **follows(evaluated))
    part, rest = random_split(data, [30, 10])
    with pytest.raises(InvalidInput, match="chooses learning rates by a metric"):
        trainer_for(gpt2(), tmp_path, train_dataset=part, **follows(data))
    model = gpt2()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(InvalidInput, match="chooses learning rates by a metric"):
        trainer_for(model, tmp_path, train_dataset=data, optimizers=given, **follows(data, lr_scheduler_type="linear"))
    trainer = trainer_for(gpt2(), tmp_path, train_dataset=part, **follows(rest))
    trainer.train()
    assert "learning rates that follow a loss" in trainer.statement(1e-2)
    trainer.eval_dataset = part
    with pytest.raises(InvalidInput, match="chooses learning rates by a metric"):
        trainer.train()


def published(folder: Path, **options: Any) -> PrivateTrainer:
    """A trainer that would upload; it makes no repository."""

    class Offline(PrivateTrainer):
        def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
            self.hub_model_id = "nobody/nothing"  # type: ignore[assignment]  # transformers says None

    return Offline(gpt2(), arguments(folder, push_to_hub=True, **options), train_dataset=Sentences(), noise_multiplier=1.0)


def test_checkpoints_are_not_published(tmp_path: Path) -> None:
    for strategy in ("checkpoint", "all_checkpoints"):
        with pytest.raises(InvalidInput, match="publishes whole checkpoints"):
            published(tmp_path, hub_strategy=strategy)
    assert published(tmp_path, hub_strategy="end").args.push_to_hub


def test_counted_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="logs how many tokens were drawn"):
        trainer_for(gpt2(), tmp_path, {"include_num_input_tokens_seen": "all"})


def replace_data(trainer: PrivateTrainer) -> None:
    """Another data set."""
    trainer.train_dataset = Sentences()


def replace_model(trainer: PrivateTrainer) -> None:
    """Another model."""
    trainer.model = gpt2()


def replace_loss(trainer: PrivateTrainer) -> None:
    """A loss over the batch."""
    trainer.compute_loss_func = lambda *_: 0


def replace_making(trainer: Any) -> None:
    """Models that are made anew."""
    trainer.model_init = gpt2


CHANGES = {
    "train_dataset was replaced": replace_data,
    "model was replaced": replace_model,
    "compute_loss_func sees the whole batch": replace_loss,
    "model_init makes a new model": replace_making,
}


@pytest.mark.parametrize("message", CHANGES)
def test_changes_that_would_be_ignored_are_refused(message: str, tmp_path: Path) -> None:
    trainer = trainer_for(gpt2(), tmp_path, {"max_steps": 1})
    trainer.train()
    CHANGES[message](trainer)
    with pytest.raises(InvalidInput, match=message):
        trainer.train()
    assert len(trainer.engine.accountant.ledger) == 1


class Scaled(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, model: nn.Module, input_ids: Tensor, labels: Tensor) -> Tensor:
        """f[B]."""
        scores = model(input_ids=input_ids).logits * self.scale
        return F.cross_entropy(scores.transpose(1, 2), labels, reduction="none").mean(1)


def test_parameters_of_the_loss_are_refused_unless_they_are_fixed(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"loss= has parameters \(loss.scale\)"):
        trainer_for(gpt2(), tmp_path, loss=Scaled())
    trainer_for(gpt2(), tmp_path, {"max_steps": 1}, loss=Scaled().requires_grad_(False)).train()


class Loader(PrivateTrainer):
    """Draws by itself."""

    def get_train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(Sentences(), batch_size=8)


def test_a_loader_of_ones_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="get_train_dataloader is overridden"):
        Loader(gpt2(), arguments(tmp_path), train_dataset=Sentences(), noise_multiplier=1.0).train()


class Unlabelled(Sentences):
    """No labels."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[index]}


def test_batches_without_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="the batches have no labels, but input_ids"):
        trainer_for(gpt2(), tmp_path, train_dataset=Unlabelled()).train()


class WithoutSchedule(torch.optim.SGD):
    """Steps in training mode only, as schedule-free optimizers do."""

    mode = ""

    def train(self) -> None:
        """Weights to train with."""
        self.mode = "train"

    def eval(self) -> None:
        """Weights to evaluate with."""
        self.mode = "eval"

    def step(self, closure: Any = None) -> Any:
        """Refuses the other mode."""
        assert self.mode == "train"
        return super().step(closure)


def test_an_optimizer_with_modes_steps_in_training_mode(tmp_path: Path) -> None:
    model = gpt2()
    optimizer = WithoutSchedule(model.parameters(), lr=0.1)
    options = {"eval_strategy": "steps", "eval_steps": 2}
    trainer_for(model, tmp_path, options, optimizers=(optimizer, None), eval_dataset=Sentences()).train()
    assert optimizer.mode == "eval"


def test_no_norm_at_all_and_a_log_before_training(tmp_path: Path) -> None:
    trainer = trainer_for(gpt2(), tmp_path, {"max_grad_norm": None, "max_steps": 2})
    with TrainingLog(trainer.private_optimizer, delta=1e-2) as log:
        trainer.train()
    assert [row["step"] for row in log.rows] == [1, 2]


def llama() -> Any:
    """One layer, which takes embeddings too."""
    torch.manual_seed(2)
    sizes: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, pad_token_id=0))


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PromptEncoderConfig", "PrefixTuningConfig"])
def test_prompts_are_trained_by_the_models_own_losses(kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="the adapters' library is an extra")
    torch.manual_seed(8)
    model = peft.get_peft_model(llama(), getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3))
    batch = default_data_collator([Sentences()[index] for index in range(COUNT)])
    single = [model(**{name: tensor[row : row + 1] for name, tensor in batch.items()}).loss for row in range(COUNT)]
    assert batch["labels"].shape == (COUNT, LENGTH)
    assert torch.allclose(next_token_losses(model, **batch), torch.stack(single), atol=1e-6)
    trainer = trainer_for(model, tmp_path, {"max_steps": 1})
    trainer.train()
    assert len(trainer.engine.accountant.ledger) == 1
