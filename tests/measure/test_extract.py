"""A site's option as a graph of its own computes what it computes in the step, and leaves the joint graph alone."""

from __future__ import annotations

import pytest
import torch
from captured import captured
from measured_layers import MODELS
from torch import nn
from torch.testing import assert_close
from zoo_case import squares

from dpcompile.cost.hardware import HARDWARE
from dpcompile.ir.printer import format_graph
from dpcompile.measure.extract import extract
from dpcompile.plan.select import options_of


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [1, 5])
def test_options_of_one_site_agree(name: str, size: int) -> None:
    model, draw = MODELS[name]
    made = captured(model, squares, draw(2))
    before, site = format_graph(made.joint), made.sites[0]
    options, _ = options_of(site, HARDWARE["cpu"], size)
    programs = [extract(made.joint, site, option.norm, option.sum) for option in options]
    assert format_graph(made.joint) == before
    operands = {node: tensor for p in programs for node, tensor in zip(p.operands, p.inputs(size), strict=True)}
    results = []
    for program in programs:
        found = program.module(*(operands[node] for node in program.operands))
        results.append((found[0], found[-1].clone()))
    for squared, total in results[1:]:
        assert_close(squared, results[0][0], rtol=1e-4, atol=1e-4)
        assert_close(total, results[0][1], rtol=1e-4, atol=1e-4)
    assert len(results) > 1 and results[0][0].shape == (size,)


def test_operands_have_the_strides_that_they_have_in_the_step() -> None:
    made = captured(nn.LSTM(3, 5), lambda m, x: m(x)[0].square().sum((0, 2)), torch.randn(7, 2, 3), batch_dim=1)
    site = made.site("weight_hh_l0")
    program = extract(made.joint, site, "materialize", "reuse")
    for node, tensor in zip(program.operands, program.inputs(2), strict=True):
        fake = node.meta["val"]
        assert tensor.shape[0] == fake.shape[0] or fake.shape[0] != 7
        order = sorted(range(tensor.dim()), key=tensor.stride)
        assert [tensor.stride(i) for i in order] == sorted(tensor.stride())
