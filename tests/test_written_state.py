"""What forward writes elsewhere than into attributes: frozen parameters, registered tensors, .data, generators of Python; and
sizes of batches that no search looked at."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import errors, expect
from torch import Tensor, nn
from zoo_case import squares

from dpcompile import CaptureError, DPCompileError, dpcompile


class Twin(nn.Module):
    """A layer, its frozen teacher, a bank, and a forward that is given."""

    bank: Tensor
    late: Tensor | None

    def __init__(self, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.teacher = nn.Linear(4, 3), nn.Linear(4, 3).requires_grad_(False)
        self.register_buffer("bank", torch.zeros(2, 3))
        self.register_buffer("late", None)
        self.count, self.counts = torch.ones(3), [torch.ones(3)]
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def moved_teacher(m: Twin, x: Tensor) -> Tensor:
    """The teacher follows the layer."""
    with torch.no_grad():
        for a, b in zip(m.net.parameters(), m.teacher.parameters(), strict=True):
            b.mul_(0.9).add_(a, alpha=0.1)
    return m.net(x)


def moved_by_examples(m: Twin, x: Tensor) -> Tensor:
    """The teacher takes up the examples."""
    out = m.net(x)
    with torch.no_grad():
        m.teacher.bias.add_(out.mean())
    return out


def late_buffer(m: Twin, x: Tensor) -> Tensor:
    """What one batch leaves is taken from the next."""
    h = m.net(x)
    out = h if m.late is None else h - m.late
    m.late = h.detach().mean(0)
    return out


def registered(m: Twin, x: Tensor) -> Tensor:
    """The same under a name that was not there."""
    h = m.net(x)
    out = h - m.memory if hasattr(m, "memory") else h
    m.register_buffer("memory", h.detach().mean(0))
    return out


def queue_by_data(m: Twin, x: Tensor) -> Tensor:
    """A queue that is moved on by assignment to .data."""
    h = m.net(x)
    out = h + m.bank.sum(0)
    m.bank.data = torch.cat([m.bank[1:], h.detach()[:1]])
    return out


def chance_of_python(m: Twin, x: Tensor) -> Tensor:
    """A layer that is left out at times."""
    return m.net(x) * (2.0 if random.random() < 0.5 else 1.0)


def chance_of_numpy(m: Twin, x: Tensor) -> Tensor:
    """The same by NumPy."""
    return m.net(x) * float(np.random.rand())


def counting_tensor(m: Twin, x: Tensor) -> Tensor:
    """A plain tensor that counts the calls."""
    m.count.add_(1.0)
    return m.net(x) * m.count


def followed_tensor(m: Twin, x: Tensor) -> Tensor:
    """A plain tensor that takes up the examples."""
    h = m.net(x)
    m.count.copy_(h.detach().mean(0))
    return h


def followed_list(m: Twin, x: Tensor) -> Tensor:
    """The same in a list."""
    m.counts[0].add_(1.0)
    return m.net(x) * m.counts[0]


def states() -> tuple[Any, ...]:
    """Of Python's generator and of NumPy's."""
    numpy: Any = np.random.get_state()
    return random.getstate(), numpy[1].tolist(), numpy[2]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (moved_teacher, r"forward writes to teacher.weight, a parameter without requires_grad[\s\S]*test_written_state"),
        (moved_by_examples, "forward writes to teacher.bias"),
        (late_buffer, "keeps late for its next call"),
        (registered, "keeps memory for its next call"),
        (queue_by_data, "assigns to .data"),
        (counting_tensor, "writes in place to the attribute count"),
        (followed_tensor, "writes in place to a tensor"),
        (followed_list, "writes in place to the attribute counts"),
        (chance_of_python, "Python's random"),
        (chance_of_numpy, r"numpy.random"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_what_a_trace_cannot_repeat_is_refused_and_nothing_is_changed(call: Any, reason: str, check: bool) -> None:
    model, x = Twin(call), torch.randn(6, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = states()
    with pytest.raises(CaptureError, match=reason):
        dpcompile(model, squares, check_examples=check)(x)
    assert torch.equal(model.count, torch.ones(3)) and torch.equal(model.counts[0], torch.ones(3))
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert drawn == states()


def test_a_registered_cache_that_changes_nothing_is_exact() -> None:
    def cached(m: Twin, x: Tensor) -> Tensor:
        if m.late is None:
            m.late = torch.linspace(0, 1, 3, dtype=torch.float64)
        return m.net(x) * m.late

    model, x = Twin(cached).double(), torch.randn(5, 4, dtype=torch.float64)
    expected = expect(model, squares, (x,))
    step = dpcompile(model, squares, max_grad_norm=expected.max_grad_norm)(x)
    assert max(errors(step, expected).values()) < 1e-9 and model.late is None


@pytest.mark.parametrize(
    "way",
    [
        lambda x: x.numel() > 10_000_000,
        lambda x: x.shape[0] * x.shape[0] > 100_000_000,
        lambda x: x.shape[0] > 3_000_000,
    ],
    ids=["elements", "square", "beyond the search"],
)
def test_a_branch_at_any_batch_size_is_refused_at_last_when_such_a_batch_comes(way: Callable[[Tensor], bool]) -> None:
    def call(m: Twin, x: Tensor) -> Tensor:
        return m.net(x - x.mean(0) if way(x) else x)

    private = dpcompile(Twin(call), squares)
    with pytest.raises(DPCompileError, match="another path when the batch size is"):
        private(torch.randn(6, 4))
        private(torch.randn(3_000_001, 4))


def test_a_size_that_meets_other_conditions_and_gives_the_same_graph_is_taken() -> None:
    def call(m: Twin, x: Tensor) -> Tensor:
        return F.relu(m.net(x)) if x.shape[0] > 2_000_000 else m.net(x).relu()

    private = dpcompile(Twin(call), lambda m, x: m(x).sum(1), microbatch=2_000_001)
    private(torch.randn(6, 4))
    assert private(torch.randn(2_000_001, 4)).norms.shape == (2_000_001,)


def test_gradients_of_each_example_are_refused_at_a_size_that_was_not_traced() -> None:
    private = dpcompile(Twin(lambda m, x: m.net(x * 2 if x.shape[0] > 2_000_000 else x)), lambda m, x: m(x).sum(1))
    private.per_example_gradients(torch.randn(6, 4))
    with pytest.raises(DPCompileError, match="was not traced"):
        private.per_example_gradients(torch.randn(2_000_001, 4))


def test_a_clip_norm_whose_square_vanishes_is_refused() -> None:
    private = dpcompile(nn.Linear(4, 3), lambda m, x: 1e-24 * m(x).sum(1), max_grad_norm=1e-9)
    private.max_grad_norm = 1e-25
    with pytest.raises(DPCompileError, match="squares of gradients vanish"):
        private(torch.randn(6, 4))


def scaled_by_counter(m: Any, x: Tensor) -> Tensor:
    """A counter goes up, and the result is scaled by what else lies there."""
    m.bank.add_(1.0)
    scaled: Tensor = m.net(x) * m.other.sum()
    return scaled


SHARING: dict[str, Callable[[Any], dict[str, Any]]] = {
    "buffer": lambda m: {"other": nn.Buffer(m.bank.view(6))},
    "part": lambda m: {"other": nn.Buffer(m.bank[1])},
    "constant": lambda m: {"other": m.bank.view(6)},
    "weight": lambda m: {"bank": m.net.bias.data, "other": torch.ones(2)},
}


@pytest.mark.parametrize("shared", SHARING.values(), ids=SHARING)
def test_writes_to_memory_that_others_read_are_refused(shared: Callable[[Any], dict[str, Any]]) -> None:
    model: Any = Twin(scaled_by_counter)
    for name, tensor in shared(model).items():
        setattr(model, name, tensor)
    before = model.bank.clone()
    with pytest.raises(DPCompileError, match="lies in the same memory"):
        dpcompile(model, loss=squares)(torch.randn(3, 4))
    assert torch.equal(model.bank, before)


def test_buffers_side_by_side_in_one_storage_are_exact() -> None:
    model: Any = Twin(scaled_by_counter).double()
    whole = torch.ones(8, dtype=torch.float64)
    model.bank = whole[:6].view(2, 3)
    model.register_buffer("other", whole[6:])
    x = torch.randn(3, 4, dtype=torch.float64)
    expected = expect(model, squares, (x,))
    private = dpcompile(model, loss=squares, max_grad_norm=expected.max_grad_norm)
    assert max(errors(private(x), expected).values()) < 1e-9 and float(whole.sum()) == 14
