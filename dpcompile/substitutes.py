"""Functions of torch that are traced in another form than their own, with the same values."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dpcompile import torch_private
from dpcompile.ir.errors import CaptureError, UnsupportedOperation, refusal
from dpcompile.kernels.bags import follows_batch
from dpcompile.kernels.batch_norm import BATCH_NORM
from dpcompile.kernels.ctc import traced_ctc_loss
from dpcompile.kernels.matrix_exponential import matrix_exp
from dpcompile.provenance import caller


class DenseGradients(TorchFunctionMode):
    """Lookups with sparse=True get dense gradients: a sparse one would be summed before it could be clipped."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        place = {torch.embedding: 4, F.embedding: 6}.get(func)
        if func in (F.embedding, F.embedding_bag, torch.embedding):
            refuse_max_norm(func, args, kwargs)
        if place is not None:
            args, kwargs = args[:place], {**kwargs, "sparse": False}
        return func(*args, **kwargs)


def refuse_max_norm(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Renormalised tables are written to by the batch that looks rows up."""
    given = args[3] if func is not torch.embedding and len(args) > 3 else kwargs.get("max_norm")
    if given is not None:
        raise UnsupportedOperation(
            refusal(
                f"embedding with max_norm={given}",
                "",
                "the rows that the batch looks up are rescaled in place, so that the parameter itself carries the examples",
                "leave max_norm out, and rescale the whole table outside the step",
            )
        )


class Substitutes(TorchFunctionMode):
    """Functions in elementary operations, mostly because torch's own fix the batch size while they are traced."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == SET_DATA:
            refuse_data()
        if isinstance(kwargs.get("generator"), torch.Generator):
            refuse_generator(func)
        return SUBSTITUTES.get(func, func)(*args, **kwargs)


SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]


def refuse_data() -> None:
    """Assignment to .data happens behind the trace's back."""
    raise CaptureError(
        refusal(
            "forward assigns to .data of a tensor",
            caller(),
            "that leaves no operation in the graph, so that the tensor would be the old one again at the next step",
            "write to a buffer in place (copy_), or change the tensor outside of forward",
        )
    )


def refuse_generator(func: Any) -> None:
    """A torch.Generator would stand in the graph as one object that goes on from step to step, wherever the program makes it."""
    raise CaptureError(
        refusal(
            f"{getattr(func, '__name__', func)} draws from a torch.Generator of the program's own",
            caller(),
            "making and seeding it is Python, of which a traced graph keeps nothing: its numbers would be others than forward's",
            "leave generator= out (torch.manual_seed then seeds the draw), or draw outside and give the numbers as an argument",
        )
    )


def pool(own: Callable[..., Tensor], count: int) -> Callable[..., Tensor]:
    """Adaptive pooling of the last `count` dimensions, to a single place as the mean that it is: for permuted inputs torch
    rewrites the strides of that mean in place, and the gradient of such a rewriting is a scatter over the whole batch's storage.
    """

    def pooled(input: Tensor, output_size: Any) -> Tensor:
        sizes = output_size if isinstance(output_size, (tuple, list)) else [output_size]
        is_global = len(sizes) > 0 and all(map(is_one, sizes))
        return input.mean([-place for place in range(1, count + 1)], keepdim=True) if is_global else own(input, output_size)

    return pooled


def soft_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """F.cross_entropy for targets f[B, classes, ...] that are distributions; torch's own for classes, for every other reduction
    than "none", and for bad shapes, which it reports."""
    is_soft = target.is_floating_point() and input.dim() == target.dim() >= 2
    if reduction != "none" or size_average is not None or reduce is not None or not is_soft:
        return F.cross_entropy(input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)
    smooth = target * (1 - label_smoothing) + label_smoothing / input.shape[1] if label_smoothing else target
    if weight is not None:
        smooth = smooth * weight.view(-1, *[1] * (input.dim() - 2))
    return -(F.log_softmax(input, 1) * smooth).sum(1)


def multilabel_margin_loss(
    input: Tensor, target: Tensor, size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean"
) -> Tensor:
    """F.multilabel_margin_loss f[B] for input f[B, C] and target i64[B, C], whose labels end at the first -1."""
    if reduction != "none" or size_average is not None or reduce is not None or input.dim() != 2 or input.shape != target.shape:
        return F.multilabel_margin_loss(input, target, size_average, reduce, reduction)
    counted = ((target < 0).cumsum(1) == 0).unsqueeze(2)
    labels = target.clamp(min=0)
    is_label = ((labels.unsqueeze(2) == torch.arange(input.shape[1], device=input.device)) & counted).any(1)
    margins = (1 - input.gather(1, labels).unsqueeze(2) + input.unsqueeze(1)).clamp(min=0)
    return torch.where(counted & ~is_label.unsqueeze(1), margins, 0.0).sum((1, 2)) / input.shape[1]


def multi_dot(tensors: Sequence[Tensor]) -> Tensor:
    """torch.linalg.multi_dot from left to right; torch chooses an order by sizes, the number of examples among them."""
    return functools.reduce(torch.matmul, tensors)


def affine_grid(theta: Tensor, size: Sequence[int], align_corners: bool | None = None) -> Tensor:
    """F.affine_grid: theta f[N, 2, 3] or f[N, 3, 4] applied to the regular grid of an image, f[N, ..., 2 or 3]."""
    lengths = list(size[2:])
    if len(lengths) not in (2, 3):
        return F.affine_grid(theta, size, align_corners)  # type: ignore[arg-type]  # torch says what is wrong
    axes = [steps(n, bool(align_corners), theta) for n in lengths]
    places = torch.meshgrid(*axes, indexing="ij")[::-1]
    base = torch.stack([*places, torch.ones_like(places[0])], -1).flatten(0, -2)
    return (base @ theta.transpose(1, 2)).unflatten(1, lengths)


