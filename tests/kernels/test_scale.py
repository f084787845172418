"""Per-example gradients of normalisation scales equal autograd's on single examples."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from dpcompile.kernels import scale


def group_norm(
    batch: int, channels: int, positions: tuple[int, ...], groups: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Operands of a group normalisation's backward, and (dx, scale, shift) example by example from autograd."""
    x, g = (torch.randn(batch, channels, *positions, dtype=torch.float64) for _ in range(2))
    weight, bias = torch.rand(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    sizes = batch, channels, x.shape[2:].numel(), groups
    _, mean, rstd = torch.ops.aten.native_group_norm(x, weight, bias, *sizes, 1e-5)
    rows = []
    for index in range(batch):
        one, scale, shift = (t.clone().requires_grad_() for t in (x[index : index + 1], weight, bias))
        out = F.group_norm(one, groups, scale, shift)
        rows.append(torch.autograd.grad(out, (one, scale, shift), g[index : index + 1]))
    expected = [torch.stack([row[place] for row in rows]) for place in range(3)] if rows else [t.new_zeros(0) for t in (x, x, x)]
    return (g, x, mean, rstd, weight), (expected[0].reshape(x.shape), *(e.reshape(batch, channels) for e in expected[1:]))


@pytest.mark.parametrize("form", [scale.group_norm_backward, scale.group_norm_backward_traceable])
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize(("channels", "positions", "groups"), [(6, (5,), 3), (4, (3, 5), 1), (3, (2, 3, 5), 3), (1, (2,), 1)])
def test_one_pass_gives_all_three_gradients(
    form: object, batch: int, channels: int, positions: tuple[int, ...], groups: int
) -> None:
    operands, expected = group_norm(batch, channels, positions, groups)
    assert callable(form)
    assert_close(tuple(form(*operands, groups)), expected, rtol=1e-9, atol=1e-11)


def test_other_layouts_and_half_types_fall_back_to_separate_passes() -> None:
    (g, x, mean, rstd, weight), expected = group_norm(3, 6, (5, 7), 3)
    last_g, last_x = (t.to(memory_format=torch.channels_last) for t in (g, x))
    results = scale.group_norm_backward(last_g, last_x, mean, rstd, weight, 3)
    assert_close(tuple(results), expected, rtol=1e-9, atol=1e-11, check_stride=False)
    g, x, mean, rstd, weight = (t.bfloat16() for t in (g, x, mean, rstd, weight))
    results = scale.group_norm_backward(g, x, mean, rstd, weight, 3)
    assert [r.dtype for r in results] == [torch.bfloat16, torch.float32, torch.float32]
