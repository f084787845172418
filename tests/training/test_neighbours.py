"""What stands around a private training: other gradients, copies, autocast, scalers, schedulers, odd arguments."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from opacus.schedulers import ExponentialGradClip, ExponentialNoise, LambdaNoise, StepNoise
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from training_case import data, finish, made, network, train, values

from dpcompile import InvalidInput, dpcompile
from dpcompile.training import PrivacyEngine, TrainingLog
from dpcompile.training.engine import Triple


def backward(triple: Triple) -> None:
    """One backward on the next batch."""
    inputs, targets = next(iter(triple[2]))
    nn.functional.cross_entropy(triple[0](inputs), targets).backward()


@pytest.mark.parametrize("stepped", [False, True])
def test_another_backward_before_the_private_one_is_refused_rather_than_lost(stepped: bool) -> None:
    model: Any = network()
    triple = made(model)
    if stepped:
        backward(triple)
        triple[1].step()  # its noisy gradient is in p.grad, and the other backward adds to it
    model[0].weight.square().sum().backward()
    with pytest.raises(InvalidInput, match=r"0\.weight\.grad was set by something else"):
        backward(triple)


def test_a_loop_without_zero_grad_trains_on_the_last_noisy_gradient_alone() -> None:
    ends = []
    for forget in (False, True):
        model: Any = network()
        triple = made(model)
        for _ in range(3):
            if not forget:
                triple[1].zero_grad(set_to_none=False)
            backward(triple)
            triple[1].step()
        ends.append(values(model))
    assert torch.equal(*ends)


def test_gradients_of_an_earlier_training_are_forgotten() -> None:
    model: Any = network()
    finish(made(model, seed=1), 2)
    assert model[0].weight.grad is not None
    finish(made(model, seed=2), 2)


@pytest.mark.parametrize("is_inside", [False, True])
def test_copies_and_pickles_are_the_model_alone(is_inside: bool) -> None:
    model: Any = network()
    triple = made(dpcompile(model, nn.CrossEntropyLoss()), max_grad_norm=0.3) if is_inside else made(model)
    batch = next(iter(triple[2]))
    triple[0](*batch) if is_inside else nn.functional.cross_entropy(triple[0](batch[0]), batch[1]).backward()
    file = io.BytesIO()
    torch.save(triple[0], file)
    file.seek(0)
    for copied in (copy.deepcopy(triple[0]), torch.load(file, weights_only=False)):
        assert type(copied) is nn.Sequential
        assert torch.equal(values(copied), values(model))
        assert copied[0].weight is not model[0].weight


def test_a_parameter_that_is_unfrozen_in_the_middle_of_a_step_is_refused_by_name() -> None:
    model: Any = network()
    model[2].bias.requires_grad_(False)
    triple = made(model)
    backward(triple)
    model[2].bias.requires_grad_(True)
    with pytest.raises(InvalidInput, match=r"2\.bias began to require grad"):
        triple[1].step()


def test_an_enabled_gradient_scaler_is_refused_and_a_disabled_one_works() -> None:
    for enabled in (False, True):
        triple = made(network())
        scaler = torch.amp.GradScaler("cpu", enabled=enabled)
        inputs, targets = next(iter(triple[2]))
        scaler.scale(nn.functional.cross_entropy(triple[0](inputs), targets)).backward()
        if enabled:
            with pytest.raises(InvalidInput, match="GradScaler skips steps"):
                scaler.step(triple[1])
        else:
            scaler.step(triple[1])
            assert triple[1].session.completed == 1


def bf16_loss(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A loss per example, the model in bfloat16."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return nn.functional.cross_entropy(model(inputs).float(), targets, reduction="none")


@pytest.mark.parametrize("is_inside", [False, True])
def test_bfloat16_autocast_of_the_users_loop_trains_near_to_float32(is_inside: bool) -> None:
    inputs, targets = data(torch.float32)
    batches = DataLoader(TensorDataset(inputs, targets), batch_size=12)
    sums = []
    for dtype in (torch.float32, torch.bfloat16):
        model = network(torch.float32)
        is_bf16 = dtype is torch.bfloat16
        module: Any = dpcompile(model, bf16_loss if is_bf16 else nn.CrossEntropyLoss(), max_grad_norm=0.3) if is_inside else model
        triple = made(module, 0.0, data_loader=batches)
        drawn = next(iter(triple[2]))
        if is_inside:
            triple[0](*drawn)
        else:
            with torch.autocast("cpu", dtype=dtype, enabled=is_bf16):
                loss = nn.functional.cross_entropy(triple[0](drawn[0]).float(), drawn[1])
            loss.backward()
        total = triple[1].session.sums["0.weight"]
        assert total.dtype == torch.float32
        sums.append(total)
    assert not torch.equal(*sums), "nothing ran in bfloat16"
    assert float((sums[0] - sums[1]).norm() / sums[0].norm()) < 0.03


@pytest.mark.parametrize(
    ("scheduler", "options", "noise", "norm"),
    [(ExponentialNoise, {"gamma": 0.5}, 0.25, 0.3), (StepNoise, {"step_size": 2, "gamma": 0.5}, 0.5, 0.3),
     (LambdaNoise, {"noise_lambda": lambda step: 1 / (1 + step)}, 1 / 3, 0.3), (ExponentialGradClip, {"gamma": 0.5}, 1.0, 0.075)],
)  # fmt: skip
def test_opacus_schedulers_set_what_is_used_and_accounted(scheduler: Any, options: Any, noise: float, norm: float) -> None:
    triple = made(network())
    schedule = scheduler(triple[1], **options)
    for _ in range(2):
        backward(triple)
        triple[1].step()
        schedule.step()
    assert triple[1].noise_multiplier == pytest.approx(noise)
    assert triple[1].max_grad_norm == pytest.approx(norm)
    backward(triple)
    assert triple[1].session.sensitivity == pytest.approx(norm)
    triple[1].step()
    assert triple[1].accountant.ledger.entries[-1][0].noise_multiplier == pytest.approx(noise)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"max_gradnorm": 1.0}, r"no argument max_gradnorm=; did you mean max_grad_norm=\?"), ({"loss": nn.MSELoss()}, "module="),
     ({"pad_batches": "yes"}, "pad_batches must be True"), ({"noise_generator": 3}, "for an int use seed="),
     ({"pad_batches": True, "batch_dim": 1}, "axis 0")],
)  # fmt: skip
def test_odd_arguments_are_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        made(network(), **options)


def test_an_accountant_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"accountant=3 has no step\(\)"):
        PrivacyEngine(accountant=3)


class TimeFirst(nn.Module):
    """f[T, B, 5] -> f[T, B, 3], examples on axis 1."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_examples_on_another_axis_train_with_output_dim() -> None:
    def by_time(rows: list[Any]) -> Any:
        return torch.stack([row[0] for row in rows], 1), torch.stack([row[1] for row in rows], 1)

    inputs = torch.randn(30, 4, 5, generator=torch.Generator().manual_seed(1)).double()
    dataset = TensorDataset(inputs, inputs[..., :3].argmax(-1))
    batches = DataLoader(dataset, batch_size=10, collate_fn=by_time)
    triple = made(TimeFirst(), 0.0, data_loader=batches, batch_dim=1, output_dim=1, loss_reduction="sum", max_grad_norm=1e9)
    drawn, targets = next(iter(triple[2]))
    nn.functional.cross_entropy(triple[0](drawn).flatten(0, 1), targets.flatten(), reduction="sum").backward()
    plain = TimeFirst()
    nn.functional.cross_entropy(plain(drawn).flatten(0, 1), targets.flatten(), reduction="sum").backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(triple[1].session.sums[name], parameter.grad)


def test_a_statement_and_a_log_of_passes_count_passes_and_steps() -> None:
    triple = made(network(), poisson_sampling=False)
    with TrainingLog(triple[1], delta=1e-3, every=100) as log:
        for _ in train(triple, 6):
            pass
    assert [row["step"] for row in log.rows] == [1, 2, 3, 4, 5, 6]
    assert ": 2 passes over all examples without sampling, noise" in triple[1].accountant.statement(1e-3)
