"""Arguments, batches and losses that the interface does not allow, and what is left of the model then."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo_case import squares
from zoo_layers import Using
from zoo_networks import mlp

from dpcompile import DPCompileError, dpcompile


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that compiling must leave alone, and the state of the random generator."""
    return {
        "values": {name: (t.clone(), t.data_ptr()) for name, t in model.state_dict(keep_vars=True).items()},
        "flags": [module.training for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [p.grad for p in model.parameters()],
        "random": torch.get_rng_state(),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Fail where two states differ, tensors included."""
    for name, (value, pointer) in before.pop("values").items():
        assert torch.equal(value, after["values"][name][0]), name
        assert pointer == after["values"][name][1], name
    assert torch.equal(before.pop("random"), after["random"])
    assert before == {key: after[key] for key in before}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"model": squares}, "Module"),
        ({"loss": "cross_entropy"}, "loss"),
        ({"loss": nn.CTCLoss()}, "loss"),
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
        ({"max_grad_norm": math.nan}, "max_grad_norm"),
        ({"max_grad_norm": torch.ones(2)}, "max_grad_norm"),
        ({"max_grad_norm": "1"}, "max_grad_norm"),
        ({"loss": nn.CrossEntropyLoss}, r"loss=CrossEntropyLoss\(\)"),
        ({"loss": F.cross_entropy}, "got cross_entropy"),
        ({"loss": lambda outputs, x, targets: squares(outputs, x) * targets}, r"loss\(model, \*batch\) with a batch of 1"),
        ({"microbatch": 0}, "microbatch"),
        ({"microbatch": False}, "microbatch"),
        ({"hardware": ["cpu"]}, "hardware"),
        ({"memory_budget": 10**400}, "memory_budget"),
        ({"plan": ""}, "cannot be read"),
        ({"example_batch": (torch.ones(0, 3),)}, "no example"),
        ({"example_batch": torch.ones(4, 3)}, "tuple"),
        ({"strategy": "fastest"}, "fastest"),
        ({"schedule": "three-pass"}, "three-pass"),
        ({"backend": "xla"}, "xla"),
        ({"clipping": "round"}, "round"),
        ({"batch_dim": (0, 0, 0)}, "batch_dim"),
        ({"batch_dim": 2}, "batch_dim"),
        ({"batch_dim": "0"}, "batch_dim"),
        ({"batch_dim": True}, "batch_dim"),
        ({"strategy": {"*": "autotune"}}, "whole model"),
        ({"strategy": {"0.weight": ("outer", "bookkeep")}}, "outer"),
        ({"strategy": {"encoder.*": ("gram", "bookkeep")}}, r"encoder"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_wrong_argument_is_refused_by_name(arguments: dict[str, Any], word: str) -> None:
    options: dict[str, Any] = {"model": mlp(3, 5, 2), "loss": squares} | arguments
    batch = torch.randn(2, 7, 3) if "strategy" in arguments else torch.randn(2, 3)
    with pytest.raises(DPCompileError, match=word):
        dpcompile(options.pop("model"), **options)(batch)


@pytest.mark.parametrize(
    ("loss", "word"),
    [
        (lambda m, x: squares(m, x).mean(), "scalar"),
        (lambda m, x: squares(m, x)[:2], "shape"),
        (lambda m, x: m(x), "shape"),
        (lambda m, x: (squares(m, x),), "tuple"),
        (lambda m, x: squares(m, x).long(), "dtype"),
    ],
    ids=["scalar", "wrong length", "two axes", "tuple", "integers"],
)
def test_loss_that_is_not_one_number_per_example_is_refused_with_its_shape(loss: Any, word: str) -> None:
    with pytest.raises(DPCompileError, match=word):
        dpcompile(nn.Linear(3, 5), loss=loss)(torch.randn(7, 3))


def test_tensors_of_different_batch_sizes_are_refused_with_both_sizes() -> None:
    private = dpcompile(nn.Linear(3, 5), loss=nn.CrossEntropyLoss())
    with pytest.raises(DPCompileError, match=r"(?s)7.*2"):
        private(torch.randn(7, 3), torch.zeros(2, dtype=torch.long))


def test_batch_without_tensors_is_refused() -> None:
    with pytest.raises(DPCompileError, match="tensor"):
        dpcompile(nn.Linear(3, 5), loss=lambda m, n: m.weight.sum() * torch.ones(n))(3)


def test_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(DPCompileError, match="trainable"):
        dpcompile(nn.Linear(3, 5).requires_grad_(False), loss=squares)(torch.randn(2, 3))


def test_wrong_number_of_features_is_refused_with_the_reason_of_torch() -> None:
    with pytest.raises(DPCompileError, match=r"shape|size"):
        dpcompile(nn.Linear(3, 5), loss=squares)(torch.randn(2, 4))


def test_another_dtype_than_the_models_is_refused_with_the_reason_of_torch() -> None:
    with pytest.raises(DPCompileError, match="dtype") as refused:
        dpcompile(nn.Linear(3, 5), loss=squares)(torch.randn(4, 3, dtype=torch.float64))
    assert "mixed" not in str(refused.value)


def test_a_refused_batch_does_not_spoil_the_next_one() -> None:
    private = dpcompile(nn.Linear(3, 5), loss=squares)
    with pytest.raises(DPCompileError):
        private(torch.randn(2, 4))
    assert private(torch.randn(2, 3)).norms.shape == (2,)


def mixing_model() -> nn.Module:
    """A network with running statistics and dropout that is refused after all of it was traced."""

    def call(m: Any, x: Tensor) -> Tensor:
        return m.b(m.norm(m.drop(m.a(x))))

    a = nn.Linear(3, 5)
    a.bias.requires_grad_(False)
    return Using(call, a=a, drop=nn.Dropout(0.5), norm=nn.BatchNorm1d(5), b=nn.Linear(5, 2))


def test_refused_compile_leaves_the_model_as_it_was() -> None:
    model = mixing_model()
    before = state_of(model)
    with pytest.raises(DPCompileError):
        dpcompile(model, loss=squares)(torch.ones(4, 3))
    assert_same(before, state_of(model))


def test_failing_forward_leaves_the_model_as_it_was() -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        raise ValueError("the user's own mistake" + str(model(x).shape[1]))

    model = mixing_model()
    before = state_of(model)
    with pytest.raises(DPCompileError, match="the user's own mistake"):
        dpcompile(model, loss=loss)(torch.ones(4, 3))
    assert_same(before, state_of(model))


def test_forward_that_writes_a_number_is_refused_and_the_number_stays() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.step = nn.Linear(3, 2), 0

        def forward(self, x: Tensor) -> Tensor:
            self.step += 1
            return self.layer(x) * self.step

    model = Counting()
    with pytest.raises(DPCompileError, match=r"forward writes the attribute step[\s\S]*buffer"):
        dpcompile(model, loss=squares)(torch.ones(4, 3))
    assert model.step == 0


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_on_a_parameter_is_refused_whenever_it_comes(kind: str) -> None:
    model, x = nn.Linear(3, 2), torch.ones(4, 3)
    private = dpcompile(model, loss=squares)
    private(x)
    handle = getattr(model.weight, kind)(lambda held: None)
    with pytest.raises(DPCompileError, match=rf"parameter weight has a hook \({kind}\)[\s\S]*step.grads"):
        private(x)
    handle.remove()
    private(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(3, 3), torch.jit.trace(nn.Linear(3, 2), torch.ones(1, 3)))
    with pytest.raises(DPCompileError, match="1 is a TorchScript module"):
        dpcompile(model, loss=squares)(torch.ones(4, 3))


def test_a_shape_that_depends_on_data_is_refused_with_the_line() -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(model, nn.Linear)
        return (x @ model.weight[torch.arange(2) > 0].t()).sum(1)

    with pytest.raises(DPCompileError, match=r"depends on the data\n  at: .*test_bad_input.py"):
        dpcompile(nn.Linear(3, 2), loss=loss)(torch.ones(4, 3))


@pytest.mark.parametrize("strategy", [{"weight": 3}, {0: "gram"}, {"weight": ("gram",)}, 3, ("gram", "bookkeep"), None])
def test_strategies_of_wrong_types_are_refused(strategy: Any) -> None:
    with pytest.raises(DPCompileError, match="strategy must be a name or"):
        dpcompile(nn.Linear(3, 2), loss=squares, strategy=strategy)(torch.ones(4, 3))


def test_only_a_step_takes_a_mask() -> None:
    private, x, mask = dpcompile(nn.Linear(3, 2), loss=squares), torch.ones(4, 3), torch.ones(4, dtype=torch.bool)
    for call in (private.verify, private.per_example_gradients):
        with pytest.raises(DPCompileError, match="only a step takes a mask"):
            call(x, mask=mask)


def test_step_leaves_a_deterministic_model_as_it_was() -> None:
    model = mlp(3, 5, 2)
    before = state_of(model)
    dpcompile(model, loss=squares)(torch.ones(4, 3))
    assert_same(before, state_of(model))


def test_batch_is_not_written_to() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 5))
    x = torch.randn(4, 3)
    original = x.clone()
    dpcompile(model, loss=squares)(x)
    assert torch.equal(x, original)


@pytest.mark.parametrize("extra", [0, 2])
def test_a_criterion_takes_the_last_argument(extra: int) -> None:
    x, y = torch.ones(4, 3), torch.ones(4, 2)
    with pytest.raises(DPCompileError, match=rf"last argument is the target of MSELoss, and the model got the other {extra} of"):
        dpcompile(nn.Linear(3, 2), loss=nn.MSELoss())(x, *[y] * extra)


def test_messages_call_the_batch_size_b() -> None:
    x = torch.ones(4, 3)
    with pytest.raises(DPCompileError, match=r"shape \[B, 2\] but must have shape \[B\]"):
        dpcompile(nn.Linear(3, 2), loss=lambda m, x: m(x))(x)
    with pytest.raises(DPCompileError, match=r"\(B\) must match"):
        dpcompile(nn.Linear(3, 2), loss=lambda m, x: m(x).sum(1) * torch.ones(4))(x)
    with pytest.raises(DPCompileError, match=r"roll.default\[B, 2\]"):
        dpcompile(nn.Linear(3, 2), loss=lambda m, x: m(x).roll(1, 0).sum(1))(x)
