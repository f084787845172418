"""What is kept or dropped together: single weights, rows, columns, blocks of them (heads), whole parameters.

A unit is a set of entries of one parameter, and of the bias that belongs to its rows: `numbers` gives every entry the number of
its unit. Scores of units are means over their entries; the k units with the largest scores are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from dpcompile.ir.errors import InvalidInput
from dpcompile.selection import Layout


@dataclass(frozen=True)
class Blocks:
    """`size` neighbouring rows (dim 0) or columns (dim 1): the heads of an attention layer are blocks of rows of its query, key
    and value weights and of columns of its output weight."""

    dim: int = 0
    size: int = 1


Granularity = str | Blocks
NAMES: Mapping[str, Blocks | None] = {
    "weights": None, "rows": Blocks(0), "channels": Blocks(0), "columns": Blocks(1), "layers": None,
}  # fmt: skip
"""rows: along the first dimension of a weight, the outputs of most layers, with their bias; channels: the same, for layers whose
rows are outputs; columns: along the second dimension; layers: whole parameters."""
INPUTS_FIRST = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Layers whose rows are inputs."""
OUTPUTS_FIRST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Bilinear, nn.MultiheadAttention)
"""Layers whose rows are outputs, each with its entry of the bias."""


@dataclass(frozen=True)
class Units:
    """The units of one parameter, called a layer here: blocks along `dim`, all entries by themselves (None), or one (whole).

    members: the parameters that are cut alike, the first of which has the shape; a bias is cut along its only dimension.
    """

    members: tuple[str, ...]
    shape: tuple[int, ...]
    dim: int | None
    size: int
    is_whole: bool = False

    @property
    def count(self) -> int:
        """How many units there are."""
        if self.is_whole:
            return 1
        return math.prod(self.shape) if self.dim is None else self.shape[self.dim] // self.size

    def scores(self, entries: Mapping[str, Tensor]) -> Tensor:
        """f64[count]: means of the entries' scores over each unit."""
        sums = torch.stack([self.per_unit(entries[name].double()) for name in self.members]).sum(0)
        return sums * self.count / max(sum(entries[name].numel() for name in self.members), 1)

    def eligible(self, masks: Mapping[str, Tensor]) -> Tensor:
        """bool[count]: units of which any entry is in the masks."""
        present = {name: masks[name].double() if name in masks else None for name in self.members}
        counts = [self.per_unit(mask) for mask in present.values() if mask is not None]
        return torch.stack(counts).sum(0) > 0 if len(counts) == len(present) else torch.ones(self.count, dtype=torch.bool)

    def is_cut(self, masks: Mapping[str, Tensor]) -> bool:
        """Whether the masks leave a part of some unit alone."""
        present = [masks[name] for name in self.members if name in masks]
        left = [self.per_unit(mask.double()) for mask in present]
        whole = [self.per_unit(torch.ones_like(mask, dtype=torch.float64)) for mask in present]
        shares = [count.cpu() / size.cpu().clamp(min=1) for count, size in zip(left, whole, strict=True)]
        shares += [torch.ones(self.count, dtype=torch.float64)] * (len(self.members) - len(present))
        table = torch.stack(shares)
        return bool(((table != table[0]) | ((table > 0) & (table < 1))).any())

    def per_unit(self, entries: Tensor) -> Tensor:
        """Sums of one member's entries over each unit."""
        if self.is_whole or self.dim is None:
            return entries.sum().view(1) if self.is_whole else entries.flatten()
        lines = entries.movedim(self.dim, 0).flatten(1).sum(1) if entries.dim() > 1 else entries
        return lines.view(self.count, self.size).sum(1)

    def masks(self, kept: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """{member: bool[*shape]} from bool[count]."""
        return {name: self.mask(kept, shapes[name]) for name in self.members}

    def mask(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        """One member's."""
        if self.is_whole:
            return kept.expand(shape) if shape else kept.view(())
        if self.dim is None:
            return kept.view(shape)
        lines, dim = kept.repeat_interleave(self.size), self.dim if len(shape) > 1 else 0
        return lines.view([-1 if d == dim else 1 for d in range(len(shape))]).expand(shape)

    def layout(self, most: int, varies: bool) -> Layout:
        """How the trained part is told if at most `most` units ever are: the members of one layer alike."""
        if most == 0:
            return Layout(is_gone=True)
        if self.is_whole and self.shape:
            return Layout(0, self.shape[0], varies=True)
        if self.dim is None:
            return Layout(entries=True)
        return Layout(self.dim, most * self.size, varies)


def units_of(
    parameters: Mapping[str, Tensor],
    wanted: Iterable[str],
    granularity: Granularity | Mapping[str, Granularity],
    owners: Mapping[str, nn.Module],
) -> list[Units]:
    """The units of every chosen parameter; `wanted`: names or globs, each of which must name something. owners: their modules."""
    names = chosen(list(parameters), wanted, [n for n, p in parameters.items() if p.dim() > 1])
    found, taken = [], set[str]()
    for name in names:
        if name not in taken:
            layer = cut(name, parameters, granularity_of(name, granularity), owners.get(name))
            taken |= set(layer.members)
            found.append(layer)
    if not found:
        raise InvalidInput(
            "no parameter is chosen: by default weights with two or more dimensions are; name others in parameters="
        )
    return found


def chosen(known: list[str], wanted: Iterable[str], default: list[str]) -> list[str]:
    """The names that the globs mean, in the model's order."""
    globs = list(wanted)
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in known):
            raise InvalidInput(f"parameters={glob!r} matches none of {', '.join(known)}")
    return [name for name in known if any(fnmatchcase(name, glob) for glob in globs)] if globs else default


def granularity_of(name: str, granularity: Granularity | Mapping[str, Granularity]) -> Granularity:
    """One parameter's, by name or the first glob that matches."""
    if not isinstance(granularity, Mapping):
        return granularity
    for glob, own in granularity.items():
        if fnmatchcase(name, glob):
            return own
    raise InvalidInput(f'granularity= says nothing of {name}; add its name, a glob, or "*"')


def cut(name: str, parameters: Mapping[str, Tensor], granularity: Granularity, owner: nn.Module | None) -> Units:
    """The units of one parameter, with its module's bias where rows are."""
    shape = tuple(parameters[name].shape)
    if isinstance(granularity, str) and granularity not in NAMES:
        raise InvalidInput(f"granularity={granularity!r} does not exist; use one of {', '.join(NAMES)}, or Blocks(dim, size)")
    blocks = granularity if isinstance(granularity, Blocks) else NAMES[granularity]
    if blocks is None:
        return Units((name,), shape, None, 1, is_whole=granularity == "layers")
    if blocks.size < 1 or blocks.dim not in (0, 1):
        raise InvalidInput(f"{blocks} is no block of rows (dim=0) or columns (dim=1)")
    if len(shape) <= blocks.dim or shape[blocks.dim] % blocks.size:
        raise InvalidInput(f"{name} of shape {list(shape)} cannot be cut into {blocks}; give another granularity= for it")
    if granularity == "channels" and has_inputs_first(owner):
        raise InvalidInput(
            f"the rows of {name}, a weight of {type(owner).__name__}, are inputs: ask for granularity rows (inputs) or columns "
            "(outputs, without their bias) there"
        )
    bias = bias_of(name, parameters, owner) if blocks.dim == 0 and len(shape) > 1 else None
    return Units((name,) if bias is None else (name, bias), shape, blocks.dim, blocks.size)


def has_inputs_first(owner: nn.Module | None) -> bool:
    """Whether the rows of a layer's weight are its inputs; GPT-2's Conv1D of transformers is such a layer."""
    return isinstance(owner, INPUTS_FIRST) or type(owner).__name__ == "Conv1D"


def bias_of(name: str, parameters: Mapping[str, Tensor], owner: nn.Module | None) -> str | None:
    """The bias with an entry for every row of a weight. Of a layer that is not known it is the one of that size, unless the rows
    may as well be inputs."""
    place, _, last = name.rpartition(".")
    bias = ".".join(part for part in (place, last.replace("weight", "bias")) if part)
    shape = parameters[name].shape
    if "weight" not in last or bias not in parameters or parameters[bias].shape != shape[:1] or has_inputs_first(owner):
        return None
    is_known = isinstance(owner, (*OUTPUTS_FIRST, nn.RNNBase, nn.RNNCellBase))
    return bias if is_known or shape[0] != shape[1] else None
