"""The user's batch: nested positional and keyword arguments, flattened into tensors with and without example axis."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpcompile import torch_private
from dpcompile.fingerprint import of_value
from dpcompile.ir.errors import InvalidInput


@dataclass(frozen=True)
class Layout:
    """How a batch is put together.

    dims[i]: the example axis of leaf i, or None (shared tensor, or a constant that is not a tensor).
    constants: leaves that are not tensors, by position; they are part of the graph.
    """

    structure: Any
    paths: tuple[str, ...]
    dims: tuple[int | None, ...]
    constants: dict[int, Any]

    def rebuild(self, tensors: list[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments with these tensors in place."""
        rest = iter(tensors)
        leaves = [self.constants[i] if i in self.constants else next(rest) for i in range(len(self.paths))]
        args, kwargs = torch_private.unflatten(leaves, self.structure)
        return args, kwargs

    def tensor_dims(self) -> list[tuple[str, int | None]]:
        """Path and example axis of every tensor leaf."""
        pairs = zip(self.paths, self.dims, strict=True)
        return [pair for i, pair in enumerate(pairs) if i not in self.constants]


@dataclass(frozen=True)
class Batch:
    """One batch, flattened. `key` is everything that a captured graph relies on except the batch size."""

    layout: Layout
    tensors: list[Tensor]
    size: int
    key: tuple[Any, ...]


def flatten_batch(args: tuple[Any, ...], kwargs: dict[str, Any], batch_dim: Any) -> Batch:
    """Flatten a batch, find its size, and refuse batches whose example axes disagree.

    batch_dim: an int for all tensors, or a pytree prefix of the positional arguments (None = shared); keyword
    arguments take an int prefix, or 0 when the prefix is a tuple.
    """
    leaves, structure, text, paths, wanted = flattened(args, kwargs, batch_dim)
    constants = {i: leaf for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)}
    dims = tuple(example_axis(leaf, dim) for leaf, dim in zip(leaves, wanted, strict=True))
    sizes = {paths[i]: leaves[i].shape[dim] for i, dim in enumerate(dims) if dim is not None}
    if not sizes:
        raise InvalidInput("no tensor of the batch has an example axis; pass the inputs (and targets) as tensors")
    if len(set(sizes.values())) > 1:
        listing = ", ".join(f"{path}: {size}" for path, size in sizes.items())
        raise InvalidInput(
            f"the tensors of the batch disagree about the number of examples ({listing}). Make them equal, "
            "or say with batch_dim= which axis holds the examples (None for tensors that all examples share)."
        )
    layout = Layout(structure, paths, dims, constants)
    tensors = [dense(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
    leaf_keys = tuple(leaf_key(leaf, dim) for leaf, dim in zip(leaves, dims, strict=True))
    return Batch(layout, tensors, next(iter(sizes.values())), (text, leaf_keys))


def flattened(args: tuple[Any, ...], kwargs: dict[str, Any],
              batch_dim: Any) -> tuple[list[Any], Any, str, tuple[str, ...], list[Any]]:  # fmt: skip
    """Leaves, structure as it is and as text, the leaves' paths, and what batch_dim says of each."""
    if not kwargs and type(batch_dim) is int and all(type(leaf) is Tensor for leaf in args):
        return list(args), *structure_of_tensors(len(args)), [batch_dim] * len(args)
    leaves, structure = torch_private.flatten((args, kwargs))
    prefix = batch_dim if isinstance(batch_dim, tuple) and len(batch_dim) == 2 and isinstance(batch_dim[1], dict) else (
        batch_dim, batch_dim if isinstance(batch_dim, int) else 0)  # fmt: skip
    try:
        wanted = torch_private.broadcast_prefix(prefix, (args, kwargs)) if leaves else []
    except ValueError:
        raise InvalidInput(f"batch_dim={batch_dim!r} does not fit the structure of the batch: {structure}") from None
    return leaves, structure, str(structure), paths_of((args, kwargs)), wanted


@functools.lru_cache(maxsize=64)
def structure_of_tensors(count: int) -> tuple[Any, str, tuple[str, ...]]:
    """Structure, its text and paths of so many tensors as positional arguments: the usual batch, looked into once."""
    tree: tuple[tuple[int, ...], dict[str, Any]] = ((0,) * count, {})
    structure = torch_private.flatten(tree)[1]
    return structure, str(structure), paths_of(tree)


def paths_of(tree: Any) -> tuple[str, ...]:
    """The leaves' paths as a user writes them."""
    return tuple(path.replace("[0]", "args", 1) if path.startswith("[0]") else "kwargs" + path[3:]
                 for path in torch_private.leaf_paths(tree))  # fmt: skip


def traced_batch(example_batch: Any, batch_dim: Any) -> Batch:
    """The batch to trace with before the first call."""
    if not isinstance(example_batch, (tuple, list)):
        raise InvalidInput(f"example_batch must be a tuple of the step's arguments, got {type(example_batch).__name__}")
    flat = flatten_batch(tuple(example_batch), {}, batch_dim)
    if flat.size == 0:
        raise InvalidInput("example_batch holds no example; tracing needs at least one")
    return flat


def example_axis(leaf: Any, dim: Any) -> int | None:
    """The example axis of a leaf: none for constants, shared tensors and tensors without dimensions."""
    if dim is not None and (not isinstance(dim, int) or isinstance(dim, bool)):
        raise InvalidInput(f"batch_dim must be an integer for every tensor, or None for shared ones, got {dim!r}")
    if not isinstance(leaf, Tensor) or dim is None or leaf.dim() == 0:
        return None
    if not -leaf.dim() <= dim < leaf.dim():
        raise InvalidInput(f"batch_dim={dim} but a tensor of the batch has shape {list(leaf.shape)}")
    return dim % leaf.dim()


def dense(leaf: Tensor) -> Tensor:
    """The tensor without gaps or overlaps, so that its strides are a permutation's."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    is_permuted = leaf.dim() in formats and leaf.is_contiguous(memory_format=formats[leaf.dim()])
    return leaf.detach() if is_permuted else leaf.detach().contiguous()


def leaf_key(leaf: Any, dim: int | None) -> tuple[Any, ...]:
    """What the graph relies on for one leaf."""
    if not isinstance(leaf, Tensor):
        return type(leaf).__name__, of_value(leaf, {}, 0)
    sizes = tuple(size for axis, size in enumerate(leaf.shape) if axis != dim)
    return (sizes, dim, leaf.dtype, str(leaf.device), dense(leaf).is_contiguous(), leaf.requires_grad)


def checked_mask(mask: Tensor | None, batch: Batch) -> Tensor:
    """bool[B], all true by default."""
    device = batch.tensors[0].device
    if mask is None:
        return torch.ones(batch.size, dtype=torch.bool, device=device)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (batch.size,):
        raise InvalidInput(f"mask must be a bool tensor of shape [{batch.size}], one entry per example")
    return mask.to(device)


def chunks(batch: Batch, mask: Tensor, size: int | None) -> Iterator[tuple[list[Tensor], Tensor]]:
    """The batch in pieces of at most `size` examples."""
    dims = [dim for _, dim in batch.layout.tensor_dims()]
    step = size or batch.size
    for start in range(0, batch.size, step):
        length = min(step, batch.size - start)
        if length == batch.size:
            yield batch.tensors, mask
            continue
        pieces = [t if d is None else t.narrow(d, start, length).contiguous() for t, d in zip(batch.tensors, dims, strict=True)]
        yield pieces, mask[start : start + length]
