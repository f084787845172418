"""What a program keeps outside of its modules' attributes: constants compile and stay real, everything else is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from oracle import errors, expect
from torch import Tensor, nn
from zoo_case import squares
from zoo_layers import Using

from dpcompile import CaptureError, DPCompileError, dpcompile, torch_private

CACHE: dict[str, Any] = {}
LOG: list[Tensor] = []
COUNTS = {"calls": 0}


@pytest.fixture(autouse=True)
def empty_caches() -> Iterator[None]:
    """Every test begins with empty caches, and leaves none behind."""
    CACHE.clear()
    triangle.cache_clear()
    Held.mask = None
    yield
    CACHE.clear()
    LOG.clear()


@functools.cache
def triangle(n: int) -> Tensor:
    """f[n, n]"""
    return torch.tril(torch.ones(n, n, dtype=torch.float64))


class Held:
    """A cache in an attribute of a class, and one in a method."""

    mask: Any = None

    @functools.lru_cache  # noqa: B019  (what this file is about)
    def full(self, n: int) -> Tensor:
        """f[n]"""
        return torch.full((n,), 2.0, dtype=torch.float64)


HELD = Held()


def by_function(x: Tensor) -> Tensor:
    """functools.cache."""
    return x @ triangle(4)


def by_method(x: Tensor) -> Tensor:
    """functools.lru_cache on a method."""
    return x * HELD.full(4)


def by_global(x: Tensor) -> Tensor:
    """A dict of the file, filled with what depends on a shape only."""
    if "mask" not in CACHE:
        CACHE["mask"] = 2 * torch.ones_like(x[0])
    return x * CACHE["mask"]


def by_class(x: Tensor) -> Tensor:
    """An attribute of a class."""
    if Held.mask is None:
        Held.mask = torch.full((4,), 2.0, dtype=torch.float64)
    return x * Held.mask


def by_default(x: Tensor, held: dict[str, Tensor] = {}) -> Tensor:  # noqa: B006  (what this file is about)
    """A default argument."""
    if "mask" not in held:
        held["mask"] = torch.full((4,), 2.0, dtype=torch.float64)
    return x * held["mask"]


def by_closure() -> Callable[[Tensor], Tensor]:
    """A name of an enclosing function."""
    kept: Tensor | None = None

    def function(x: Tensor) -> Tensor:
        nonlocal kept
        if kept is None:
            kept = torch.full((4,), 2.0, dtype=torch.float64)
        return x * kept

    return function


def model_with(function: Callable[[Tensor], Tensor]) -> Any:
    """Two layers and a function between them."""
    return Using(lambda m, x: m.b(function(m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 3)).double()


CACHES = (by_function, by_method, by_global, by_class, by_default)


def check_one_trace(model: Any, loss: Callable[..., Tensor], check_examples: bool) -> Any:
    """Exact, compiled once, and the model is the user's own as before."""
    x = torch.randn(6, 4, dtype=torch.float64)
    private = dpcompile(model, loss=loss, max_grad_norm=0.1, check_examples=check_examples)
    for _ in range(3):
        found = errors(private(x), expect(model, loss, (x,), max_grad_norm=0.1))
        assert max(found.values()) < 1e-9, found
    assert len(private.steps.by_key) == 1
    assert not torch_private.is_fake(loss(model, x))
    return private


@pytest.mark.parametrize("check_examples", [True, False])
@pytest.mark.parametrize("function", [*CACHES, by_closure()], ids=lambda function: function.__qualname__.split(".")[0])
def test_a_cache_of_constants_compiles_and_stays_real(function: Any, check_examples: bool) -> None:
    model = model_with(function)
    check_one_trace(model, squares, check_examples)


def test_a_cached_constant_is_reported() -> None:
    private = check_one_trace(model_with(by_function), squares, True)
    assert any("a constant of shape [4, 4]" in note for note in private.report().notes)
    assert "[4, 4]" in str(private.certificate())


def test_a_longer_batch_fills_the_cache_with_real_tensors_too() -> None:
    model: Any = Using(lambda m, x: m.a(x[..., None]).squeeze(2) @ triangle(x.shape[1]), a=nn.Linear(1, 1)).double()
    private = dpcompile(model, loss=squares)
    for length in (3, 5):
        x = torch.randn(4, length, dtype=torch.float64)
        assert max(errors(private(x), expect(model, squares, (x,), max_grad_norm=1.0)).values()) < 1e-9
        assert not torch_private.is_fake(triangle(length))


@pytest.mark.parametrize("check_examples", [True, False])
def test_a_hook_that_hands_features_to_the_loss_compiles_once(check_examples: bool) -> None:
    store: dict[str, Tensor] = {}
    model = model_with(torch.tanh)
    model.a.register_forward_hook(lambda module, args, output: store.__setitem__("h", output))
    x = torch.randn(6, 4, dtype=torch.float64)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return squares(model, x) + store["h"].square().mean(1)

    private = dpcompile(model, loss=loss, max_grad_norm=0.1, check_examples=check_examples)
    step = private(x)
    assert private(x).losses.equal(step.losses) and len(private.steps.by_key) == 1
    assert not torch_private.is_fake(store["h"])
    assert max(errors(step, expect(model, loss, (x,), max_grad_norm=0.1)).values()) < 1e-9


