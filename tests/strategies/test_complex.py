"""A complex parameter counts as its two real parts, under every norm that does not decline it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import errors, expect
from torch import Tensor, nn
from zoo_case import squares

from dpcompile import StrategyError, dpcompile
from dpcompile.kernels.masked import sqnorm_masked
from dpcompile.strategies import NORMS

Use = Callable[[Tensor, Tensor], Tensor]
"""(table, batch) -> complex outputs."""


class Complex(nn.Module):
    """A use of a complex table, which is a parameter itself or made of two real ones, seen through each part alone."""

    def __init__(self, table: Tensor, use: Use, is_whole: bool) -> None:
        super().__init__()
        parts = {"table": table} if is_whole else {"real": table.real.clone(), "imaginary": table.imag.clone()}
        self.parts = nn.ParameterDict({name: nn.Parameter(part) for name, part in parts.items()})
        self.scale = nn.Parameter(torch.arange(1.0, 6.0, dtype=torch.float64))
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        parts = self.parts
        table = parts["table"] if "table" in parts else torch.complex(parts["real"], parts["imaginary"])
        found = self.use(table, x)
        return torch.cat([found.imag * self.scale, found.real.square()], -1).flatten(1)


def product(table: Tensor, x: Tensor) -> Tensor:
    """A matrix product with one or several positions."""
    return x.to(table.dtype) @ table


def product_in_part(table: Tensor, x: Tensor) -> Tensor:
    """The same with some entries only."""
    return x.to(table.dtype) @ (table * (torch.arange(15).view(3, 5) % 2 == 0))


def product_twice(table: Tensor, x: Tensor) -> Tensor:
    """Two products with one table."""
    return product(table, x) + product(table, x.cos())


def rows(table: Tensor, ids: Tensor) -> Tensor:
    """Rows of the table."""
    return table[ids]


def rows_twice(table: Tensor, ids: Tensor) -> Tensor:
    """Rows of the table, looked up twice: gradients that point in one direction."""
    return table[ids] + table[ids.clone()]


USES: dict[str, tuple[Use, Tensor]] = {
    "product": (product, torch.randn(5, 3, dtype=torch.float64)),
    "products of sequences": (product, torch.randn(5, 3, 3, dtype=torch.float64)),
    "product in part": (product_in_part, torch.randn(5, 3, dtype=torch.float64)),
    "product twice": (product_twice, torch.randn(5, 2, 3, dtype=torch.float64)),
    "row": (rows, torch.randint(0, 3, (5, 1))),
    "row twice": (rows_twice, torch.randint(0, 3, (5, 1))),
    "rows": (rows, torch.randint(0, 3, (5, 7))),
    "many rows": (rows, torch.randint(0, 3, (5, 131))),
    "many rows twice": (rows_twice, torch.randint(0, 3, (5, 131))),
}
WAYS: dict[str, dict[str, Any]] = {
    "auto": {}, "naive": {"strategy": "naive"}, "chunks": {"microbatch": 1}, "two-pass": {"schedule": "two-pass"},
    "bookkeep": {"strategy": "bookkeep"}, "ghost": {"strategy": "ghost"},
    **{norm: {"strategy": {"parts.table": norm}} for norm in NORMS},
}  # fmt: skip


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("way", WAYS)
def test_a_complex_parameter_counts_as_its_two_parts(name: str, way: str) -> None:
    torch.manual_seed(0)
    (use, x), table = USES[name], torch.randn(3, 5, dtype=torch.complex128)
    right = expect(Complex(table, use, is_whole=False), squares, (x,), max_grad_norm=0.5)
    private = dpcompile(Complex(table, use, is_whole=True), loss=squares, max_grad_norm=0.5, **WAYS[way])
    try:
        step = private(x)
    except StrategyError:
        assert way not in ("auto", "naive", "chunks", "materialize")
        return
    assert torch.allclose(step.norms, right.norms, rtol=1e-12)
    sums = torch.complex(right.sums["parts.real"], right.sums["parts.imaginary"])
    assert torch.allclose(step.grads["parts.table"], sums, rtol=1e-9)
    assert torch.allclose(step.grads["scale"], right.sums["scale"], rtol=1e-9)


@pytest.mark.parametrize("name", USES)
def test_real_parameters_of_a_complex_table_count_by_themselves(name: str) -> None:
    torch.manual_seed(0)
    (use, x), table = USES[name], torch.randn(3, 5, dtype=torch.complex128)
    model = Complex(table, use, is_whole=False)
    step = dpcompile(model, loss=squares, max_grad_norm=0.5)(x)
    assert max(errors(step, expect(model, squares, (x,), max_grad_norm=0.5)).values()) < 1e-9


@pytest.mark.parametrize(("name", "norm"), [("products of sequences", "gram"), ("row twice", "cross")])
def test_formulas_of_real_numbers_decline(name: str, norm: str) -> None:
    use, x = USES[name]
    model = Complex(torch.randn(3, 5, dtype=torch.complex128), use, is_whole=True)
    with pytest.raises(StrategyError, match="the gradient is complex"):
        dpcompile(model, loss=squares, strategy={"parts.table": norm})(x)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_masked_outer_products_count_both_parts(dtype: torch.dtype) -> None:
    a, g, entries = torch.randn(4, 3, dtype=dtype), torch.randn(4, 5, dtype=dtype), torch.rand(5, 3) > 0.5
    right = torch.einsum("bp,bd->bpd", g.to(torch.complex128), a.to(torch.complex128)).abs().square()[:, entries].sum(1)
    torch.testing.assert_close(sqnorm_masked(a, g, entries)[0], right, rtol=1e-12, atol=0)
