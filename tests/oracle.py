"""The one oracle: losses, gradients, norms and clipped sums from a plain float64 loop over single examples.

Nothing clever on purpose. Every example is a batch of one, run through an ordinary forward and backward of a
float64 copy of the model, from the same buffers. It shares no code with the product, so the meaning of
`loss=` and `batch_dim=` is written down here a second time.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Gradients = dict[str, Tensor]
Loss = nn.Module | Callable[..., Tensor] | None


def per_example_gradients(
    model: nn.Module,
    loss: Loss,
    batch: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    batch_dim: Any = 0,
) -> tuple[Tensor, Gradients]:
    """Losses f64[B] and per-example gradients {name: f64[B, *shape]} of every trainable parameter.

    Parameters of the loss module are called `loss.<name>`; unused parameters have zero gradients. They
    come from `backward`, since reentrant checkpoints refuse `autograd.grad`. Random operations cannot be
    redrawn per example, so this is no oracle for dropout in training mode.
    """
    model, loss = copy.deepcopy((model, loss))
    modules = {"": model.double()} | ({"loss.": loss.double()} if isinstance(loss, nn.Module) else {})
    parameters: Gradients = {}
    for prefix, module in modules.items():
        named = {prefix + name: p for name, p in module.named_parameters() if p.requires_grad}
        known = {id(p) for p in parameters.values()}
        parameters |= {name: p for name, p in named.items() if id(p) not in known}
    buffers = [(buffer, buffer.clone()) for module in modules.values() for buffer in module.buffers()]
    size = batch_size(batch, kwargs or {}, batch_dim)
    losses = torch.zeros(size, dtype=torch.float64)
    gradients = {name: torch.zeros(size, *p.shape, dtype=torch.float64) for name, p in parameters.items()}
    for index in range(size):
        for buffer, start in buffers:
            buffer.data.copy_(start)
        args, named_args = in_float64(one_example(batch, kwargs or {}, batch_dim, index))
        for parameter in parameters.values():
            parameter.grad = None
        with FormulaOfNorms():
            value = loss_of_one(model, loss, args, named_args)
        value.backward()
        losses[index] = value.detach()
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                gradients[name][index] = parameter.grad.to_dense()
    return losses, gradients


class FormulaOfNorms(TorchFunctionMode):
    """Batch normalisation with fixed statistics and instance normalisation as they are defined: torch's own gradient is wrong
    for a single channels-last image (tests/test_norm_layouts.py shows it)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (F.batch_norm, F.instance_norm):
            return func(*args, **(kwargs or {}))
        given = inspect.signature(func).bind(*args, **(kwargs or {}))
        given.apply_defaults()
        x, mean, variance, weight, bias, own, _, eps = given.arguments.values()
        if own and func is F.batch_norm:
            return func(*args, **(kwargs or {}))
        columns = [1, -1] + [1] * (x.dim() - 2)
        axes = list(range(2, x.dim()))
        mean = x.mean(axes, keepdim=True) if own else mean.view(columns)
        variance = x.var(axes, correction=0, keepdim=True) if own else variance.view(columns)
        y = (x - mean) / (variance + eps).sqrt()
        y = y if weight is None else y * weight.view(columns)
        return y if bias is None else y + bias.view(columns)


def clipped_sum(gradients: Gradients, max_grad_norm: float) -> tuple[Tensor, Tensor, Gradients]:
    """Norms f64[B], clip factors f64[B] and the sums over examples of factor * gradient.

    The factor is min(1, C / norm): 1 for a zero norm, 0 for an example whose norm is not finite.
    """
    norms = torch.stack([g[..., None].flatten(1).square().sum(1) for g in gradients.values()]).sum(0).sqrt()
    factors = torch.where(norms > max_grad_norm, max_grad_norm / norms, torch.ones_like(norms))
    factors = torch.where(norms.isfinite(), factors, torch.zeros_like(norms))
    kept = factors > 0
    sums = {name: torch.tensordot(factors[kept], g[kept], dims=1) for name, g in gradients.items()}
    return norms, factors, sums


@dataclass(frozen=True)
class Expected:
    """What a compiled step must return for one batch; norms and factors f64[B], sums by parameter name."""

    max_grad_norm: float
    losses: Tensor
    norms: Tensor
    factors: Tensor
    sums: Gradients


def expect(
    model: nn.Module, loss: Loss, batch: tuple[Any, ...], kwargs: dict[str, Any] | None = None,
    batch_dim: Any = 0, max_grad_norm: float | None = None,
) -> Expected:  # fmt: skip
    """The expected step; without a clip norm it is the mean norm, so that some examples are clipped."""
    losses, gradients = per_example_gradients(model, loss, batch, kwargs, batch_dim)
    if max_grad_norm is None:
        max_grad_norm = float(clipped_sum(gradients, 1.0)[0].mean())
    return Expected(max_grad_norm, losses, *clipped_sum(gradients, max_grad_norm))


