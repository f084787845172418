"""Training a part of the parameters: who may choose anew, what released gradients are, which checkpoints go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from training_case import data, finish, loader, made, network

from dpcompile import GradientDropping, InvalidInput, PrePruning
from dpcompile.training import PrivacyEngine


def one_epoch(triple: Any) -> None:
    """Each batch once."""
    module, optimizer, batches = triple
    for inputs, targets in batches:
        nn.functional.cross_entropy(module(inputs), targets).backward()
        optimizer.step()


def test_nobody_else_chooses_in_a_training() -> None:
    triple = made(network(), passes=[GradientDropping(0.5, seed=0)])
    triple[1].register_step_post_hook(lambda *_: triple[0].private.reselect())
    with pytest.raises(InvalidInput, match="is called by the optimizer"):
        one_epoch(triple)


def test_hooks_behind_the_step_see_what_was_put_back() -> None:
    model, seen = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    optimizer.register_step_post_hook(lambda *_: seen.append(model.get_parameter("0.weight").detach().clone()))
    triple = PrivacyEngine(seed=1).make_private(
        module=model, optimizer=optimizer, data_loader=loader(), noise_multiplier=1.0, passes=[GradientDropping(0.5, seed=0)]
    )
    module, private, batches = triple
    for inputs, targets in batches:
        before = model.get_parameter("0.weight").detach().clone()
        mask = module.private.program.selection.mask("0.weight").clone()
        nn.functional.cross_entropy(module(inputs), targets).backward()
        private.step()
        assert torch.equal(seen[-1][~mask], before[~mask]) and not torch.equal(seen[-1][mask], before[mask])


def test_released_gradients_are_those_that_were_released() -> None:
    model, kept = network(), list[torch.Tensor]()
    triple = made(model, passes=[GradientDropping(0.5, "released gradient", seed=0)])
    module, optimizer, batches = triple

    def replace(*_: object) -> None:
        gradient = model.get_parameter("0.weight").grad
        assert gradient is not None
        kept.append(gradient.clone())
        gradient.fill_(1e3)

    optimizer.register_step_pre_hook(replace)
    optimizer.register_step_post_hook(lambda inner, *_: inner.zero_grad())
    mask = module.private.program.selection.mask("0.weight").clone()
    inputs, targets = next(iter(batches))
    nn.functional.cross_entropy(module(inputs), targets).backward()
    optimizer.step()
    known = module.private.chooser.released
    assert len(known) == 4 and torch.equal(known["0.weight"][mask], kept[0][mask])


def test_parameters_that_are_not_updated_are_not_waited_for() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.get_submodule("2").parameters(), lr=0.1)
    with pytest.raises(InvalidInput, match=r"chooses among 0\.weight, which the optimizer does not update"):
        PrivacyEngine().make_private(module=model, optimizer=optimizer, data_loader=loader(), noise_multiplier=1.0,
                                     passes=[GradientDropping(0.5, "released gradient")])  # fmt: skip


def test_a_parameter_that_is_frozen_in_training_is_refused_before_anything_is_released() -> None:
    model = network()
    module, optimizer, batches = made(model, passes=[GradientDropping(0.5, seed=0)])
    inputs, targets = next(iter(batches))
    nn.functional.cross_entropy(module(inputs), targets).backward()
    model.get_parameter("0.weight").requires_grad_(False)
    with pytest.raises(InvalidInput, match="trained no more"):
        optimizer.step()
    assert optimizer.session.completed == 0 and not optimizer.accountant.ledger


ROWS = torch.arange(35).view(7, 5) % 2 == 0
OTHERS: dict[str, tuple[Any, Any]] = {
    "parameters": (
        GradientDropping(0.5, parameters=["0.weight"], seed=0),
        GradientDropping(0.5, parameters=["2.weight"], seed=0),
    ),
    "scope": (GradientDropping(0.5, scope="global", seed=0), GradientDropping(0.5, seed=0)),
    "digits of the rate": (GradientDropping(0.504, seed=0), GradientDropping(0.496, seed=0)),
    "masks": (PrePruning(masks={"0.weight": ROWS}), PrePruning(masks={"0.weight": ~ROWS})),
    "steps": (GradientDropping(0.5, every=2, seed=0), GradientDropping(0.5, seed=0)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_other_passes_is_refused_with_nothing_changed(name: str, tmp_path: Path) -> None:
    def run(choice: Any) -> tuple[PrivacyEngine, Any, nn.Module]:
        model, engine = network(), PrivacyEngine(seed=5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        triple = engine.make_private(
            module=model, optimizer=optimizer, data_loader=DataLoader(TensorDataset(*data()), batch_size=12),
            noise_multiplier=1.0, passes=[choice],
        )  # fmt: skip
        return engine, triple, model

    first, second = OTHERS[name]
    engine, triple, _ = run(first)
    finish(triple, 2)
    engine.save_checkpoint(path=tmp_path / "run.safetensors")
    other, _, model = run(second)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(InvalidInput, match="other passes"):
        other.load_checkpoint(path=tmp_path / "run.safetensors")
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert other.made is not None and not other.made[1].accountant.ledger