def steps(count: int, align_corners: bool, like: Tensor) -> Tensor:
    """Places of `count` pixels between -1 and 1."""
    if count <= 1:
        return like.new_zeros(count)
    places = torch.linspace(-1, 1, count, dtype=like.dtype, device=like.device)
    return places if align_corners else places * ((count - 1) / count)


def take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """torch.take_along_dim: gather, with dimensions of size 1 spread over those of the other operand."""
    if dim is None or input.dim() != indices.dim():
        return torch.take_along_dim(input, indices, dim)
    place = dim % input.dim()

    def spread(x: Tensor, other: Tensor) -> Tensor:
        wanted = [-1 if d == place or not is_one(n) else other.shape[d] for d, n in enumerate(x.shape)]
        return x.expand(wanted)

    return spread(input, indices).gather(place, spread(indices, input))


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = "use_mm_for_euclid_dist_if_necessary") -> Tensor:
    """torch.cdist of the examples' vectors to a table, one example at a time; torch chooses a kernel by their number."""
    if x1.dim() == 2 and follows_batch(x1) and not follows_batch(x2):
        return torch.cdist(x1.unsqueeze(-2), x2, p, compute_mode).squeeze(-2)
    if x2.dim() == 2 and follows_batch(x2) and not follows_batch(x1):
        return torch.cdist(x2.unsqueeze(-2), x1, p, compute_mode).squeeze(-2).transpose(-1, -2)
    return torch.cdist(x1, x2, p, compute_mode)


def solve(A: Tensor, B: Tensor, *, left: bool = True) -> Tensor:
    """torch.linalg.solve with one right side for all matrices spread over them; torch compares its sizes with the batch's."""
    if A.dim() > B.dim() == 2 and follows_batch(A) and not follows_batch(B):
        B = B.expand(*A.shape[:-2], *B.shape)
    return torch.linalg.solve(A, B, left=left)


def gaussian_nll_loss(
    input: Tensor, target: Tensor, var: Tensor | float, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """F.gaussian_nll_loss for a variance per element or per row, without torch's check that none is negative."""
    if isinstance(var, float) or input.dim() - var.dim() not in (0, 1):
        return F.gaussian_nll_loss(input, target, var, full, eps, reduction)
    var = var.unsqueeze(-1) if input.dim() > var.dim() else var
    wide = var + (var.clamp(min=eps) - var).detach()  # torch clamps without a gradient
    loss = 0.5 * (wide.log() + (input - target).square() / wide)
    loss = loss + 0.5 * math.log(2 * math.pi) if full else loss
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def random_(input: Tensor, *bounds: int, **options: Any) -> Tensor:
    """Tensor.random_ between two bounds, from the numbers that torch.randint draws for them: the name of torch's own operation,
    `random.from`, is no Python."""
    if len(bounds) != 2 or options:
        return input.random_(*bounds, **options)
    return input.copy_(torch.randint_like(input, *bounds))


def is_one(size: int) -> bool:
    """Whether a size is the number 1, whatever the batch."""
    return isinstance(size, int) and size == 1


SUBSTITUTES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.cross_entropy: soft_cross_entropy,
    F.adaptive_avg_pool1d: pool(F.adaptive_avg_pool1d, 1),
    F.adaptive_avg_pool2d: pool(F.adaptive_avg_pool2d, 2),
    F.adaptive_avg_pool3d: pool(F.adaptive_avg_pool3d, 3),
    F.multilabel_margin_loss: multilabel_margin_loss,  # torch's decomposition counts padded targets
    torch.linalg.multi_dot: multi_dot,
    F.affine_grid: affine_grid,
    torch.take_along_dim: take_along_dim,
    Tensor.take_along_dim: take_along_dim,
    torch.cdist: cdist,
    **dict.fromkeys((torch.matrix_exp, torch.linalg.matrix_exp, Tensor.matrix_exp), matrix_exp),
    F.gaussian_nll_loss: gaussian_nll_loss,
    torch.linalg.solve: solve,
    **BATCH_NORM,
    **dict.fromkeys((F.ctc_loss, torch.ctc_loss), traced_ctc_loss),
    Tensor.random_: random_,
}


def adaptive_log_softmax(module: nn.AdaptiveLogSoftmaxWithLoss, input_: Tensor, target_: Tensor) -> Any:
    """nn.AdaptiveLogSoftmaxWithLoss.forward with every cluster for every row; torch's own picks the rows of each cluster,
    and their number depends on the targets."""
    input, target = (input_, target_) if target_.dim() else (input_[None], target_[None])
    head = module.head(input).log_softmax(1)
    bounds = module.cutoffs
    output = head.gather(1, target.clamp(max=bounds[0] - 1).unsqueeze(1)).squeeze(1)
    for index, (low, high) in enumerate(itertools.pairwise(bounds)):
        inside = module.tail[index](input).log_softmax(1).gather(1, (target - low).clamp(0, high - low - 1).unsqueeze(1))
        output = torch.where((target >= low) & (target < high), inside.squeeze(1) + head[:, bounds[0] + index], output)
    loss = (-output).mean()
    return torch_private.adaptive_output(output if target_.dim() else output[0], loss)


@contextlib.contextmanager
def traceable_modules() -> Iterator[None]:
    """Modules of torch whose own forward depends on data, in a form that does not; distributions without their checks of
    values, which a trace cannot make."""
    adaptive = torch_private.replaced(nn.AdaptiveLogSoftmaxWithLoss, "forward", adaptive_log_softmax)
    with torch_private.unchecked_distributions(), torch_private.unchecked_masks(), adaptive:
        yield