def of_batch(x: Tensor) -> Tensor:
    """The first batch, kept for ever."""
    if "mean" not in CACHE:
        CACHE["mean"] = x.detach().mean()
    return x * CACHE["mean"]


def number_of_batch(x: Tensor) -> Tensor:
    """The same as a number."""
    if "mean" not in CACHE:
        CACHE["mean"] = x.detach().mean().item()
    return x * CACHE["mean"]


def list_of_batch(x: Tensor) -> Tensor:
    """The same as a number by way of a list."""
    if "mean" not in CACHE:
        CACHE["mean"] = x.detach().flatten().tolist()[0]
    return x * CACHE["mean"]


def array_of_batch(x: Tensor) -> Tensor:
    """The same as a number by way of an array."""
    if "mean" not in CACHE:
        CACHE["mean"] = float(x.detach().numpy().mean())
    return x * CACHE["mean"]


def logged(x: Tensor) -> Tensor:
    """A list that grows."""
    LOG.append(x.detach())
    return x


def counted(x: Tensor) -> Tensor:
    """A count that nothing reads."""
    COUNTS["calls"] += 1
    return x


def moving() -> Callable[[Tensor], Tensor]:
    """A moving average of the batches."""
    center = torch.zeros(4, dtype=torch.float64)

    def function(x: Tensor) -> Tensor:
        nonlocal center
        before, center = center, 0.9 * center + 0.1 * x.detach().mean(0)
        return x - before

    return function


def number_of_the_call_before(x: Tensor) -> Tensor:
    """A number of what the call before kept."""
    before = CACHE["mean"].item() if "mean" in CACHE else 0.0
    CACHE["mean"] = x.detach().mean()
    return x * (1 + before)


def list_of_the_call_before(x: Tensor) -> Tensor:
    """The same by way of a list."""
    before = CACHE["mean"].tolist() if "mean" in CACHE else 0.0
    CACHE["mean"] = x.detach().mean()
    return x * (1 + before)


KEEPING = (
    number_of_the_call_before,
    list_of_the_call_before,
    of_batch,
    number_of_batch,
    list_of_batch,
    array_of_batch,
    logged,
    counted,
    moving(),
)


@pytest.mark.parametrize("check_examples", [True, False])
@pytest.mark.parametrize("function", KEEPING, ids=lambda function: function.__qualname__.split(".")[0])
def test_what_is_kept_of_a_batch_is_refused_at_every_call(function: Any, check_examples: bool) -> None:
    private = dpcompile(model_with(function), loss=squares, check_examples=check_examples)
    for _ in range(2):
        with pytest.raises(CaptureError):
            private(torch.randn(6, 4, dtype=torch.float64))


@pytest.mark.parametrize("used", [False, True])
def test_a_loss_that_counts_its_calls_is_refused(used: bool) -> None:
    class Counting:
        def __init__(self) -> None:
            self.step = 0

        def __call__(self, model: nn.Module, x: Tensor) -> Tensor:
            self.step += 1
            return squares(model, x) * (self.step if used else 1)

    private = dpcompile(nn.Linear(4, 3), loss=Counting())
    for _ in range(2):
        with pytest.raises(CaptureError, match=r"every call changes what the next one finds: loss\.step"):
            private(torch.randn(6, 4))


class Kept(nn.Linear):
    """Tensors of the call before in a container within an attribute."""

    def __init__(self, kind: str) -> None:
        super().__init__(4, 3)
        self.kind, self.held, self.space = kind, {"list": [torch.zeros(())]}, SimpleNamespace(last=torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """f[B, 4] to f[B, 3]."""
        y = super().forward(x)
        if self.kind == "list":
            self.held["list"].append(y.detach().mean())
            return y + sum(self.held["list"][:-1])
        before, self.space.last = self.space.last, y.detach().mean()
        return y + before


@pytest.mark.parametrize("check_examples", [True, False])
@pytest.mark.parametrize("kind", ["list", "namespace"])
def test_a_nested_container_of_earlier_calls_is_refused(kind: str, check_examples: bool) -> None:
    private = dpcompile(Kept(kind), loss=squares, check_examples=check_examples)
    for _ in range(2):
        with pytest.raises(CaptureError):
            private(torch.randn(6, 4))


def test_weights_that_forward_writes_to_are_as_before_after_the_refusal() -> None:
    class Clamped(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.weight.data.clamp_(-0.01, 0.01)
            return super().forward(x)

    for model, x in ((Clamped(4, 3), torch.randn(6, 4)), (nn.Embedding(7, 5, max_norm=0.1), torch.randint(0, 7, (6, 3)))):
        before = model.weight.detach().clone()
        with pytest.raises(DPCompileError):
            dpcompile(model, loss=squares)(x)
        assert model.weight.equal(before)
