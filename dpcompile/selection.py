"""What is trained of every parameter, as tensors that compiled steps read: another selection of the same size needs no new
trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpcompile.ir.errors import InvalidInput

KINDS = ("index", "valid", "mask")
"""What is told of a parameter."""


@dataclass(frozen=True)
class Layout:
    """How the trained part of one parameter is told.

    dim, capacity: up to `capacity` indices along dim; None: all of it. varies: fewer of them may count. entries: a truth value
    for every entry besides. is_gone: nothing is trained, ever: the parameter has no gradient.
    """

    dim: int | None = None
    capacity: int = 0
    varies: bool = False
    entries: bool = False
    is_gone: bool = False

    def told_sizes(self, shape: torch.Size) -> tuple[int, ...]:
        """The sizes of a mask that says all there is to say: one where all entries along a dimension are alike."""
        return tuple(size if self.entries or dim == self.dim else 1 for dim, size in enumerate(shape))


class Selection(nn.Module):
    """The trained parts of some parameters; every other parameter is trained as a whole.

    layouts: {parameter: Layout}, fixed for as long as no step is traced anew. The values are buffers, which `select` overwrites.
    A mask takes a byte for every entry only where single entries are told; of rows or columns it holds those.
    """

    def __init__(self, layouts: Mapping[str, Layout], parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.layouts, self.shapes = dict(layouts), {name: tuple(parameters[name].shape) for name in layouts}
        for name, layout in self.layouts.items():
            parameter = parameters[name]
            if layout.dim is not None:
                start = torch.arange(layout.capacity, device=parameter.device)
                self.register_buffer(held("index", name), start)
                if layout.varies:
                    self.register_buffer(held("valid", name), torch.ones_like(start, dtype=torch.bool))
            kept, sizes = torch.zeros if layout.is_gone else torch.ones, layout.told_sizes(parameter.shape)
            self.register_buffer(held("mask", name), kept(sizes, dtype=torch.bool, device=parameter.device))

    def told(self, kind: str, name: str) -> Tensor | None:
        """A buffer, by one of KINDS: "index" i64[capacity], "valid" bool[capacity], "mask" bool, which expands to the shape."""
        return self._buffers.get(held(kind, name))

    def mask(self, name: str) -> Tensor | None:
        """bool[*shape], to be read only: which entries of a parameter are trained; None: all."""
        told = self.told("mask", name)
        return None if told is None else told.expand(self.shapes[name])

    def follow(self, parameters: Mapping[str, Tensor]) -> None:
        """Move what is told of a parameter to where the parameter is now."""
        for name in self.layouts:
            for kind in KINDS:
                told = self.told(kind, name)
                if told is not None and told.device != parameters[name].device:
                    self._buffers[held(kind, name)] = told.to(parameters[name].device)

    @torch.no_grad()
    def select(self, masks: Mapping[str, Tensor]) -> None:
        """Train these entries from now on; masks of which one does not fit its layout are refused, and change nothing."""
        told = [pair for name, mask in masks.items() for pair in self.checked(name, mask)]
        for buffer, value in told:
            buffer.copy_(value)

    def checked(self, name: str, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Buffers and what they will hold: the mask, and the indices along the layout's dimension that have any trained entry,
        filled up by others that do not count."""
        layout, current, shape = self.layouts[name], self.told("mask", name), self.shapes[name]
        assert current is not None
        if mask.shape != shape or mask.dtype != torch.bool:
            raise InvalidInput(f"the mask of {name} must be bool{list(shape)}, got {mask.dtype}{list(mask.shape)}")
        if layout.is_gone and bool(mask.any()):
            raise InvalidInput(f"{name} was pruned as a whole and has no gradient any more")
        if layout == Layout() and not bool(mask.all()):
            raise InvalidInput(f"{name} is trained as a whole, by every step that is compiled")
        if layout.dim is None:
            return [(current, mask)] if layout.entries else []
        used = lines(mask, layout.dim)
        spread = used.view([-1 if d == layout.dim else 1 for d in range(mask.dim())])
        count, whole = int(used.sum()), bool((mask == spread).all())
        if count > layout.capacity or (count < layout.capacity and not layout.varies) or not (whole or layout.entries):
            raise InvalidInput(f"the mask of {name} does not fit {layout}: {count} of {len(used)} along dimension {layout.dim}")
        order = torch.argsort(used.to(torch.int8), descending=True, stable=True)[: layout.capacity]
        told = mask if layout.entries else spread
        pairs = ((current, told), (self.told("index", name), order), (self.told("valid", name), used[order]))
        return [(buffer, value) for buffer, value in pairs if buffer is not None]

    def now(self) -> Trained:
        """What is trained now."""
        told = {name: mask for name in self.layouts if (mask := self.told("mask", name)) is not None}
        return Trained(told, self.shapes, {name: mask._version for name, mask in told.items()})


@dataclass(frozen=True)
class Trained:
    """What one step trains, by masks that the selection goes on to overwrite; versions: how often they were written to then.

    Copies and pickles have masks of their own, which nothing overwrites.
    """

    told: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    versions: Mapping[str, int]

    def mask(self, name: str) -> Tensor | None:
        """bool[*shape]: which entries of a parameter the step trained, None for all; refused once another part was chosen."""
        if name in self.overwritten():
            raise InvalidInput(
                f"another part of {name} has been chosen since this step: noise belongs where the step's own sums are. Add noise "
                "and update first, then call reselect()"
            )
        told = self.told.get(name)
        return None if told is None else told.clone().expand(self.shapes[name])  # writing to it changes no selection

    def overwritten(self) -> frozenset[str]:
        """Parameters of which another part was chosen since."""
        return frozenset(name for name, told in self.told.items() if told._version != self.versions[name])

    def __reduce__(self) -> Any:
        return copied, ({name: told.clone() for name, told in self.told.items()}, dict(self.shapes), self.overwritten())


def copied(told: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], overwritten: frozenset[str]) -> Trained:
    """What a copy or a pickle becomes; a step whose masks were overwritten before has none to give."""
    return Trained(told, shapes, {name: -1 if name in overwritten else mask._version for name, mask in told.items()})


def lines(mask: Tensor, dim: int) -> Tensor:
    """bool[n]: the indices along a dimension at which any entry is True."""
    others = [d for d in range(mask.dim()) if d != dim]
    return mask.any(dim=others) if others else mask


def held(kind: str, name: str) -> str:
    """The name of a buffer; those of modules hold no points."""
    return f"{kind} {name.replace('.', '/')}"
