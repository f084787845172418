"""A workspace gives the kernel's result in memory that it keeps, grows, and never shares between threads."""

from __future__ import annotations

import copy
import threading

import torch
from torch import Tensor
from torch.testing import assert_close

from dpcompile.kernels import convolution, dense
from dpcompile.kernels.geometry import Geometry
from dpcompile.kernels.workspace import UNFOLDED, Workspace


def operands(batch: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Inputs and output gradients of a linear layer on sequences."""
    return torch.randn(batch, 3, 5, dtype=dtype), torch.randn(batch, 3, 7, dtype=dtype)


def test_results_equal_the_kernels_for_every_batch_size_in_any_order() -> None:
    workspace = Workspace(dense.materialize)
    for batch in (2, 5, 0, 1, 7):
        a, g = operands(batch)
        assert_close(workspace(a, g), dense.materialize(a, g))


def test_convolutions_in_several_blocks_and_groups() -> None:
    for geometry, channels in ((Geometry((3, 3), (1, 1), (1, 1), (1, 1), False, (0, 0), 1), 2),
                               (Geometry((3, 3), (2, 2), (1, 1), (1, 1), False, (0, 0), 2), 4),
                               (Geometry((3, 3), (2, 2), (1, 1), (1, 1), True, (1, 1), 1), 2)):  # fmt: skip
        workspace = Workspace(convolution.materialize_unfold)
        for size in (5, 401):
            x = torch.randn(3, channels, size, size, dtype=torch.float64)
            weight = torch.randn(4, channels // geometry.groups, 3, 3, dtype=torch.float64)
            if geometry.transposed:
                weight = weight.transpose(0, 1).contiguous()
            g = torch.ops.aten.convolution(x, weight, None, geometry.stride, geometry.padding, geometry.dilation,
                                           geometry.transposed, geometry.output_padding, geometry.groups)  # fmt: skip
            assert size < 100 or x[0].numel() * 9 > UNFOLDED
            assert_close(workspace(x, g, geometry), convolution.materialize_unfold(x, g, geometry))


def test_memory_is_kept_and_grows_only_when_it_must() -> None:
    workspace = Workspace(dense.materialize)
    large = workspace(*operands(5)).data_ptr()
    assert workspace(*operands(2)).data_ptr() == large == workspace(*operands(5)).data_ptr()
    assert workspace(*operands(5, torch.float32)).dtype == torch.float32


def test_half_types_are_materialised_in_float32() -> None:
    a, g = operands(2, torch.bfloat16)
    assert_close(Workspace(dense.materialize)(a, g), dense.materialize(a, g))


def test_threads_do_not_share_memory() -> None:
    workspace = Workspace(dense.materialize)
    found: dict[str, Tensor] = {}
    mine = workspace(*operands(3))
    other = threading.Thread(target=lambda: found.update(other=workspace(*operands(3))))
    other.start()
    other.join()
    assert found["other"].data_ptr() != mine.data_ptr()


def test_products_go_into_it_too() -> None:
    bias, left, right = torch.randn(7), torch.randn(3, 5), torch.randn(5, 7)
    mm, addmm = torch.ops.aten.mm.default, torch.ops.aten.addmm.default
    for operation, operands_of in ((mm, (left, right)), (addmm, (bias, left, right))):
        workspace = Workspace(operation)
        assert_close(workspace(*operands_of), operation(*operands_of))
        assert workspace.__name__ in ("mm", "addmm")


def test_a_copy_has_memory_of_its_own() -> None:
    workspace = Workspace(dense.materialize)
    twin = copy.deepcopy(workspace)
    assert workspace(*operands(3)).data_ptr() != twin(*operands(3)).data_ptr()
    assert twin.__name__ == "materialize"
