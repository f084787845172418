"""What a row of the table of model families is, and the words to write one.

A family is one architecture, tiny and with random parameters, with a loss per example and a batch. Nothing is
downloaded. Classes of the transformers library are named by text: importing it takes seconds, and a class that an older
release does not have is a stated reason to leave its row out, not an error.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from zoo_case import Draw, Loss, inputs

SEED = 5


@dataclass(frozen=True)
class Family:
    """One architecture: how to build it, its loss, its batch, and what dpcompile says of it.

    needs: names of transformers that make() takes. refused: a pattern that the message of the refusal must match, empty for
    families that must be exact. evaluated: built in eval mode, because training mode draws random numbers that no loop can
    redraw or, as batch normalisation, mixes examples. package: what else has to be installed.
    """

    name: str
    kind: str
    make: Callable[[], nn.Module]
    loss: Loss
    batch: Callable[[int, torch.dtype], tuple[Any, ...]]
    needs: tuple[str, ...] = ()
    refused: str = ""
    evaluated: bool = False
    package: str = ""

    def __str__(self) -> str:
        return self.name

    def build(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The model in this type, the same parameters every time, none of them at a special value such as zero."""
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            model = self.make()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return model.to(dtype).train(not self.evaluated)

    def missing(self) -> str:
        """Why this family cannot be built here; empty if it can."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        if not self.needs:
            return ""
        library = importlib.import_module("transformers")
        absent = [name for name in self.needs if not hasattr(library, name)]
        version = importlib.metadata.version("transformers")
        return f"transformers {version} has no {' and no '.join(absent)}" if absent else ""


def pretrained(model: str, config: str, options: dict[str, Any]) -> Callable[[], nn.Module]:
    """A model of transformers from a configuration with these options and without dropout."""

    def make() -> nn.Module:
        library = importlib.import_module("transformers")
        return getattr(library, model)(without_dropout(getattr(library, config)(**options)))

    return make


def without_dropout(config: Any) -> Any:
    """The configuration, and those inside it, with every probability of dropping something at 0."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            without_dropout(value)
        elif "drop" in name and isinstance(value, (int, float)) and not isinstance(value, bool):
            setattr(config, name, type(value)(0))
        elif "drop" in name and isinstance(value, (list, tuple)):
            setattr(config, name, [0.0] * len(value))
    return config


def family(name: str, kind: str, model: str, config: str, options: dict[str, Any], loss: Loss, *draws: Draw,
           refused: str = "", evaluated: bool = False) -> Family:  # fmt: skip
    """A row with a model of transformers."""
    return Family(name, kind, pretrained(model, config, options), loss, inputs(*draws), (model, config), refused, evaluated)


def own(name: str, kind: str, make: Callable[[], nn.Module], loss: Loss, *draws: Draw, **more: Any) -> Family:
    """A row with a model that is written here."""
    return Family(name, kind, make, loss, inputs(*draws), **more)


def ones(*shape: int) -> Draw:
    """Numbers 1, i64[B, *shape]: a mask that hides nothing."""
    return lambda size, dtype, generator: torch.ones(size, *shape, dtype=torch.long)


def rectangles(high: int, length: int) -> Draw:
    """Boxes i64[B, length, 4] as (left, top, right, bottom) below `high`."""

    def draw(size: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        corners = torch.randint(0, high, (size, length, 2, 2), generator=generator)
        return torch.cat([corners.amin(2), corners.amax(2)], dim=-1)

    return draw


def prefixes(high: int, length: int) -> Draw:
    """Tokens i64[B, length] from 1 to high, and 0 behind each example's own length."""

    def draw(size: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        lengths = torch.randint(2, length + 1, (size, 1), generator=generator)
        tokens = torch.randint(1, high, (size, length), generator=generator)
        return torch.where(torch.arange(length) < lengths, tokens, 0)

    return draw


def with_images(high: int, image: int, patches: int, length: int) -> Draw:
    """Tokens i64[B, length] below high, the first of which are `patches` places for an image."""

    def draw(size: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        tokens = torch.randint(3, high, (size, length), generator=generator)
        tokens[:, :patches] = image
        return tokens

    return draw
