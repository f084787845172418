"""Prices: matrix FLOPs equal what torch counts on the emitted kernels; formulas grow with the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captured import Captured, captured, rewritten, tensors
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode
from zoo_case import squares

from dpcompile.cost.hardware import HARDWARE
from dpcompile.cost.prices import sizes_of
from dpcompile.ir.cost import NUMBERS
from dpcompile.plan.select import cost_of, options_of
from dpcompile.strategies import NORMS, SUMS

DENSE = {
    "linear on sequences": (nn.Linear(5, 3, bias=False), (7, 5)),
    "linear on long sequences": (nn.Linear(5, 3, bias=False), (283, 5)),
    "linear": (nn.Linear(5, 3, bias=False), (5,)),
}
CONVOLUTIONS = {
    "conv1d": (nn.Conv1d(3, 5, 3, bias=False), (3, 11)),
    "conv2d strided": (nn.Conv2d(3, 5, (3, 2), stride=2, bias=False), (3, 7, 11)),
    "conv2d grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1, bias=False), (4, 5, 7)),
}
MODELS = DENSE | CONVOLUTIONS


def model_of(name: str, size: int = 3) -> Captured:
    """A model of one layer, whose weight is the only site."""
    model, shape = MODELS[name]
    return captured(model, squares, torch.randn(size, *shape))


class Counter(fx.Interpreter):
    """Counts the matrix FLOPs of the package's own kernels."""

    flops = 0

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        with FlopCounterMode(display=False) as counter:
            result = super().call_function(target, args, kwargs)
        if getattr(target, "__module__", "").startswith("dpcompile."):
            self.flops += counter.get_total_flops()
        return result


def counted(model: Captured, strategy: tuple[str, str]) -> int:
    """FLOPs of norm and sum."""
    done = rewritten(model, {"weight": strategy})
    counter = Counter(done.joint.module)
    with torch.no_grad():
        counter.run(*tensors(done, 1.0))
    return counter.flops


WAYS = [
    (name, norm, total)
    for name in MODELS
    for norm in NORMS
    for total in SUMS
    if any((o.norm, o.sum) == (norm, total) for o in options_of(model_of(name).sites[0], HARDWARE["cpu"], 3)[0])
]


# torch counts the products of all channels with all channels for weight gradients and kernels of grouped convolutions, and the
# positions that a stride leaves over and that are cut off.
def is_counted(name: str, norm: str, total: str) -> bool:
    """Whether torch counts what is computed."""
    of_groups = name == "conv2d grouped" and ("single" in norm or total == "bookkeep")
    return "grouped" not in norm and not of_groups


CLAIMED = [way for way in WAYS if is_counted(*way)]


@pytest.mark.parametrize(("name", "norm", "total"), CLAIMED)
def test_matrix_flops_are_those_of_the_emitted_kernels(name: str, norm: str, total: str) -> None:
    model = model_of(name)
    found, _ = options_of(model.sites[0], HARDWARE["cpu"], 3)
    option = next(o for o in found if (o.norm, o.sum) == (norm, total))
    assert counted(model, (norm, total)) == option.cost.total("matrix_flops")


@pytest.mark.parametrize(("name", "norm", "total"), WAYS)
def test_prices_are_positive_and_grow_with_the_batch(name: str, norm: str, total: str) -> None:
    site = model_of(name).sites[0]
    one, two, many = (cost_of(site, NORMS[norm], SUMS[total]).at(sizes_of(site, size)) for size in (1, 2, 64))
    for number in NUMBERS:
        assert 0 <= one.total(number) <= two.total(number) <= many.total(number), number
    assert one.total("bytes_moved") > 0 and one.total("launches") > 0


@pytest.mark.parametrize("name", MODELS)
def test_prices_of_per_example_work_are_proportional_to_the_batch(name: str) -> None:
    site = model_of(name).sites[0]
    for norm in NORMS.values():
        if norm.declines(site) is None:
            one, two = (norm.cost(site).at(sizes_of(site, size)) for size in (8, 16))
            for number in ("matrix_flops", "other_flops"):
                assert two.total(number) == 2 * one.total(number)


def test_the_gram_norm_costs_more_where_sequences_are_long_and_materializing_where_layers_are_wide() -> None:
    long = captured(nn.Linear(5, 3, bias=False), squares, torch.randn(3, 131, 5)).sites[0]
    wide = captured(nn.Linear(131, 127, bias=False), squares, torch.randn(3, 5, 131)).sites[0]
    flops = {
        (site.shape, norm): NORMS[norm].cost(site).at(sizes_of(site, 3)).total("matrix_flops")
        for site in (long, wide)
        for norm in ("gram", "materialize")
    }
    assert flops[(3, 5), "gram"] > flops[(3, 5), "materialize"] and flops[(127, 131), "gram"] < flops[(127, 131), "materialize"]
