"""Clipped sums by the libraries that one could install instead: torch.func, ExpandedWeights and Opacus."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.layers import DPRNN
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

from benchmarks.cases import MAX_GRAD_NORM, Case

Step = Callable[[], Mapping[str, Tensor]]


def clipped_sums(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums over examples of min(1, C / norm) * gradient, from per-example gradients f[B, *shape]."""
    norms = [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients.values()]
    factors = (MAX_GRAD_NORM / torch.linalg.vector_norm(torch.stack(norms), dim=0)).clamp(max=1)
    return {name: torch.tensordot(factors, g, dims=1) for name, g in gradients.items()}


def vmap_eager(case: Case, model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """torch.func: gradients of all examples at once by vmap(grad)."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    step = vmap_function(case, model)
    return lambda: step(parameters, x, y)


def vmap_inductor(case: Case, model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """The same, norms and sums included, in one torch.compile."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    step = torch.compile(vmap_function(case, model), dynamic=False)
    return lambda: step(parameters, x, y)


def vmap_function(case: Case, model: nn.Module) -> Callable[[Mapping[str, Tensor], Tensor, Tensor], dict[str, Tensor]]:
    """(parameters, inputs, targets) -> clipped sums."""

    def loss_of_one(parameters: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = functional_call(model, dict(parameters), (x[None],))
        return case.example_loss(outputs, y[None]).squeeze(0)

    def step(parameters: Mapping[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        # vmap has no rule for the fused attention kernels and would run them one example at a time.
        with sdpa_kernel(SDPBackend.MATH):
            return clipped_sums(vmap(grad(loss_of_one), in_dims=(None, 0, 0))(parameters, x, y))

    return step


def expanded_weights(case: Case, model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """torch.nn.utils' per-sample gradients, which follow layers through __torch_function__."""
    parameters = dict(model.named_parameters())
    run = call_for_per_sample_grads(model, batch_size=len(x), loss_reduction="sum")
    is_recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())

    def step() -> dict[str, Tensor]:
        # It refuses oneDNN's fused recurrent layer and can take the plain one.
        with torch.backends.mkldnn.flags(enabled=torch.backends.mkldnn.enabled and not is_recurrent):
            case.example_loss(run(x), y).sum().backward()
        return clipped_sums(take_per_example(parameters))

    return step


def opacus_hooks(case: Case, model: nn.Module, x: Tensor, y: Tensor, **options: object) -> Step:
    """Opacus with hooks: every layer's per-example gradients are kept, then clipped and summed."""
    wrapped = wrap(GradSampleModule, model, loss_reduction="sum", **options)
    parameters = names_of(wrapped)

    def step() -> dict[str, Tensor]:
        case.example_loss(wrapped(x), y).sum().backward()
        return clipped_sums(take_per_example(parameters))

    return step


def opacus_functorch(case: Case, model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """The same with torch.func in every layer instead of formulas of its own."""
    return opacus_hooks(case, model, x, y, force_functorch=True)


def backpack_gradients(case: Case, model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """BackPACK's BatchGrad: per-example gradients by an extension of every layer's backward."""
    # Not needed by anything else, and installed without its dependencies, which would fetch another torch.
    library, extensions = importlib.import_module("backpack"), importlib.import_module("backpack.extensions")
    extended = library.extend(model)
    parameters: dict[str, Any] = dict(extended.named_parameters())

    def step() -> dict[str, Tensor]:
        with library.backpack(extensions.BatchGrad()):
            case.example_loss(extended(x), y).sum().backward()
        gradients = {name: parameter.grad_batch for name, parameter in parameters.items()}
        for parameter in parameters.values():
            del parameter.grad_batch
            parameter.grad = None
        return clipped_sums(gradients)

    return step


def opacus_ghost(case: Case, model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """Opacus with ghost clipping: a backward for norms, then one of the reweighted loss.

    The two backward passes are those of its DPTensorFastGradientClipping.backward.
    """
    wrapped = wrap(GradSampleModuleFastGradientClipping, model, loss_reduction="sum", max_grad_norm=MAX_GRAD_NORM)
    parameters = names_of(wrapped)

    def step() -> dict[str, Tensor]:
        wrapped.enable_hooks()
        losses = case.example_loss(wrapped(x), y)
        losses.sum().backward(retain_graph=True)
        wrapped.zero_grad()
        factors = wrapped.get_clipping_coef()
        wrapped.disable_hooks()
        (factors * losses).sum().backward()
        return take_gradients(parameters)

    return step


def wrap(kind: Callable[..., Any], model: nn.Module, **options: object) -> Any:
    """Put Opacus' hooks on a model; layers that Opacus has its own forms of are replaced, their weights kept."""
    return kind(with_opacus_rnn(ModuleValidator.fix(model)), batch_first=True, **options)


def with_opacus_rnn(model: nn.Module) -> nn.Module:
    """The same for nn.RNN: Opacus has a form of it, but its validator replaces LSTM, GRU and attention only."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.RNN):
            own = DPRNN(layer.input_size, layer.hidden_size, layer.num_layers, layer.bias, layer.batch_first, layer.dropout,
                        layer.bidirectional, nonlinearity=layer.nonlinearity)  # fmt: skip
            own.load_state_dict(layer.state_dict())
            model.set_submodule(name, own.to(layer.weight_ih_l0.device))
    return model


def names_of(wrapped: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by their names in the ordinary model: Opacus' LSTM calls weight_ih_l0 l0.ih.weight."""
    return {
        re.sub(r"l(\d+)\.(ih|hh)\.(weight|bias)$", r"\3_\2_l\1", name.removeprefix("_module.")): parameter
        for name, parameter in wrapped.named_parameters()
    }


def take_per_example(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Per-example gradients f[B, *shape], removed from the parameters so that the next step starts afresh."""
    gradients = {}
    for name, parameter in parameters.items():
        holder: Any = parameter  # the libraries hang their result on the parameter
        gradients[name] = holder.grad_sample
        holder.grad_sample = holder.grad = None
    return gradients


def take_gradients(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Gradients, removed from the parameters so that the next step starts afresh."""
    gradients = {}
    for name, parameter in parameters.items():
        if parameter.grad is None:
            raise RuntimeError(f"{name} has no gradient")
        gradients[name] = parameter.grad
        parameter.grad = None
    return gradients
