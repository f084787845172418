"""The captured graph on several batches at once (see `company`), node by node.

After every node the copies of an example are made equal again. So each node is judged on equal operands,
rounding does not pile up, and a comparison or an argmax cannot flip because of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from dpcompile import torch_private
from dpcompile.analysis.company import BASE, LAST, RUNS, SINGLE, Values, explain, pairs_of
from dpcompile.analysis.draws import draw_per_example, is_random, without_dropout
from dpcompile.analysis.rounding import SHRINKS, excess, is_close_in_norm, worst
from dpcompile.ir.axis import Batched, Shared, Summed, Uniform
from dpcompile.ir.graph import JointGraph, callee, integer, operand_node
from dpcompile.rules.rule import Result

FAILURES = (RuntimeError, IndexError, ValueError, TypeError)
THIN = 32  # about as many indices per dimension of a view are compared


class Lockstep:
    """One pass over the graph; `sums` says whether parameter gradients are judged too, or computed on
    `single` only; `varied` whether rows of trained tables get noise, because examples have the same indices.
    """

    def __init__(
        self, joint: JointGraph, states: Mapping[fx.Node, Result], inputs: Sequence[Values], sums: bool, varied: bool = False
    ) -> None:
        self.joint, self.states = joint, states
        self.tables = tables_of(joint) if varied else frozenset[fx.Node]()
        self.is_varied = False
        self.runs = RUNS if sums else RUNS[:LAST]
        self.inputs = iter(inputs)
        self.nodes = list(joint.graph.nodes)
        self.only_single = set() if sums else only_for_sums(self.nodes, states)
        self.values: dict[fx.Node, Values] = {}
        self.found: dict[fx.Node, str] = {}

    def run(self) -> None:
        """Fill `found` with the nodes at which an example is not independent, and why; keep the outputs'
        values.
        """
        last = {operand: node for node in self.nodes for operand in node.all_input_nodes}
        for number, node in enumerate(self.nodes):
            if node.op == "output":
                return
            try:
                self.values[node] = self.evaluate(node, number)
            except FAILURES as error:
                self.found[node] = f"the operation fails for some numbers of examples: {str(error).splitlines()[0]}"
                return
            why = self.disagreement(node)
            if why:
                self.found[node] = why
            for operand in node.all_input_nodes:
                if last[operand] is node:
                    del self.values[operand]
            if node not in last:
                del self.values[node]

    def evaluate(self, node: fx.Node, number: int) -> Values:
        """The node's value on every run; one and the same object where all operands are."""
        if node.op == "placeholder":
            return next(self.inputs)[: len(self.runs)]
        if node.op == "get_attr":
            return [attribute(self.joint.module, str(node.target))] * len(self.runs)
        operands = [self.values[operand] for operand in node.all_input_nodes]
        if all(is_one(values) for values in operands):
            if is_random(node):
                torch.manual_seed(number)
            return [self.call(node, SINGLE)] * len(self.runs)
        if node in self.only_single:
            return [None] * SINGLE + [self.call(node, SINGLE)]
        if is_random(node):
            return [self.draw(node, run, number) for run in range(len(self.runs))]
        values = [self.call(node, run) for run in range(len(self.runs))]
        return values if self.tables.isdisjoint(node.all_input_nodes) else self.with_noise(node, values)

    def with_noise(self, node: fx.Node, values: Values) -> Values:
        """Rows that examples look up in a trained table: other ones for every example, the same for its copies."""
        state = self.states[node]
        if node.target is not torch.ops.aten.embedding.default or not isinstance(state, Batched):
            return values
        self.is_varied = True
        for value, rows in zip(values, self.runs, strict=True):
            examples = value.unflatten(state.dim, (state.outer, len(rows), state.inner))
            for place, row in enumerate(rows):
                one = examples.select(state.dim + 1, place)
                noise = torch.randn(one.shape, generator=torch.Generator().manual_seed(row))
                one.add_(noise.to(one) * (one.abs().mean() / 2))
        return values

    def draw(self, node: fx.Node, run: int, number: int) -> Any:
        """The result of a random operation in one run; every example has the same draws in all runs."""
        values = self.run_values(node, run)
        return draw_per_example(node, self.states, self.joint.symbol, values, self.runs[run], number)

    def outputs(self, run: int) -> list[Any]:
        """The graph's outputs on one run."""
        returned = self.joint.graph.output_node().args[0]
        return [None if node is None else self.values[node][run] for node in returned]  # type: ignore[union-attr,index]

    def run_values(self, node: fx.Node, run: int) -> dict[fx.Node, Any]:
        """The operands of a node in one run."""
        return {operand: self.values[operand][run] for operand in node.all_input_nodes}

    def call(self, node: fx.Node, run: int, wide: bool = False) -> Any:
        """Call the operation on the operands of one run, in float64 if `wide`."""
        values = self.run_values(node, run)
        args, kwargs = fx.node.map_arg(without_dropout(node), lambda n: values[n])
        if wide:
            args, kwargs = fx.node.map_aggregate((args, kwargs), widened)
        result = callee(node)(*args, **kwargs)
        return result.zero_() if is_uninitialised(node) else result

    def disagreement(self, node: fx.Node) -> str:
        """Why the values of a node contradict its state; empty if they do not."""
        values, state = self.values[node], self.states[node]
        if isinstance(state, tuple):
            parts = [(s, [None if v is None else v[i] for v in values]) for i, s in enumerate(state)]
        elif is_known(node, state, self.states):
            return ""
        else:
            parts = [(state, values)]
        for index, (part, tensors) in enumerate(parts):
            why = self.judge(node, part, tensors, index if isinstance(state, tuple) else None)
            if why:
                return why
        return ""

    def judge(self, node: fx.Node, state: Any, values: Values, index: int | None) -> str:
        """Compare one result of a node over the runs, and make the copies of every example equal."""
        if is_one(values) or values[BASE] is None or (isinstance(state, Summed) and len(values) <= LAST):
            return ""
        if not isinstance(values[BASE], Tensor):
            same = not isinstance(state, Shared) or all(value == values[BASE] for value in values)
            return "" if same else f"a number that should be the same for every batch is {', '.join(map(str, values))}"
        try:
            pairs = list(pairs_of(state, values))
            if shares_memory(node):
                pairs = [(thinned(a), thinned(b)) for a, b in pairs]
        except FAILURES:
            shape, size = list(values[BASE].shape), len(RUNS[BASE])
            return f"a value that should be {state} has shape {shape} for a batch of {size}"
        operands = [t for n in node.all_input_nodes for t in self.values[n] if isinstance(t, Tensor)]
        unequal = [(a, b) for a, b in pairs if a.shape != b.shape or not torch.equal(a, b)]
        if any(a.shape != b.shape for a, b in unequal):
            return "the shape of an example's value depends on the other examples"
        rounded = self.rounded_sums(node) if isinstance(state, Summed) else []
        off = max((excess(a, b, operands, rounded) for a, b in unequal), default=0.0)
        if off > 0 and not self.shrinks(node, state, index, off):
            return explain(state, off)
        if isinstance(state, (Batched, Uniform, Shared, Summed)) and not shares_memory(node):
            for original, copy in unequal:
                copy.copy_(original)
        return ""

    def rounded_sums(self, node: fx.Node) -> list[Tensor]:
        """Operands of a tail: sums over the batch, which equal the sum of the parts' sums up to rounding
        only.
        """
        sums = [self.values[n][BASE] for n in node.all_input_nodes if isinstance(self.states[n], Summed)]
        return [t for t in sums if isinstance(t, Tensor) and t.is_floating_point()]

    def shrinks(self, node: fx.Node, state: Any, index: int | None, off: float) -> bool:
        """Whether a deviation is rounding: computed again in float64 it all but vanishes."""
        fake = node.meta["val"] if index is None else node.meta["val"][index]
        if not (fake.dtype.is_floating_point or fake.dtype.is_complex) or fake.dtype in (
            torch.float64,
            torch.complex128,
        ):
            return False
        try:
            again = [self.call(node, run, wide=True) for run in range(len(self.runs))]
        except FAILURES:  # no float64 kernel, as for fused attention on a GPU, whose sums have no fixed order
            values = self.values[node] if index is None else [value[index] for value in self.values[node]]
            return all(is_close_in_norm(a, b) for a, b in pairs_of(state, values))
        wide = again if index is None else [value[index] for value in again]
        return worst(pairs_of(state, wide)) <= SHRINKS * off


