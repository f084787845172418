"""The numeric check of independence: unsound graphs are caught even when the analysis is made to lie."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from zoo import ZOO
from zoo_calling import RANDOM
from zoo_case import Case, squares
from zoo_layers import spectral
from zoo_refused import BATCH_MIXING, Refused

from dpcompile import torch_private
from dpcompile.analysis import independence
from dpcompile.analysis.example_axis import example_axis, state_of
from dpcompile.analysis.examples import draw_examples, take
from dpcompile.analysis.independence import check_independence
from dpcompile.analysis.rounding import excess
from dpcompile.batch import Batch, flatten_batch
from dpcompile.capture import capture
from dpcompile.ir.axis import BATCH_SIZE, SHARED, SUMMED, Batched, Constant, Mixes, Position, Uniform
from dpcompile.ir.errors import CaptureError, DPCompileError, MixedExamplesError, UnsupportedOperation
from dpcompile.ir.graph import JointGraph, size_expression
from dpcompile.losses import Program, make_program
from dpcompile.rules.rule import Result, Use

aten = torch.ops.aten
States = dict[fx.Node, Result]
SOUND_NAMES = (
    "linear on sequences", "conv2d grouped", "module tie", "layer norm", "LSTM", "MLP", "nested inputs",
    "conv2d circular padding", "reentrant checkpoint", "ResNet-18", "GPT-2, sdpa", "BERT, eager",
    "token loss",
)  # fmt: skip
SOUND = [case for case in ZOO if case.name in SOUND_NAMES] + list(RANDOM)


@dataclass
class Captured:
    """Everything that the check takes."""

    joint: JointGraph
    states: States
    program: Program
    batch: Batch

    def check(self) -> None:
        """Run the check."""
        check_independence(self.joint, self.states, self.program, self.batch)

    def node(self, target: Any) -> fx.Node:
        """The first call of an operation."""
        return next(node for node in self.joint.graph.nodes if node.target is target)


def small(size: int = 4, dtype: torch.dtype = torch.float32) -> Captured:
    """Linear, tanh, linear; sound."""
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)
    program, batch = make_program(model, squares), flatten_batch((torch.randn(size, 3, dtype=dtype),), {}, 0)
    joint = capture(program, batch)
    return Captured(joint, example_axis(joint), program, batch)


class Plant:
    """Insert operations behind one node and let everything after it read the last of them."""

    def __init__(self, captured: Captured, after: fx.Node) -> None:
        self.captured, self.last, self.users = captured, after, list(after.users)

    def __call__(self, target: Any, *args: Any) -> fx.Node:
        """A new node; its state is forged to be what its shape suggests."""
        joint = self.captured.joint
        with joint.graph.inserting_after(self.last):
            self.last = joint.graph.call_function(target, args)
        with torch_private.tracing_context(joint.fakes):
            self.last.meta["val"] = target(*fx.node.map_arg(args, lambda node: node.meta["val"]))
        self.captured.states[self.last] = by_shape(self.last, joint)
        return self.last

    def finish(self, source: fx.Node) -> Captured:
        """Use the last node wherever `source` was used."""
        for user in self.users:
            user.replace_input_with(source, self.last)
        self.captured.joint.module.recompile()
        return self.captured


def by_shape(node: fx.Node, joint: JointGraph, below_batch: bool = False) -> Result:
    """The most innocent state that the shape of a node allows."""

    def one(fake: Any) -> Any:
        if not isinstance(fake, Tensor):
            return BATCH_SIZE if isinstance(fake, torch.SymInt) else SHARED
        for dim, size in enumerate(map(size_expression, fake.shape)):
            if joint.symbol in size.free_symbols:
                folded = size / joint.symbol
                return Batched(dim, 1, int(folded) if folded.is_Integer else 1)
        return SUMMED if below_batch else SHARED

    fakes = node.meta["val"]
    return tuple(map(one, fakes)) if isinstance(fakes, (tuple, list)) else one(fakes)


def forged(joint: JointGraph) -> States:
    """The analysis with every refusal replaced by the most innocent state."""
    states: States = {}
    inputs = iter(joint.inputs)
    for node in joint.graph.nodes:
        if node.op == "placeholder":
            item = next(inputs)
            states[node] = SHARED if item.dim is None else Batched(item.dim)
        elif node.op == "get_attr":
            states[node] = SHARED
        elif node.op == "call_function":
            try:
                states[node] = state_of(Use(node, states, joint.symbol))
            except (Mixes, MixedExamplesError, UnsupportedOperation, AssertionError):
                below = any(states[operand] not in (SHARED, BATCH_SIZE) for operand in node.all_input_nodes)
                states[node] = by_shape(node, joint, below)
    return states


def positions(add: Plant, h: fx.Node) -> fx.Node:
    """arange over the batch, as a column."""
    return add(aten.unsqueeze.default, add(aten.arange.default, add(aten.sym_size.int, h, 0)), 1)


PLANTS: dict[str, Callable[[Plant, fx.Node], Any]] = {
    "mean": lambda add, h: add(aten.sub.Tensor, h, add(aten.mean.dim, h, [0], True)),
    "amax": lambda add, h: add(aten.sub.Tensor, h, add(aten.amax.default, h, [0], True)),
    "div": lambda add, h: add(aten.div.Tensor, h, add(aten.sym_size.int, h, 0)),
    "add": lambda add, h: add(aten.add.Tensor, h, positions(add, h)),
    "eq": lambda add, h: add(aten.mul.Tensor, h, add(aten.eq.Scalar, positions(add, h), 0)),
    "roll": lambda add, h: add(aten.roll.default, h, [1], [0]),
    "flip": lambda add, h: add(aten.flip.default, h, [0]),
    "softmax": lambda add, h: add(aten._softmax.default, h, 0, False),
    "cumsum": lambda add, h: add(aten.cumsum.default, h, 0),
    "sort": lambda add, h: add(aten.sort.default, h, 0),
    "select": lambda add, h: add(aten.add.Tensor, h, add(aten.select.int, h, 0, 0)),
    "norm": lambda add, h: add(aten.div.Tensor, h, add(aten.linalg_vector_norm.default, h)),
    "slice": lambda add, h: add(aten.add.Tensor, h, add(aten.slice.Tensor, h, 0, 1, 2)),
    "native_batch_norm": lambda add, h: add(
        aten._native_batch_norm_legit.no_stats, h, None, None, True, 0.1, 1e-5
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTS)
@pytest.mark.parametrize("place", [aten.tanh.default, aten.tanh_backward.default], ids=["forward", "backward"])
def test_planted_mixture_is_caught_though_the_states_are_forged(name: str, place: Any) -> None:
    captured = small()
    source = captured.node(place)
    add = Plant(captured, source)
    last = PLANTS[name](add, source)
    if isinstance(captured.states[last], tuple):
        add(operator.getitem, last, 0)
    with pytest.raises(MixedExamplesError, match="what to do") as caught:
        add.finish(source).check()
    assert re.search(name if name not in ("add", "eq") else "unsqueeze|arange|add|eq", str(caught.value))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight", [1e-3, 1.0])
def test_weak_mixture_is_told_from_rounding(weight: float, dtype: torch.dtype) -> None:
    captured = small(dtype=dtype)
    h = captured.node(aten.tanh.default)
    add = Plant(captured, h)
    rolled = add(aten.roll.default, h, [1], [0])
    captured.states[rolled] = Batched(0)
    add(aten.add.Tensor, h, add(aten.mul.Tensor, rolled, weight))
    with pytest.raises(MixedExamplesError):
        add.finish(h).check()


def test_mixture_beside_the_large_numbers_of_a_mask_is_caught() -> None:
    captured = small()
    h = captured.node(aten.tanh.default)
    add = Plant(captured, h)
    padded = add(aten.constant_pad_nd.default, h, [0, 1], -1e9)
    add(aten.slice.Tensor, add(aten.roll.default, padded, [1], [0]), 1, 0, 5)
    with pytest.raises(MixedExamplesError, match="roll"):
        add.finish(h).check()


LIES = [SHARED, Uniform(0), Constant(0.5), Position(0), Batched(0, 1, 3), Batched(1)]


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_false_state_of_a_sound_value_is_caught(lie: Any) -> None:
    captured = small()
    captured.states[captured.node(aten.tanh.default)] = lie
    with pytest.raises(MixedExamplesError, match="tanh"):
        captured.check()


@pytest.mark.parametrize("operation", [aten.abs.default, aten.square.default, aten.sign.default], ids=str)
def test_gradient_that_is_no_sum_over_examples_is_caught(operation: Any) -> None:
    captured = small()
    gradient = captured.joint.output("gradient", "0.weight")
    assert gradient is not None
    add = Plant(captured, gradient)
    captured.states[add(operation, gradient)] = SUMMED
    with pytest.raises(MixedExamplesError, match="sum"):
        add.finish(gradient).check()


def test_losses_that_are_not_one_per_example_are_caught() -> None:
    captured = small()
    losses = captured.joint.output("losses")
    assert losses is not None
    captured.states[losses] = SUMMED
    with pytest.raises(MixedExamplesError, match="losses"):
        captured.check()


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("case", BATCH_MIXING, ids=str)
def test_numbers_alone_refuse_every_model_that_mixes_examples(case: Refused, size: int) -> None:
    program = make_program(case.make(), case.loss)
    batch = flatten_batch(case.batch(size, torch.float32), {}, 0)
    with pytest.raises(DPCompileError):
        joint = capture(program, batch)
        check_independence(joint, forged(joint), program, batch)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", SOUND, ids=str)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
def test_independent_examples_raise_no_alarm(case: Case, dtype: torch.dtype, size: int) -> None:
    model, loss = case.build(dtype)
    program = make_program(model, loss)
    batch = flatten_batch(case.batch(size, dtype), case.kwargs(size, dtype), case.batch_dim)
    joint = capture(program, batch)
    check_independence(joint, example_axis(joint), program, batch)


@pytest.mark.parametrize("case", SOUND, ids=str)
def test_large_models_are_checked_without_their_sums(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(independence, "SMALL", 0)
    test_independent_examples_raise_no_alarm(case, torch.float32, 2)


@pytest.mark.parametrize("name", PLANTS)
def test_mixtures_in_large_models_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(independence, "SMALL", 0)
    test_planted_mixture_is_caught_though_the_states_are_forged(name, aten.tanh.default)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_raise_no_alarm(dtype: torch.dtype) -> None:
    small(dtype=dtype).check()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0, 1e30])
def test_strange_values_in_the_users_batch_raise_no_alarm(value: float) -> None:
    captured = small()
    captured.batch.tensors[0].fill_(value)
    captured.check()


def test_sound_graph_that_is_not_the_model_is_refused() -> None:
    captured = small()
    captured.node(aten.tanh.default).target = aten.sin.default
    captured.joint.module.recompile()
    with pytest.raises(CaptureError, match="batch size"):
        captured.check()


def test_branch_on_one_example_is_found_behind_dropout() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.drop = nn.Linear(3, 5), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            h = self.drop(self.a(x))
            return h.tanh() if x.shape[0] == 1 else h

    program, batch = make_program(Branch(), squares), flatten_batch((torch.randn(4, 3),), {}, 0)
    joint = capture(program, batch)
    with pytest.raises(CaptureError, match=r"(?s)batch size.*test_independence\.py:\d+  return h\.tanh\(\)"):
        check_independence(joint, example_axis(joint), program, batch)


def test_draws_that_mix_examples_are_caught() -> None:
    program = make_program(nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5)), squares)
    batch = flatten_batch((torch.randn(4, 3),), {}, 0)
    joint = capture(program, batch)
    captured = Captured(joint, example_axis(joint), program, batch)
    mask = next(n for n in joint.graph.nodes if "bernoulli" in str(n.target) or "dropout" in str(n.target))
    source = mask if isinstance(mask.meta["val"], Tensor) else next(iter(mask.users))
    add = Plant(captured, source)
    add(aten.roll.default, source, [1], [0])
    with pytest.raises(MixedExamplesError, match="roll"):
        add.finish(source).check()


def test_gradients_buffers_and_random_state_stay_as_they_were() -> None:
    model = spectral(training=True)
    model.register_buffer("ones", torch.ones(1))
    program, batch = make_program(model, squares), flatten_batch((torch.randn(4, 5),), {}, 0)
    joint = capture(program, batch)
    before, state = [b.clone() for b in model.buffers()], torch.get_rng_state()
    check_independence(joint, example_axis(joint), program, batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("size", [0, 1, 2, 7])
def test_floats_differ_and_stay_in_range_and_integers_move_as_a_whole(size: int) -> None:
    x, ids, lengths = torch.rand(size, 5), torch.randint(0, 7, (size, 11)), torch.randint(0, 7, (size,))
    batch = Batch(flatten_batch((x, ids, lengths), {}, 0).layout, [x, ids, lengths], size, ())
    drawn, others = draw_examples(batch, 0), draw_examples(batch, 1)
    assert drawn[0].shape == (4, 5) and drawn[1].shape == (4, 11)
    assert len({tuple(row) for row in drawn[0].tolist()}) == 4 and not torch.equal(drawn[0], others[0])
    assert size == 0 or drawn[0].max() <= x.max()
    for ids_of, length in zip(drawn[1], drawn[2], strict=True):
        assert size == 0 or any(torch.equal(ids_of, row) and length == n for row, n in zip(ids, lengths, strict=True))


class Categories(nn.Module):
    """Columns of categories, of which each has its own table."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(count, 4) for count in (100, 5, 2))

    def forward(self, ids: Tensor) -> Any:
        """The sum of the rows."""
        return sum(table(ids[:, place]) for place, table in enumerate(self.tables))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_categories_stay_in_their_columns(size: int) -> None:
    ids = torch.tensor([[70, 3, 1], [50, 4, 0], [99, 2, 1]])[:size]
    program, batch = make_program(Categories(), squares), flatten_batch((ids,), {}, 0)
    joint = capture(program, batch)
    check_independence(joint, example_axis(joint), program, batch)


