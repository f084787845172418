"""How torch would run a convolution may depend on the batch size; what is emitted must not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import errors, expect
from standardised import Standardised, by_norm
from torch import nn
from zoo_case import squares

from dpcompile import dpcompile


def asking(own: Any, asked: list[bool]) -> Any:
    """Torch's choice of how to run a convolution, which asks for the batch size in float32, as torch 2.11 does on one thread."""

    def select(*args: Any, **options: Any) -> Any:
        images = args[0] if args else options["input"]
        if images.dtype == torch.float32:
            asked.append(bool(images.shape[0] >= 16))
        return own(*args, **options)

    return select


@pytest.mark.parametrize(("norm", "total"), [("fused", "bookkeep"), ("projected", "bookkeep")])
def test_kernels_in_float32_of_a_network_in_half_types_rely_on_no_batch_size(norm: str, total: str, monkeypatch: Any) -> None:
    torch.manual_seed(0)
    asked: list[bool] = []
    monkeypatch.setattr(torch._C, "_select_conv_backend", asking(torch._C._select_conv_backend, asked))
    layer = nn.Conv2d(3, 5, 3) if norm == "fused" else Standardised(nn.Conv2d(3, 5, 3), by_norm, has_gain=False)
    name = next(name for name, parameter in layer.named_parameters() if parameter.dim() == 4)
    model, x = layer.bfloat16(), torch.randn(5, 3, 8, 8, dtype=torch.bfloat16)
    right = expect(model, squares, (x,))
    private = dpcompile(model, loss=squares, strategy={name: (norm, total)}, max_grad_norm=right.max_grad_norm)
    assert max(errors(private(x), right).values()) < 0.1
    assert len(private(x[:1]).norms) == 1 and asked
