"""What the private triple does in the user's loop: which sums, which noise, which refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import per_example_gradients
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler
from training_case import EXAMPLES, data, finish, loader, made, network, train, values

from dpcompile import GroupWise, InvalidInput, dpcompile
from dpcompile.training import PrivacyEngine, make_private, make_private_with_epsilon
from dpcompile.training.noise import GeneratorNoise


def cross_entropy(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(inputs), targets, reduction="none")


def test_a_step_is_the_clipped_sum_of_the_drawn_examples_and_noise_over_the_divisor() -> None:
    model = network()
    module, optimizer, batches = made(model)
    drawn = batches.draws.examples(0)
    inputs, targets = (t[drawn] for t in data())
    _, gradients = per_example_gradients(model, cross_entropy, (inputs, targets))
    norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0).sqrt()
    assert (norms > 0.3).any(), "nothing is clipped"
    factors = (0.3 / norms).clamp(max=1)
    noise = GeneratorNoise(seed=4).fill(torch.empty(sum(p.numel() for p in model.parameters()), dtype=torch.float64), 0.3 / 12)
    sums = torch.cat([torch.einsum("b,b...->...", factors, g).flatten() for g in gradients.values()])
    before = values(model)
    finish((module, optimizer, batches), 1)
    assert torch.allclose(before - values(model), 0.5 * (sums / 12 + noise), rtol=0, atol=1e-12)


PHYSICAL: tuple[dict[str, Any], ...] = (
    {"physical_batch_size": 1},
    {"physical_batch_size": 5},
    {"physical_batch_size": 7, "pad_batches": True},
    {"physical_batch_size": 40, "pad_batches": True},
    {"pad_batches": True},
)


@pytest.mark.parametrize("options", PHYSICAL, ids=str)
def test_physical_batches_change_nothing(options: dict[str, Any]) -> None:
    whole, parts = network(), network()
    finish(made(whole), 7)
    finish(made(parts, **options), 7)
    assert (values(whole) - values(parts)).abs().max() < 1e-12


def test_200_steps_of_any_size_are_one_compilation() -> None:
    model = network()
    triple = made(model, physical_batch_size=9)
    finish(triple, 200)
    optimizer = triple[1]
    assert len(optimizer.accountant.ledger) == 200
    assert len(triple[0].inner.steps.by_key) == 1


def test_the_compiled_step_with_its_own_loss_trains_the_same_way() -> None:
    outside, inside = network(), network()
    finish(made(outside), 4)
    private = dpcompile(inside, loss=nn.CrossEntropyLoss(), max_grad_norm=0.3)
    sgd = torch.optim.SGD(inside.parameters(), lr=0.5, momentum=0.9)
    step, optimizer, batches = make_private(module=private, optimizer=sgd, data_loader=loader(), noise_multiplier=1.0, seed=3)
    for _, batch in zip(range(4), batches, strict=False):
        step(*batch)
        optimizer.step()
    assert (values(outside) - values(inside)).abs().max() < 1e-12


KINDS = ("automatic", "normalized", "psac", "global", "per-layer", GroupWise({"0.*": 0.1, "2.*": 0.2}))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_kind_of_clipping_gets_the_noise_of_its_sensitivity(kind: Any) -> None:
    model = network()
    before = values(model)
    norm = None if isinstance(kind, GroupWise) else 0.3
    triple = made(model, clipping=kind, max_grad_norm=norm, sample_rate=1e-9)
    sensitivity = 0.05**0.5 if norm is None else 0.3
    assert triple[1].private.sensitivity() == pytest.approx(sensitivity)
    finish(triple, 1)
    noise = GeneratorNoise(seed=4).fill(torch.empty_like(before), sensitivity / 12)
    assert torch.allclose(before - values(model), 0.5 * noise, rtol=0, atol=1e-12)


def test_groups_in_several_physical_batches_are_the_whole() -> None:
    ends = []
    for size in (None, 4):
        model = network()
        finish(made(model, clipping="per-layer", physical_batch_size=size), 4)
        ends.append(values(model))
    assert (ends[0] - ends[1]).abs().max() < 1e-12


def test_an_empty_draw_releases_noise_only() -> None:
    model = network()
    module, optimizer, batches = made(model, sample_rate=1e-9)
    before = values(model)
    finish((module, optimizer, batches), 1)
    noise = GeneratorNoise(seed=4).fill(torch.empty_like(before), 0.3 / 12)
    assert torch.allclose(before - values(model), 0.5 * noise, rtol=0, atol=1e-15)
    assert len(optimizer.accountant.ledger) == 1


def test_an_example_that_is_not_finite_changes_nothing() -> None:
    inputs, targets = data()
    broken = inputs.clone()
    broken[7] = float("nan")
    with_it, without = network(), network()
    first = made(with_it, data_loader=DataLoader(TensorDataset(broken, targets), batch_size=12))
    second = made(without)
    second[2].draws.examples = lambda number: first[2].draws.examples(number)[first[2].draws.examples(number) != 7]  # type: ignore
    assert any(7 in first[2].draws.examples(number) for number in range(6))
    finish(first, 6)
    finish(second, 6)
    assert torch.allclose(values(with_it), values(without), rtol=0, atol=1e-12)


def test_names_and_state_are_the_users_own() -> None:
    model = network()
    module, optimizer, _ = made(model)
    assert list(module.state_dict()) == list(model.state_dict())
    assert [n for n, _ in module.named_parameters()] == [n for n, _ in model.named_parameters()]
    finish((module, optimizer, _), 2)
    assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.5
    assert optimizer.state is optimizer.original_optimizer.state


@pytest.mark.parametrize("of_private", [True, False])
def test_schedulers_keep_working(of_private: bool) -> None:
    model = network()
    module, optimizer, batches = made(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer if of_private else optimizer.original_optimizer, 1, 0.5)
    for inputs, targets in batches:
        nn.functional.cross_entropy(module(inputs), targets).backward()
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5**6


def test_noise_and_clip_norm_may_change_between_steps_and_are_accounted() -> None:
    triple = made(network())
    _, optimizer, _ = triple
    for done in train(triple, 3):
        optimizer.noise_multiplier, optimizer.max_grad_norm = 1.0 + done, 0.3 / (1 + done)
    assert [release.noise_multiplier for release, _ in optimizer.accountant.ledger.entries] == [1.0, 2.0, 3.0]


def test_hooks_before_the_users_step_see_the_noisy_gradient() -> None:
    triple = made(network(), sample_rate=1e-9)
    seen: list[float] = []
    triple[1].register_step_pre_hook(
        lambda optimizer, *_: seen.append(float(optimizer.param_groups[0]["params"][0].grad.abs().sum()))
    )
    finish(triple, 1)
    assert len(seen) == 1
    assert seen[0] > 0


def test_frozen_parameters_get_no_noise() -> None:
    model = network()
    next(model.children()).requires_grad_(False)
    before = [p.detach().clone() for p in model.parameters()]
    finish(made(model), 3)
    changed = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert changed == [False, False, True, True]


def test_a_half_precision_parameter_sums_in_float32() -> None:
    model = network(torch.bfloat16)
    inputs, targets = data(torch.bfloat16)
    triple = made(model, data_loader=DataLoader(TensorDataset(inputs, targets), batch_size=12), physical_batch_size=3)
    for _ in train(triple, 1):
        sums = triple[1].session.sums
        assert all(total.dtype == torch.float32 for total in sums.values())
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in model.parameters())


def test_truncation_is_done_and_accounted() -> None:
    triple = made(network(), truncated_batch_size=10)
    finish(triple, 5)
    assert max(len(triple[2].draws.examples(step)) for step in range(40)) == 10
    assert "truncated at 10" in triple[1].accountant.statement(1e-3)


def test_a_shuffled_loader_is_accounted_without_amplification() -> None:
    triple = made(network(), poisson_sampling=False)
    finish(triple, 10)
    ledger = triple[1].accountant.ledger
    seen = sorted(int(i) for step in range(5) for i in triple[2].draws.examples(step))
    assert seen == list(range(EXAMPLES))
    assert [count for _, count in ledger.entries] == [1, 1]
    assert "zeroing out" in triple[1].accountant.statement(1e-3)


def test_training_for_a_target_spends_at_most_that() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    triple = make_private_with_epsilon(
        module=model,
        optimizer=optimizer,
        data_loader=loader(),
        target_epsilon=4.0,
        target_delta=1e-2,
        epochs=2,
        max_grad_norm=0.3,
    )
    finish(triple, 10)
    assert 3.9 < triple[1].get_epsilon(1e-2) <= 4.0


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no divisor": ({"data_loader": DataLoader(TensorDataset(*data()), batch_size=None)}, "expected_batch_size= is missing"),
    "rate above one": ({"expected_batch_size": 61}, "sampling rate must be above 0 and at most 1, got 1.01"),
    "given rate": ({"sample_rate": 1.5}, "sampling rate must be above 0"),
    "negative noise": ({"noise_multiplier": -1.0}, "noise_multiplier must be"),
    "weighted sampler": (
        {"data_loader": loader(sampler=WeightedRandomSampler([1.0] * EXAMPLES, EXAMPLES))}, "draws with WeightedRandomSampler"),
    "no loader": ({"data_loader": [1, 2]}, "must be a torch.utils.data.DataLoader"),
    "ghost mode": ({"grad_sample_mode": "ghost"}, "always returns"),
    "sequence first": ({"batch_first": False}, "batch_dim="),
    "rate of a pass": ({"poisson_sampling": False, "sample_rate": 0.1}, "for Poisson sampling"),
    "half an example": ({"physical_batch_size": 0.5}, "physical_batch_size must be a whole number"),
    "no module": ({"module": 3}, "must be a torch.nn.Module"),
    "LBFGS": ({"optimizer": torch.optim.LBFGS(network().parameters())}, "LBFGS"),
    "another model's optimizer": ({"optimizer": torch.optim.SGD(network().parameters())}, "does not have"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    options, message = BAD[name]
    model = network()
    given = {"module": model, "optimizer": torch.optim.SGD(model.parameters()), "data_loader": loader(), "noise_multiplier": 1.0}
    with pytest.raises(InvalidInput, match=message):
        make_private(**{**given, **options})


TARGETS = (
    (0.0, 1e-3, 1),
    (-1.0, 1e-3, 1),
    (float("inf"), 1e-3, 1),
    (1.0, 0.0, 1),
    (1.0, 1.0, 1),
    (1.0, 1e-3, 0),
    (1e-9, 1e-300, 1),
)


@pytest.mark.parametrize(("target", "delta", "epochs"), TARGETS)
def test_targets_without_noise_are_refused(target: float, delta: float, epochs: int) -> None:
    model = network()
    with pytest.raises(InvalidInput):
        make_private_with_epsilon(module=model, optimizer=torch.optim.SGD(model.parameters()), data_loader=loader(),
        target_epsilon=target, target_delta=delta, epochs=epochs)  # fmt: skip


def test_no_noise_is_no_privacy() -> None:
    triple = made(network(), noise_multiplier=0.0)
    finish(triple, 1)
    assert triple[1].get_epsilon(1e-3) == float("inf")


def test_a_target_and_noise_exclude_each_other() -> None:
    model = network()
    with pytest.raises(InvalidInput, match="follows from target_epsilon"):
        make_private_with_epsilon(module=model, optimizer=torch.optim.SGD(model.parameters()), data_loader=loader(),
        target_epsilon=1.0, target_delta=1e-3, epochs=1, noise_multiplier=0.0)  # fmt: skip


def test_a_step_without_backward_is_refused() -> None:
    _, optimizer, batches = made(network())
    with pytest.raises(InvalidInput, match="without a backward"):
        optimizer.step()
    next(iter(batches))
    with pytest.raises(InvalidInput, match="without a backward"):
        optimizer.step()


def test_two_draws_are_never_released_as_one() -> None:
    module, _, batches = made(network())
    with pytest.raises(InvalidInput, match=r"before optimizer.step\(\)"):
        for inputs, targets in batches:
            nn.functional.cross_entropy(module(inputs), targets).backward()


def test_one_batch_is_used_once() -> None:
    module, _, batches = made(network())
    inputs, targets = next(iter(batches))
    nn.functional.cross_entropy(module(inputs), targets).backward()
    with pytest.raises(InvalidInput, match="second backward on the same batch"):
        nn.functional.cross_entropy(module(inputs), targets).backward()


def test_foreign_batches_are_refused_for_training_and_free_for_evaluation() -> None:
    module, _, batches = made(network())
    inputs, targets = data()
    with pytest.raises(InvalidInput, match="does not come from the private loader"):
        nn.functional.cross_entropy(module(inputs), targets).backward()
    next(iter(batches))
    with pytest.raises(InvalidInput, match="the whole batch, and only that"):
        nn.functional.cross_entropy(module(inputs), targets).backward()
    with torch.no_grad():
        assert module(inputs).shape == (EXAMPLES, 3)


def test_other_gradients_are_refused() -> None:
    model = network()
    module, optimizer, batches = made(model)
    inputs, targets = next(iter(batches))
    nn.functional.cross_entropy(module(inputs), targets).backward()
    torch.cat([parameter.flatten() for parameter in model.parameters()]).square().sum().backward()
    with pytest.raises(InvalidInput, match=r"0.weight.grad was set between"):
        optimizer.step()
    assert len(optimizer.accountant.ledger) == 0


@pytest.mark.parametrize("size", [None, 4])
def test_nothing_without_noise_is_ever_in_the_gradients(size: int | None) -> None:
    model = network()
    module, optimizer, batches = made(model, physical_batch_size=size)
    before = values(model)
    for inputs, targets in batches:
        nn.functional.cross_entropy(module(inputs), targets).backward()
        assert all(parameter.grad is None for parameter in model.parameters())
        nn.utils.clip_grad_norm_(module.parameters(), 1e-9)  # finds nothing to clip
        optimizer.original_optimizer.step()  # and nothing to step with
        assert torch.equal(values(model), before)
        optimizer.step()
        before = values(model)
    plain = network()
    finish(made(plain, physical_batch_size=size), 5)
    assert torch.equal(values(model), values(plain))


def test_noise_is_for_the_norm_that_the_sums_were_clipped_to() -> None:
    ends = []
    for later in (0.3, 1e-3):
        model = network()
        module, optimizer, batches = made(model)
        inputs, targets = next(iter(batches))
        nn.functional.cross_entropy(module(inputs), targets).backward()
        optimizer.max_grad_norm = later
        optimizer.step()
        ends.append(values(model))
    assert torch.equal(*ends)


def test_secure_noise_is_never_seeded() -> None:
    with pytest.raises(InvalidInput, match="exclude each other"):
        PrivacyEngine(secure_mode=True, seed=1)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    triple = PrivacyEngine(secure_mode=True).make_private(
        module=model, optimizer=optimizer, data_loader=loader(), noise_multiplier=1.0
    )
    finish(triple, 2)
    assert values(model).isfinite().all()
