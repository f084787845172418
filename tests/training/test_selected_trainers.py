"""Passes given to the trainers of transformers and Lightning: what is pruned or dropped keeps its bits, and resuming goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hf_case import gpt2, trainer_for
from lightning_case import QUIET, Classifier, fit
from torch import Tensor, nn

from dpcompile import GradientDropping, PrePruning

pytestmark = [pytest.mark.filterwarnings(text) for text in (*QUIET, "ignore::UserWarning:torch.utils.data")]


def passes(weight: str) -> list[Any]:
    """Half of a weight's entries pruned, and of its rows a half dropped at random in every step."""
    return [
        PrePruning(0.5, "magnitude", parameters=[weight]),
        GradientDropping(0.5, granularity="rows", parameters=[weight], seed=0),
    ]


def copied(model: nn.Module) -> dict[str, Tensor]:
    """All parameters now."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def largest_half(weight: Tensor) -> Tensor:
    """What pruning leaves."""
    order = weight.abs().flatten().argsort(descending=True, stable=True)[: -(-weight.numel() // 2)]
    return torch.zeros(weight.numel(), dtype=torch.bool).index_fill(0, order, True).view(weight.shape)


def test_transformers(tmp_path: Path) -> None:
    name = "transformer.h.0.mlp.c_fc.weight"
    model = gpt2()
    before, left = copied(model), largest_half(model.get_parameter(name).detach())
    trainer = trainer_for(model, tmp_path, {"max_steps": 4}, compile_options={"passes": passes(name)})
    trainer.train()
    weight = model.get_parameter(name)
    assert not weight[~left].any() and bool((weight[left] != before[name][left]).any())
    assert all(not torch.equal(p, before[other]) for other, p in model.named_parameters() if other != name)


def test_transformers_resumes_with_the_same_parts(tmp_path: Path) -> None:
    name = "transformer.h.0.mlp.c_fc.weight"
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole, resumed = gpt2(), gpt2()
    first = trainer_for(whole, tmp_path / "whole", options, compile_options={"passes": passes(name)})
    first.train()
    second = trainer_for(resumed, tmp_path / "resumed", options, compile_options={"passes": passes(name)})
    second.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert all(torch.equal(p, resumed.get_parameter(other)) for other, p in whole.named_parameters())


def test_lightning(tmp_path: Path) -> None:
    module = Classifier()
    before, left = copied(module), largest_half(module.model.get_parameter("0.weight").detach())
    private = fit(module, tmp_path, {"passes": passes("0.weight")})
    weight = module.model.get_parameter("0.weight")
    assert not weight[~left].any() and bool((weight[left] != before["model.0.weight"][left].to(weight.dtype)).any())
    assert private.engine.get_epsilon(1e-3) > 0
