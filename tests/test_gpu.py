"""The zoo on a CUDA device, in both backends, against the float64 loop on the CPU (`make test-gpu`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import errors, expect
from torch import Tensor
from zoo import ZOO
from zoo_case import Case

from dpcompile import dpcompile, torch_private

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported"),
]
COMPILED = ("MLP", "CNN", "ViT", "linear on sequences", "LSTM", "GPT-2, sdpa")


def on_gpu(tree: Any) -> Any:
    """All tensors of a batch on the device."""
    leaves, structure = torch_private.flatten(tree)
    return torch_private.unflatten([leaf.cuda() if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure)


def worst_on_gpu(case: Case, backend: str) -> dict[str, float]:
    """Relative errors of a float32 step on the device."""
    model, loss = case.build(torch.float32)
    batch, kwargs = case.batch(3, torch.float32), case.kwargs(3, torch.float32)
    expected = expect(model, loss, batch, kwargs, case.batch_dim)
    private = dpcompile(model.cuda(), loss=loss, batch_dim=case.batch_dim, backend=backend, max_grad_norm=expected.max_grad_norm)
    step = private(*on_gpu(batch), **on_gpu(kwargs))
    moved = type(step)(
        step.losses.cpu(),
        step.norms.cpu(),
        step.clip_factors.cpu(),
        {name: gradient.cpu() for name, gradient in step.grads.items()},
        step.nonfinite.cpu(),
    )
    return errors(moved, expected)


@pytest.mark.parametrize("case", ZOO, ids=str)
def test_eager_step_on_the_device_equals_the_loop(case: Case) -> None:
    found = worst_on_gpu(case, "eager")
    assert max(found.values()) < 1e-4, found


@pytest.mark.parametrize("case", [case for case in ZOO if case.name in COMPILED], ids=str)
def test_compiled_step_on_the_device_equals_the_loop(case: Case) -> None:
    found = worst_on_gpu(case, "inductor")
    assert max(found.values()) < 1e-4, found