def errors(step: Any, expected: Expected) -> dict[str, float]:
    """Relative errors of everything that a step returns, the largest first."""
    assert set(step.grads) == set(expected.sums), set(step.grads) ^ set(expected.sums)
    largest = float(expected.norms.max()) if len(expected.norms) else 1.0
    contribution = float((expected.factors * expected.norms).max()) if len(expected.norms) else 1.0
    found = {
        "losses": relative_error(step.losses, expected.losses, max(1.0, float(expected.losses.abs().sum()))),
        "norms": relative_error(step.norms, expected.norms, largest),
        "clip factors": relative_error(step.clip_factors, expected.factors, 1.0),
    }
    for name, total in expected.sums.items():
        found[f"sum of {name}"] = relative_error(step.grads[name], total, contribution)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def whole_norm(gradients: Gradients) -> float:
    """The norm of one gradient over all parameters, in float64."""
    return float(torch.stack([g.double().square().sum() for g in gradients.values()]).sum().sqrt())


def relative_error(actual: Tensor, expected: Tensor, scale: Tensor | float) -> float:
    """Largest deviation in units of `scale`, which is the size of the operands and not of the result.

    The scale is the largest norm, over examples, of a whole (clipped) gradient: some parameters, such as the
    key bias of attention, have a true gradient of zero that is computed as 1e-13.
    """
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    if actual.numel() == 0:
        return 0.0
    assert bool(actual.isfinite().all()), "not finite"
    return float((actual.double() - expected).abs().max()) / max(float(scale), 1e-300)


def batch_size(batch: tuple[Any, ...], kwargs: dict[str, Any], batch_dim: Any) -> int:
    """The number of examples: the size of the first tensor's example axis."""
    sizes: list[int] = []
    walk((batch, kwargs), axes(batch_dim), lambda tensor, dim: sizes.append(tensor.shape[dim]))
    return sizes[0]


def one_example(
    batch: tuple[Any, ...], kwargs: dict[str, Any], batch_dim: Any, index: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a batch that holds example `index` alone."""
    return walk((batch, kwargs), axes(batch_dim), lambda tensor, dim: tensor.narrow(dim, index, 1))


def in_float64(tree: Any) -> Any:
    """The same arguments with floating-point tensors in float64; indices and masks stay."""
    return walk(tree, -1, lambda tensor, dim: tensor.double() if tensor.is_floating_point() else tensor)


def axes(batch_dim: Any) -> tuple[Any, Any]:
    """The example axes of positional and of keyword arguments: an int serves both, a tuple is positional."""
    return (batch_dim, batch_dim if isinstance(batch_dim, int) else 0)


def walk(tree: Any, dims: Any, visit: Callable[[Tensor, int], Any]) -> Any:
    """Replace every tensor that has an example axis; `dims` is a prefix of the tree, as in_dims of vmap."""
    if isinstance(tree, dict):
        return {key: walk(value, dims[key] if isinstance(dims, dict) else dims, visit) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        parts = dims if isinstance(dims, (tuple, list)) else [dims] * len(tree)
        return type(tree)(walk(value, dim, visit) for value, dim in zip(tree, parts, strict=True))
    has_axis = isinstance(tree, Tensor) and dims is not None and tree.dim() > 0
    return visit(tree, dims) if has_axis else tree


def loss_of_one(model: nn.Module, loss: Loss, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The loss of a batch of one, as a scalar."""
    if loss is None:
        output = model(*args, **kwargs)
        return getattr(output, "loss", output).reshape(())
    if type(loss).__module__ == "torch.nn.modules.loss":
        return criterion_of_one(loss, model(*args[:-1], **kwargs), args[-1])
    return loss(model, *args, **kwargs).reshape(())


def criterion_of_one(criterion: Any, output: Tensor, target: Tensor) -> Tensor:
    """A torch.nn criterion on one example: summed, or averaged over the elements that are not ignored.

    Class weights multiply the elements and do not enter the number of elements.
    """
    elementwise = copy.copy(criterion)
    elementwise.reduction = "none"
    values = elementwise(output, target)
    if criterion.reduction in ("sum", "batchmean"):
        return values.sum()
    ignored = getattr(criterion, "ignore_index", None)
    if ignored is None or target.is_floating_point():
        return values.mean()
    return values.sum() / max(int((target != ignored).sum()), 1)
