"""What is trained of every parameter, as tensors that compiled steps read: another selection of the same size needs no new
trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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


class Selection(nn.Module):
    """The trained parts of some parameters; every other parameter is trained as a whole.

    layouts: {parameter: Layout}, fixed for as long as no step is traced anew. The values are buffers, which `select` overwrites.
    """

    def __init__(self, layouts: Mapping[str, Layout], parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.layouts = dict(layouts)
        for name, layout in self.layouts.items():
            parameter = parameters[name]
            if layout.dim is not None:
                start = torch.arange(layout.capacity, device=parameter.device)
                self.register_buffer(held("index", name), start)
                if layout.varies:
                    self.register_buffer(held("valid", name), torch.ones_like(start, dtype=torch.bool))
            kept = torch.zeros if layout.is_gone else torch.ones
            self.register_buffer(held("mask", name), kept(parameter.shape, dtype=torch.bool, device=parameter.device))

    def told(self, kind: str, name: str) -> Tensor | None:
        """A buffer, by one of KINDS: "index" i64[capacity], "valid" bool[capacity], "mask" bool[*shape]."""
        return self._buffers.get(held(kind, name))

    def mask(self, name: str) -> Tensor | None:
        """bool[*shape]: which entries of a parameter are trained; None: all."""
        return self.told("mask", name)

    def follow(self, parameters: Mapping[str, Tensor]) -> None:
        """Move what is told of a parameter to where the parameter is now."""
        for name in self.layouts:
            for kind in KINDS:
                told = self.told(kind, name)
                if told is not None and told.device != parameters[name].device:
                    self._buffers[held(kind, name)] = told.to(parameters[name].device)

    @torch.no_grad()
    def select(self, masks: Mapping[str, Tensor]) -> None:
        """Train these entries from now on; a mask that does not fit its parameter's layout is refused."""
        for name, mask in masks.items():
            layout, current = self.layouts[name], self.mask(name)
            assert current is not None
            if mask.shape != current.shape or mask.dtype != torch.bool:
                raise InvalidInput(f"the mask of {name} must be bool{list(current.shape)}, got {mask.dtype}{list(mask.shape)}")
            if layout.is_gone and bool(mask.any()):
                raise InvalidInput(f"{name} was pruned as a whole and has no gradient any more")
            current.copy_(mask)
            if layout.dim is not None:
                self.select_along(name, layout, mask)

    def select_along(self, name: str, layout: Layout, mask: Tensor) -> None:
        """The indices along the layout's dimension that have any trained entry, filled up by others that do not count."""
        assert layout.dim is not None
        others = [d for d in range(mask.dim()) if d != layout.dim]
        used = mask.any(dim=others) if others else mask
        count = int(used.sum())
        whole = bool((mask == used.view([-1 if d == layout.dim else 1 for d in range(mask.dim())])).all())
        if count > layout.capacity or (count < layout.capacity and not layout.varies) or not (whole or layout.entries):
            raise InvalidInput(f"the mask of {name} does not fit {layout}: {count} of {len(used)} along dimension {layout.dim}")
        order = torch.argsort(used.to(torch.int8), descending=True, stable=True)[: layout.capacity]
        index, valid = self.told("index", name), self.told("valid", name)
        assert index is not None
        index.copy_(order)
        if valid is not None:
            valid.copy_(used[order])


def held(kind: str, name: str) -> str:
    """The name of a buffer; those of modules hold no points."""
    return f"{kind} {name.replace('.', '/')}"
