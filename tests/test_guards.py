"""Whatever a compiled step relies on is watched: a changed model or batch is traced anew and stays exact, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import errors, expect, whole_norm
from torch import Tensor, nn
from torch.nn.utils import prune
from zoo_case import squares
from zoo_layers import Conditional, Using, frozen_first, parameter
from zoo_networks import mlp

from dpcompile import DPCompileError, MixedExamplesError, dpcompile

CLIP = 1e-3


def check_exact(private: Any, model: nn.Module, *batch: Tensor, clip: float = CLIP) -> None:
    """A step against the loop over the model as it is now."""
    found = errors(private(*batch), expect(model, squares, batch, max_grad_norm=clip))
    assert max(found.values()) < (1e-9 if batch[0].dtype == torch.float64 else 1e-4), found


def doubles(*shape: int) -> Tensor:
    """A batch in float64."""
    return torch.randn(*shape, dtype=torch.float64)


def test_training_mode_of_one_inner_module_is_watched() -> None:
    norm = nn.BatchNorm1d(5).eval()
    model = nn.Sequential(nn.Linear(3, 5), norm, nn.Linear(5, 2)).double()
    private, x = dpcompile(model, loss=squares, max_grad_norm=CLIP), doubles(4, 3)
    check_exact(private, model, x)
    model.train()
    with pytest.raises(MixedExamplesError, match="batch normalisation in training mode"):
        private(x)
    model.eval()
    check_exact(private, model, x)


@pytest.mark.parametrize("schedule", ["one-pass", "two-pass", "microbatch"])
@pytest.mark.parametrize("strategy", ["auto", "gram", "materialize"])
def test_unfrozen_parameters_enter_the_norm(schedule: str, strategy: str) -> None:
    model: Any = frozen_first(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double())
    private = dpcompile(model, loss=squares, max_grad_norm=CLIP, schedule=schedule, strategy=strategy)
    x = 10 * doubles(1, 7, 3)
    private(x)
    for layer, wanted in ((model[0], True), (model[2], False), (model[0].bias, False), (model[2].bias, True)):
        layer.requires_grad_(wanted)
        check_exact(private, model, x)
        assert whole_norm(private(x).grads) <= CLIP * (1 + 1e-9)


def test_unfreezing_during_a_step_of_the_drop_in_is_refused() -> None:
    model = frozen_first(mlp(3, 5, 2))
    module = dpcompile(model, max_grad_norm=CLIP).as_module()
    out = module(torch.randn(4, 3))
    model.requires_grad_(True)
    with pytest.raises(DPCompileError, match="requires_grad was changed between forward and backward"):
        out.square().sum().backward()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types_of_model_and_batch_may_change(dtype: torch.dtype) -> None:
    model = mlp(3, 5, 2)
    private = dpcompile(model, loss=squares, max_grad_norm=CLIP)
    private(torch.randn(4, 3))
    model.to(dtype)
    check_exact(private, model, torch.randn(4, 3, dtype=dtype))


def test_type_of_one_input_is_watched() -> None:
    model = Using(lambda m, x, y: m.a(x) * y[:, None], a=nn.Linear(3, 2)).double()
    private, x = dpcompile(model, loss=squares, max_grad_norm=CLIP), doubles(4, 3)
    for y in (torch.tensor([1, 2, 3, 4]), torch.tensor([True, False, True, True]), doubles(4)):
        check_exact(private, model, x, y)
    assert len(private.steps.by_key) == 3


def test_a_batch_of_another_device_is_refused_and_spoils_nothing() -> None:
    model = mlp(3, 5, 2).double()
    private, x = dpcompile(model, loss=squares, max_grad_norm=CLIP), doubles(4, 3)
    private(x)
    with pytest.raises(DPCompileError):
        private(x.to("meta"))
    check_exact(private, model, x)


FORMATS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "permuted from channels last": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "permuted in space": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "batch innermost": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "every second of a larger batch": lambda x: x.repeat_interleave(2, 0)[::2],
    "with gaps": lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("schedule", ["one-pass", "microbatch"])
@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 3, groups=3), nn.ConvTranspose2d(3, 4, 3, stride=2)], ids=str
)
def test_memory_formats_are_exact_one_after_the_other(layer: nn.Module, schedule: str) -> None:
    model = nn.Sequential(layer, nn.Tanh()).double()
    private, x = (
        dpcompile(model, loss=squares, max_grad_norm=CLIP, schedule=schedule, microbatch=2 if schedule == "microbatch" else None),
        doubles(3, 3, 5, 7),
    )
    for change in FORMATS.values():
        check_exact(private, model, change(x))


@pytest.mark.parametrize(
    "change", [lambda m: m.to(memory_format=torch.channels_last), lambda m: m], ids=["channels_last", "contiguous"]
)
def test_memory_format_of_weights_is_watched(change: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)).double()
    private, x = dpcompile(model, loss=squares, max_grad_norm=CLIP), doubles(3, 3, 7, 8)
    private(x)
    change(model)
    check_exact(private, model, x)
    check_exact(private, model, x.contiguous(memory_format=torch.channels_last))


def test_conditional_layers_switch_back_and_forth() -> None:
    model = Conditional().double()
    private, x = dpcompile(model, loss=squares, max_grad_norm=CLIP), doubles(1, 6)
    for use in (True, False, True, False):
        model.use = use
        check_exact(private, model, x)
    assert len(private.steps.by_key) == 2


def replaced(model: Any) -> None:
    """A new parameter object."""
    model[0].weight = parameter(5, 3)


def surgery(model: Any) -> None:
    """Another module in the place of a layer."""
    model[1] = nn.Sequential(nn.ReLU(), nn.Linear(5, 5))


def longer(model: Any) -> None:
    """One more layer."""
    model.append(nn.Linear(2, 2))


def shorter(model: Any) -> None:
    """One layer less."""
    del model[2]


def tied(model: Any) -> None:
    """Two layers with one weight."""
    model[2] = nn.Linear(5, 5)
    model.append(nn.Linear(5, 5))
    model[3].weight = model[2].weight


def moved(model: Any) -> None:
    """A parameter that becomes a buffer."""
    weight = model[0].weight.detach().clone()
    del model[0].weight
    model[0].register_buffer("weight", weight)


def data(model: Any) -> None:
    """Other memory under the same parameter."""
    model[0].weight.data = torch.randn(7, 3)[::1][:5].clone()


def parametrized(model: Any) -> None:
    """A parametrization put on a layer."""
    nn.utils.parametrizations.weight_norm(model[0])


def pruned(model: Any) -> None:
    """Pruning, which replaces a parameter by another and a mask."""
    with torch.no_grad():  # else the masked weight could not be copied
        prune.random_unstructured(model[0], "weight", 0.5)


SURGERY = (replaced, surgery, longer, shorter, tied, moved, data, parametrized, pruned)


@pytest.mark.parametrize("change", SURGERY, ids=lambda change: change.__name__)
def test_surgery_on_the_model_is_seen(change: Callable[[Any], None]) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    private, x = dpcompile(model, loss=squares, max_grad_norm=CLIP), torch.randn(4, 3)
    private(x)
    change(model)
    model.double()
    check_exact(private, model, x.double())
    step = private(x[:1].double())
    assert whole_norm(step.grads) <= CLIP * (1 + 1e-9)
    assert set(step.grads) == {name for name, p in model.named_parameters() if p.requires_grad}


def test_a_tensor_of_the_batch_that_the_model_holds_is_refused() -> None:
    model = Using(lambda m, x: m.a(x) - m.kept.mean(0), a=nn.Linear(3, 3))
    x = torch.randn(4, 3)
    model.kept = x
    with pytest.raises(DPCompileError, match="a tensor of the batch is used that was not given as an argument"):
        dpcompile(model, loss=squares)(x)
    model.kept = torch.randn(7, 3)
    private = dpcompile(model, loss=squares)
    private(x)
    assert any("a constant of shape [7, 3]" in note for note in private.report().notes)


class Counting(nn.Module):
    """A buffer under whose name forward puts a new tensor."""

    count: Tensor

    def __init__(self, step: float) -> None:
        super().__init__()
        self.layer, self.step = nn.Linear(3, 2), step
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """f[B, 3] to f[B, 2]."""
        self.count = self.count + self.step
        return self.layer(x) * self.count


def test_an_assigned_buffer_is_updated_once_per_step() -> None:
    model, ordinary, x = Counting(1.0), Counting(1.0), torch.randn(5, 3)
    private = dpcompile(model, loss=squares, schedule="microbatch", microbatch=2)
    held = model.count
    for steps in (1, 2, 3):
        losses = private(x).losses
        assert model.count == steps and model.count is held
        assert torch.allclose(losses, squares(model.layer, x) * steps**2)
    ordinary(x)
    assert ordinary.count == 1


def test_a_parameter_that_forward_replaces_is_refused() -> None:
    class Replacing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.weight = nn.Parameter(self.weight * 0.5)
            return super().forward(x)

    model = Replacing(3, 2)
    weight = model.weight
    with pytest.raises(DPCompileError, match="forward puts another tensor in the place of weight"):
        dpcompile(model, loss=squares)(torch.randn(4, 3))
    assert model.weight is weight


def test_lists_hold_what_they_held_after_a_refusal() -> None:
    class Keeping(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.kept: Any = [1]

        def forward(self, x: Tensor) -> Tensor:
            self.kept.append(x)
            return super().forward(x)

    model = Keeping()
    with pytest.raises(DPCompileError, match="forward changes the contents of the attribute kept"):
        dpcompile(model, loss=squares)(torch.randn(4, 3))
    assert model.kept == [1]


def test_an_attribute_that_does_not_depend_on_the_batch_may_be_written() -> None:
    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.scaled: Any = torch.zeros(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.scaled = self.weight * 2.0
            return x @ self.scaled.t() + self.bias

    model = Scaled().double()
    check_exact(dpcompile(model, loss=squares, max_grad_norm=CLIP), model, doubles(4, 3))
