"""Training a part of the parameters: no noise and no change, bit by bit, where nothing is trained; what is public stays apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from training_case import data, finish, loader, network, train

from dpcompile import GradientDropping, InvalidInput, PrePruning, dpcompile
from dpcompile.training import PrivacyEngine

OPTIMIZERS: dict[str, Any] = {
    "SGD with momentum and decay": lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5),
}
DROPPING = [
    GradientDropping(0.5, granularity="rows", seed=0),
    GradientDropping(0.7, granularity="weights", every=2, seed=0),
    GradientDropping(0.5, granularity="layers", parameters=["*"], seed=0),
    GradientDropping(0.4, "magnitude", granularity="columns", seed=0),
    GradientDropping(0.4, "released gradient", granularity="rows", seed=0),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dropping", DROPPING, ids=lambda d: f"{d.criterion} {d.granularity}")
def test_what_is_dropped_does_not_change_and_has_no_noise(optimizer: str, dropping: GradientDropping) -> None:
    model = network()
    engine = PrivacyEngine(seed=3)
    triple = engine.make_private(
        module=model, optimizer=OPTIMIZERS[optimizer](model.parameters()), data_loader=loader(), noise_multiplier=1.0,
        passes=[PrePruning(0.3, parameters=["0.weight"]), dropping],
    )  # fmt: skip
    module, private, batches = triple
    selection, dropped, kept = module.private.program, 0, 0
    for _ in range(3):
        for inputs, targets in batches:
            masks = {n: selection.selection.mask(n).clone() for n in selection.selection.layouts}
            before = {n: p.detach().clone() for n, p in model.named_parameters()}
            nn.functional.cross_entropy(module(inputs), targets).backward()
            private.step()
            for name, parameter in model.named_parameters():
                mask = masks.get(name, torch.ones_like(parameter, dtype=torch.bool))
                assert torch.equal(parameter[~mask], before[name][~mask])
                assert parameter.grad is not None and not parameter.grad[~mask].any()
                assert bool((parameter.grad[mask] != 0).all())  # noise everywhere else
                dropped, kept = dropped + int((~mask).sum()), kept + int(mask.sum())
    assert dropped > 0 and kept > 0
    pruned = ~module.private.chooser.left["0.weight"]
    assert pruned.any() and not model.get_parameter("0.weight")[pruned].any()


def test_noise_has_the_same_deviation_where_it_is() -> None:
    model = nn.Linear(50, 400).double()
    dropping = GradientDropping(0.75, granularity="rows", seed=0)
    batches = DataLoader(TensorDataset(torch.zeros(20, 50, dtype=torch.float64), torch.zeros(20, 400).double()), batch_size=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    module, private, batches = PrivacyEngine(seed=1).make_private(
        module=model, optimizer=optimizer, data_loader=batches, noise_multiplier=2.0, max_grad_norm=3.0, passes=[dropping],
    )  # fmt: skip
    mask = module.private.program.selection.mask("weight").clone()
    for inputs, targets in batches:
        (module(inputs) - targets).square().sum(1).mean().backward()
        private.step()
        break
    grad = model.weight.grad
    assert grad is not None and int(mask.sum()) == 5000
    assert float(grad[mask].std()) == pytest.approx(2.0 * 3.0 / 10, rel=0.05)


def test_a_checkpoint_goes_on_with_the_same_parts(tmp_path: Path) -> None:
    def run() -> tuple[PrivacyEngine, Any, nn.Module]:
        model, engine = network(), PrivacyEngine(seed=5)
        passes = [PrePruning(0.3, "random", seed=1), GradientDropping(0.5, "released gradient", granularity="rows", seed=2)]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return engine, engine.make_private(
            module=model, optimizer=optimizer, data_loader=loader(), noise_multiplier=1.0, passes=passes
        ), model  # fmt: skip

    _, triple, whole = run()
    finish(triple, 6)
    other_engine, other, _ = run()
    for done in train(other, 3):
        if done == 3:
            break
    other_engine.save_checkpoint(path=tmp_path / "run.safetensors")
    third_engine, third, resumed = run()
    third_engine.load_checkpoint(path=tmp_path / "run.safetensors")
    finish(third, 6)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))
    fourth = PrivacyEngine(seed=5)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fourth.make_private(module=model, optimizer=optimizer, data_loader=loader(), noise_multiplier=1.0)
    with pytest.raises(InvalidInput, match="other passes"):
        fourth.load_checkpoint(path=tmp_path / "run.safetensors")


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy per example."""
    return nn.functional.cross_entropy(model(x), y, reduction="none")


def test_private_data_are_no_public_batch() -> None:
    inputs, targets = data()
    for public in ((inputs[:4], targets[:4]), (inputs[:4].clone(), targets[:4].clone())):
        private = dpcompile(network(), loss=losses, passes=[PrePruning(0.5, "snip", public_batch=public)])
        optimizer = torch.optim.SGD(private.model.parameters(), lr=0.1)
        dataset = DataLoader(TensorDataset(inputs, targets), batch_size=6)
        with pytest.raises(InvalidInput, match="it is not public"):
            PrivacyEngine().make_private(module=private, optimizer=optimizer, data_loader=dataset, noise_multiplier=1.0)
    private = dpcompile(network(), loss=losses, passes=[PrePruning(0.5, "snip", public_batch=(inputs[:4], targets[:4]))])
    with pytest.raises(InvalidInput, match="shares memory"):
        private(inputs, targets)


def test_the_report_says_what_was_chosen_by_what() -> None:
    private = dpcompile(network(), loss=losses, passes=[PrePruning(0.5, "magnitude"), GradientDropping(0.5, granularity="rows")])
    private(*data())
    text = str(private.report())
    assert "pruned before training: 50% of weights by magnitude, which reads the weights" in text
    assert "gradients dropped: 50% of rows by random, which reads random numbers; chosen anew every 1 steps" in text
    assert "entries are trained in each step, and get noise" in text
