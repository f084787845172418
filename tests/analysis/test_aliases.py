"""Nodes that share memory when a step runs are in one class, on every model and for every batch size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from captured import captured, captured_case, rewritten, tensors
from meaning import results
from samples import SAMPLES
from torch import Tensor, fx, nn
from zoo import ZOO
from zoo_case import squares

from dpcompile import dpcompile, torch_private
from dpcompile.analysis.aliases import HIDDEN_VIEWS, Aliases
from dpcompile.batch import flatten_batch
from dpcompile.kernels import reach

CASES = [case for case in ZOO if not case.slow]


class Watching(fx.Interpreter):
    """Runs a graph and notes which nodes hold which piece of memory."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)  # nothing is freed, so equal addresses mean shared memory
        self.holders: dict[int, list[fx.Node]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """One node."""
        result = super().run_node(n)
        for tensor in tensors_in(result) if n.op != "output" else ():
            self.holders.setdefault(tensor.untyped_storage().data_ptr(), []).append(n)
        return result


def tensors_in(result: Any) -> Iterator[Tensor]:
    """The tensors with memory in a result; a tuple's parts are looked at one by one behind its getitems."""
    if isinstance(result, Tensor) and result.numel() > 0:
        yield result


@pytest.mark.parametrize("norm", ["fused", "materialize"])
def test_an_interval_shares_no_memory_with_what_it_reads(norm: str) -> None:
    private = dpcompile(
        nn.Linear(5, 3), loss=squares, strategy={"weight": (norm, "bookkeep")}, example_batch=(torch.randn(2, 7, 5),)
    )
    joint = private.ready().joint
    aliases = Aliases(joint)
    found = [node for node in joint.graph.nodes if node.target is reach.reach_products]
    assert found and all(aliases.class_of(node) != aliases.class_of(own) for node in found for own in node.all_input_nodes)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_sharing_is_unknown(case: Any) -> None:
    done = rewritten(captured_case(case.name))
    aliases = Aliases(done.joint)
    for size in (1, 3):
        batch = flatten_batch(case.batch(size, torch.float64), case.kwargs(size, torch.float64), case.batch_dim)
        watching = Watching(done.joint.module)
        held = len(tensors(done)) - len(done.batch.tensors)
        watching.run(*tensors(done)[:held], *batch.tensors, torch.ones(size, dtype=torch.bool),
                     torch.tensor(1.0, dtype=torch.float64), enable_io_processing=False)  # fmt: skip
        for nodes in watching.holders.values():
            assert len({aliases.class_of(node) for node in nodes}) == 1, nodes


@pytest.mark.parametrize("op", [op for op in SAMPLES if isinstance(op, torch_private.OpOverload)], ids=str)
def test_no_operation_returns_a_view_that_nobody_told(op: Any) -> None:
    declared = op._schema.name in HIDDEN_VIEWS or any(result.alias_info is not None for result in op._schema.returns)
    for sample in SAMPLES[op]:
        for examples in ((0,), (0, 1, 2)) if sample.run is None else ():
            given: list[Tensor] = []
            found = results(replace(sample, run=partial(recorded, op, given)), examples)
            taken = {tensor.untyped_storage().data_ptr() for tensor in given if tensor.numel()}
            assert declared or not any(t.untyped_storage().data_ptr() in taken for r in found for t in tensors_in(r)), sample


def recorded(op: Any, given: list[Tensor], *args: Any, **kwargs: Any) -> Any:
    """Run an operation and keep its tensor operands."""
    fx.node.map_aggregate((args, kwargs), lambda a: given.append(a) if isinstance(a, Tensor) else a)
    return op(*args, **kwargs)


def test_what_outlives_the_step_never_dies() -> None:
    done = rewritten(captured(nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2)), squares, torch.randn(2, 5)))
    aliases = Aliases(done.joint)
    last = done.joint.graph.output_node().prev
    for node in done.joint.graph.nodes:
        if node.op == "placeholder" or any(user.op == "output" for user in node.users):
            assert not aliases.dies_at(node, last)
