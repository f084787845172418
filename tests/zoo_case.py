"""What a row of the zoo is, and the words to write one: losses, draws of inputs, constructors of cases."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Draw = Callable[[int, torch.dtype, torch.Generator], Any]

Loss = nn.Module | Callable[..., Tensor] | None


@dataclass(frozen=True)
class Case:
    """A model with its loss and batches.

    make() builds the model and batch(B, dtype), kwargs(B, dtype) draw inputs, the target last, all from fixed
    seeds. exercises: what a failure of this case would mean. contracts: some parameter's gradient is a
    contraction that a Gram norm serves. random: forward draws random numbers.
    """

    name: str
    make: Callable[[], nn.Module]
    loss: Loss
    batch: Callable[[int, torch.dtype], tuple[Any, ...]]
    exercises: str
    kwargs: Callable[[int, torch.dtype], dict[str, Any]] = lambda size, dtype: {}
    batch_dim: Any = 0
    slow: bool = False
    random: bool = False
    contracts: bool = True

    def __str__(self) -> str:
        return self.name

    def build(self, dtype: torch.dtype) -> tuple[nn.Module, Loss]:
        """A new model and its loss in this floating-point type."""
        loss = copy.deepcopy(self.loss).to(dtype) if isinstance(self.loss, nn.Module) else self.loss
        return self.make().to(dtype), loss


def squares(model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """Half the squared norm of each example's output: a loss whose gradient depends on every output."""
    return model(*args, **kwargs).square().flatten(1).sum(1) / 2


def squares_of_sequences(model: nn.Module, *args: Any) -> Tensor:
    """The same for outputs f[T, B, ...] with the example axis second."""
    return model(*args).transpose(0, 1).square().flatten(1).sum(1) / 2


def floats(*shape: int, positive: bool = False) -> Draw:
    """Normal numbers f[B, *shape]; their size differs from example to example, so that norms differ."""

    def draw(size: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        values = torch.randn(size, *shape, dtype=dtype, generator=generator)
        scale = 0.5 + torch.rand(size, *(1 for _ in shape), dtype=dtype, generator=generator)
        return (values * scale).abs() if positive else values * scale

    return draw


def integers(high: int, *shape: int, low: int = 0) -> Draw:
    """Indices or classes i64[B, *shape]."""
    return lambda size, dtype, generator: torch.randint(low, high, (size, *shape), generator=generator)


def labels(classes: int, length: int) -> Draw:
    """Classes i64[B, length], a third of them ignored (-100), always one that is not."""

    def draw(size: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        values = torch.randint(0, classes, (size, length), generator=generator)
        ignored = torch.rand(size, length, generator=generator) < 1 / 3
        ignored[:, 0] = False
        return values.masked_fill(ignored, -100)

    return draw


def prefix_mask(length: int) -> Draw:
    """A mask i64[B, length]: ones up to each example's own length, zeros after it."""

    def draw(size: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        lengths = torch.randint(2, length + 1, (size, 1), generator=generator)
        return (torch.arange(length) < lengths).long()

    return draw


def probabilities(*shape: int) -> Draw:
    """Distributions f[B, classes, ...] over the first axis after the batch."""
    return lambda size, dtype, generator: torch.randn(size, *shape, dtype=dtype, generator=generator).softmax(1)


def label_lists(classes: int) -> Draw:
    """Targets i64[B, classes] of a multi-label margin loss: labels up to the first -1, anything behind it."""

    def draw(size: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        labels = torch.rand(size, classes, generator=generator).argsort(1)
        end = torch.randint(0, classes + 1, (size, 1), generator=generator)
        return torch.where(torch.arange(classes) == end, -1, labels)

    return draw


def signs(*shape: int) -> Draw:
    """Targets of margin losses, -1 or 1, f[B, *shape]."""
    return lambda size, dtype, generator: (2 * torch.randint(0, 2, (size, *shape), generator=generator) - 1).to(dtype)


def booleans(*shape: int) -> Draw:
    """Zeros and ones, f[B, *shape]."""
    return lambda size, dtype, generator: torch.randint(0, 2, (size, *shape), generator=generator).to(dtype)


def sequence_first(draw: Draw) -> Draw:
    """The same with the example axis second."""
    return lambda size, dtype, generator: draw(size, dtype, generator).transpose(0, 1).contiguous()


def channels_last(draw: Draw) -> Draw:
    """The same values in channels_last memory format."""
    return lambda size, dtype, generator: draw(size, dtype, generator).contiguous(memory_format=torch.channels_last)


def shared(*shape: int) -> Draw:
    """A tensor without example axis."""
    return lambda size, dtype, generator: torch.ones(*shape, dtype=dtype)


def inputs(*draws: Draw) -> Callable[[int, torch.dtype], tuple[Any, ...]]:
    """A batch function: positional tensors, drawn in order from a fixed seed."""

    def batch(size: int, dtype: torch.dtype) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(7)
        return tuple(draw(size, dtype, generator) for draw in draws)

    return batch


def seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The same model every time, whatever the state of the global generator."""

    def build() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return make()

    return build


def layer(name: str, exercises: str, make: Callable[[], nn.Module], *draws: Draw, loss: Loss = squares, **more: Any) -> Case:
    """A row of LAYERS."""
    return Case(name, seeded(make), loss, inputs(*draws), exercises, **more)


def classifier(name: str, exercises: str, make: Callable[[], nn.Module], *draws: Draw, **more: Any) -> Case:
    """A row of NETWORKS with five classes and cross entropy."""
    return Case(name, seeded(make), nn.CrossEntropyLoss(), inputs(*draws, integers(5)), exercises, **more)


def criterion(name: str, loss: nn.Module, output: tuple[int, ...], target: Draw) -> Case:
    """A torch.nn criterion on outputs f[B, *output] of a small model."""
    flat = int(torch.tensor(output).prod())
    squash = (
        nn.Sigmoid()
        if isinstance(loss, nn.BCELoss)
        else nn.LogSoftmax(1)
        if isinstance(loss, (nn.NLLLoss, nn.KLDivLoss))
        else nn.Identity()
    )
    make = seeded(lambda: nn.Sequential(nn.Linear(3, flat), nn.Unflatten(1, output), squash))
    return Case(name, make, loss, inputs(floats(3), target), "per-example reduction of a criterion")
