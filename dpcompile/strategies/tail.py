"""A site's linear tail, applied to every example: each operation lifted to one more leading dimension.

An operation without a row here is run once per example (always right, slow), and the report says so. torch.vmap would
cover more operations, but it fixes the batch size while tracing.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from dpcompile.ir.graph import callee, integer, operand_node, value
from dpcompile.ir.site import Site
from dpcompile.kernels import kept_part
from dpcompile.kernels.fallback import ExampleLoop, Place
from dpcompile.kernels.reduction import widen
from dpcompile.strategies.emitter import Emitter

aten = torch.ops.aten


def shifted(dim: int) -> int:
    """A dimension of the single value as one of the stacked values."""
    return dim + 1 if dim >= 0 else dim


def per_example_view(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Reshape behind the examples."""
    return x.reshape(-1, *sizes)


def per_example_expand(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Broadcast behind the examples; new dimensions come right behind them."""
    missing = len(sizes) - (x.dim() - 1)
    return x.reshape(x.shape[0], *(1,) * missing, *x.shape[1:]).expand(-1, *sizes)


def per_example_permute(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Reorder behind the examples."""
    rank = x.dim() - 1
    return x.permute(0, *(dim % rank + 1 for dim in dims))


def per_example_sum(
    x: Tensor, dims: Sequence[int] | None = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    """Sum over dimensions behind the examples."""
    wanted = [d % max(x.dim() - 1, 1) + 1 for d in dims] if dims else list(range(1, x.dim()))
    return x.sum(wanted, keepdim=keepdim, dtype=dtype) if wanted else x


def slice_filled(g: Tensor, sizes: Sequence[int], dim: int, start: int, end: int, step: int) -> Tensor:
    """Zeros with a slice filled, behind the examples."""
    result = g.new_zeros((g.shape[0], *sizes))
    return torch.slice_scatter(result, g, shifted(dim), start, end, step)


def select_filled(g: Tensor, sizes: Sequence[int], dim: int, index: int) -> Tensor:
    """Zeros with one index filled, behind the examples."""
    return torch.select_scatter(g.new_zeros((g.shape[0], *sizes)), g, dim % len(sizes) + 1, index)


def weight_norm_backward(grad: Tensor, v: Tensor, g: Tensor, norms: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Gradients of v and g of w = g v / |v|, per example (Salimans & Kingma 2016, eq. 3)."""
    others = [d + 1 for d in range(v.dim()) if d != dim]
    along = (grad * v).sum(others, keepdim=True)
    norms = norms.view_as(g)
    return (g / norms) * (grad - v * (along / norms**2)), along / norms


def padded_rank(x: Tensor, rank: int) -> Tensor:
    """A stacked value with dimensions of size 1 behind the examples, so that it broadcasts like the single value."""
    missing = rank - (x.dim() - 1)
    return x.reshape(x.shape[0], *(1,) * missing, *x.shape[1:]) if missing > 0 else x


def broadcasting(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A pointwise operation of stacked and shared values."""

    def lifted(left: Any, right: Any, left_rank: int, right_rank: int, **kwargs: Any) -> Tensor:
        rank = max(left_rank, right_rank)
        if left_rank >= 0 and isinstance(left, Tensor) and left.dim() == left_rank + 1:
            left = padded_rank(left, rank)
        if right_rank >= 0 and isinstance(right, Tensor) and right.dim() == right_rank + 1:
            right = padded_rank(right, rank)
        return operation(left, right, **kwargs)

    lifted.__name__ = lifted.__qualname__ = f"per_example_{operation.__name__}"
    lifted.__module__ = __name__
    return lifted


BINARY = {
    aten.add.Tensor: broadcasting(torch.add), aten.sub.Tensor: broadcasting(torch.sub),
    aten.mul.Tensor: broadcasting(torch.mul), aten.div.Tensor: broadcasting(torch.div),
}  # fmt: skip
PLAIN = (
    aten.neg.default,
    aten.clone.default,
    aten._to_copy.default,
    aten.mul.Scalar,
    aten.div.Scalar,
    operator.getitem,
)


def lift(node: fx.Node, stacked: Mapping[fx.Node, fx.Node], emitter: Emitter) -> fx.Node | None:
    """One operation of the tail on stacked values; None when no row covers it."""
    args: list[Any] = [lifted_operand(a, stacked, emitter) if isinstance(a, fx.Node) else a for a in node.args]
    first, target = args[0], node.target
    if target in BINARY and not node.kwargs:
        ranks = [rank_of(a) for a in node.args[:2]]
        return emitter.call(BINARY[target], args[0], args[1], *ranks)
    others_shared = all(a not in stacked for a in node.all_input_nodes if a is not node.args[0])
    if not others_shared or not isinstance(first, fx.Node):
        return None
    if target in PLAIN:
        return emitter.call_with(target, args, dict(node.kwargs))
    if target is aten.t.default:
        return emitter.call(aten.transpose.int, first, 1, 2) if rank_of(node) == 2 else first
    if target is aten.transpose.int:
        return emitter.call(aten.transpose.int, first, shifted(args[1]), shifted(args[2]))
    if target in (aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.squeeze.dim, aten.squeeze.dims,
                  aten.squeeze.default, aten.unsqueeze.default):  # fmt: skip
        return emitter.call(per_example_view, first, tuple(map(int, value(node).shape)))
    if target is aten.expand.default:
        return emitter.call(per_example_expand, first, tuple(map(int, value(node).shape)))
    if target is aten.permute.default:
        return emitter.call(per_example_permute, first, tuple(args[1]))
    if target in (aten.sum.dim_IntList, aten.sum.default):
        return emitter.call(per_example_sum, *args)
    if target is aten.slice_backward.default:
        return emitter.call(slice_filled, first, tuple(map(int, value(node).shape)), *args[2:])
    if target is aten.select_backward.default:
        return emitter.call(select_filled, first, tuple(map(int, value(node).shape)), *args[2:])
    if target in (aten.slice.Tensor, aten.select.int):
        return emitter.call(target, first, shifted(args[1] if len(args) > 1 else 0), *args[2:])
    if target is kept_part.keep:
        return emitter.call(target, *args)
    if target is kept_part.place:
        return emitter.call(target, first, args[1], shifted(args[2]), args[3])
    if target is kept_part.choose:
        return emitter.call(target, *args[:3], shifted(args[3]))
    if target is aten._weight_norm_interface_backward.default:
        return emitter.call(weight_norm_backward, *args)
    if target is aten.mm.default:
        return emitter.call(torch.matmul, *args)
    return None


def lifted_operand(node: fx.Node, stacked: Mapping[fx.Node, fx.Node], emitter: Emitter) -> fx.Node:
    """An operand's stacked values if it has them, else the operand itself, which all examples share."""
    return stacked[node] if node in stacked else wide(node, emitter)


def rank_of(argument: Any) -> int:
    """Dimensions of the single value; -1 for numbers."""
    return len(value(argument).shape) if isinstance(argument, fx.Node) else -1


def through_tail(site: Site, gradients: Mapping[fx.Node, fx.Node], emitter: Emitter) -> fx.Node:
    """The parameter's per-example gradients f[B, *shape] from those of its contractions."""
    stacked = {node: wide(own, emitter) for node, own in gradients.items()}
    several = set[fx.Node]()  # operations with several results that run once per example, each result by itself
    for node in site.tail:
        if narrows(node) and node.args[0] in stacked:
            stacked[node] = stacked[operand_node(node, 0)]
            continue
        if node.target is operator.getitem and node.args[0] in several:
            stacked[node] = looped(operand_node(node, 0), stacked, emitter, integer(node, 1))
            continue
        lifted = lift(node, stacked, emitter)
        if lifted is None and not isinstance(node.meta["val"], Tensor):
            several.add(node)
            continue
        stacked[node] = lifted if lifted is not None else looped(node, stacked, emitter)
    return stacked[site.gradient]


def copied_tail(site: Site, sums: Mapping[fx.Node, fx.Node], emitter: Emitter) -> fx.Node:
    """The parameter's clipped sum from those of its contractions: the tail is linear, so it runs once, on the sums."""
    copies: dict[fx.Node, fx.Node] = dict(sums)
    for node in site.tail:
        emitter.place = node.meta.get("module_path", ""), node.meta.get("source_line", "")
        if narrows(node) and node.args[0] in copies:
            copies[node] = copies[operand_node(node, 0)]
            continue
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: lifted_operand(n, copies, emitter))
        copies[node] = emitter.call_with(callee(node), args, kwargs)
    return copies[site.gradient]


def narrows(node: fx.Node) -> bool:
    """A conversion to a half type; left out, because norms and clipped sums stay in float32 to the end."""
    return node.target is aten._to_copy.default and node.kwargs.get("dtype") in (
        torch.bfloat16,
        torch.float16,
    )


def wide(node: fx.Node, emitter: Emitter) -> fx.Node:
    """A shared operand of a tail in the type of the sums."""
    fake = node.meta.get("val")
    is_half = isinstance(fake, Tensor) and fake.dtype in (torch.bfloat16, torch.float16)
    return emitter.call(widen, node) if is_half else node


def looped(node: fx.Node, stacked: Mapping[fx.Node, fx.Node], emitter: Emitter, index: int | None = None) -> fx.Node:
    """One operation of the tail, once per example; of several results the one at this index."""
    batched = [n for n in node.all_input_nodes if n in stacked]
    shared = [n for n in node.all_input_nodes if n not in stacked]
    places = {n: i for i, n in enumerate([*batched, *shared])}
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: Place(places[n]))
    fake = value(node) if index is None else node.meta["val"][index]
    loop = ExampleLoop(callee(node), args, kwargs, index, len(batched), tuple(int(size) for size in fake.shape))
    return emitter.call(loop, *(stacked[n] for n in batched), *(wide(n, emitter) for n in shared))