def tables_of(joint: JointGraph) -> frozenset[fx.Node]:
    """Trained parameters."""
    placeholders = joint.graph.find_nodes(op="placeholder")
    return frozenset(node for item, node in zip(joint.inputs, placeholders, strict=True) if item.kind == "parameter")


def only_for_sums(nodes: Sequence[fx.Node], states: Mapping[fx.Node, Result]) -> set[fx.Node]:
    """Summed nodes that nothing but other such nodes reads: contractions and tails of parameter gradients."""
    found: set[fx.Node] = set()
    for node in reversed(nodes):
        if isinstance(states.get(node), Summed) and all(user.op == "output" or user in found for user in node.users):
            found.add(node)
    return found


def is_one(values: Values) -> bool:
    """Whether all runs hold the same tensor, or an equal number."""
    first = values[BASE]
    if isinstance(first, (int, float)) and not isinstance(first, bool):
        return all(isinstance(value, (int, float)) and value == first for value in values)
    return all(value is first for value in values)


def is_known(node: fx.Node, state: Result, states: Mapping[fx.Node, Result]) -> bool:
    """Picking one of several results was judged with them, if the state is the one they were judged by."""
    if node.target is not getitem:
        return False
    before = states[operand_node(node, 0)]
    return isinstance(before, tuple) and before[integer(node, 1)] == state


def is_uninitialised(node: fx.Node) -> bool:
    """Whether a result holds whatever the memory held; the check sees zeros."""
    return isinstance(node.target, torch_private.OpOverload) and "empty" in node.target._schema.name


def shares_memory(node: fx.Node) -> bool:
    """Whether a result is a view of an operand, whose examples were made equal already."""
    if not isinstance(node.target, torch_private.OpOverload):
        return True
    return any(result.alias_info is not None for result in node.target._schema.returns)


def thinned(view: Tensor) -> Tensor:
    """A regular subset of a view: its numbers were judged already, what is left to judge is their layout."""
    for dim, size in enumerate(view.shape):
        if size > THIN:
            view = view[(slice(None),) * dim + (slice(None, None, size // THIN),)]
    return view


def widened(argument: Any) -> Any:
    """Floating-point tensors and types in float64, complex ones in complex128."""
    if isinstance(argument, torch.dtype):
        return torch.float64 if argument.is_floating_point else torch.complex128 if argument.is_complex else argument
    if not isinstance(argument, Tensor):
        return argument
    return (
        argument.double()
        if argument.is_floating_point()
        else argument.to(torch.complex128)
        if argument.is_complex()
        else argument
    )


def attribute(module: fx.GraphModule, path: str) -> Any:
    """A constant of the graph."""
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name)
    return found