def test_examples_of_the_same_indices_are_told_apart() -> None:
    program, batch = (
        make_program(nn.Sequential(nn.Embedding(7, 5), nn.Tanh()), squares),
        flatten_batch((torch.tensor([1]),), {}, 0),
    )
    joint = capture(program, batch)
    captured = Captured(joint, example_axis(joint), program, batch)
    captured.check()
    h = captured.node(aten.tanh.default)
    add = Plant(captured, h)
    add(aten.roll.default, h, [1], [0])
    with pytest.raises(MixedExamplesError, match="roll"):
        add.finish(h).check()


def test_examples_keep_the_memory_format() -> None:
    x = torch.randn(5, 2, 3, 7).contiguous(memory_format=torch.channels_last)
    batch = flatten_batch((x,), {}, 0)
    drawn = draw_examples(batch, 0)
    assert drawn[0].is_contiguous(memory_format=torch.channels_last)
    assert take(drawn, [0], (2, 0))[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_unit_of_roundoff_is_rounding_and_a_percent_is_not(dtype: torch.dtype) -> None:
    x = torch.randn(7, 11, dtype=dtype)
    assert excess(x, x * (1 + torch.finfo(dtype).eps), []) == 0.0
    assert excess(x, x * 1.1, []) > 0.0
    hidden = torch.cat([x, torch.full((1, 11), -1e30, dtype=dtype)])
    assert excess(hidden, torch.cat([x * 1.1, hidden[-1:]]), []) > 0.0
    strange = torch.cat([x, torch.full((1, 11), torch.nan, dtype=dtype)])
    assert excess(strange, strange, []) == 0.0
