"""The drop-in module: an outside loss and an ordinary `backward()` leave the clipped sum in `p.grad`."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import expect, relative_error
from torch import Tensor, nn
from torch.testing import assert_close
from zoo_case import squares
from zoo_layers import Using, spectral
from zoo_networks import mlp
from zoo_transformers import vit

from dpcompile import DPCompileError, dpcompile
from dpcompile.cotangents import check_same_draws

NORM = 0.3


def last_norms(module: Any) -> Tensor:
    """Norms f[B] of the last backward."""
    norms: Tensor = module.last_step.norms
    return norms


def small() -> tuple[Any, Tensor, Tensor]:
    """A classifier in float64 and a batch of seven examples."""
    torch.manual_seed(0)
    return mlp(3, 5, 2).double(), torch.randn(7, 3, dtype=torch.float64), torch.randint(0, 2, (7,))


def largest_error(model: Any, sums: dict[str, Tensor]) -> float:
    """The deviation of p.grad from expected sums, in units of the clip norm."""
    return max(relative_error(p.grad, sums[name], NORM) for name, p in model.named_parameters())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_backward_leaves_the_clipped_sum(reduction: str, size: int) -> None:
    model, x, y = small()
    expected = expect(model, nn.CrossEntropyLoss(), (x[:size], y[:size]), max_grad_norm=NORM)
    module = dpcompile(model, max_grad_norm=NORM).as_module(reduction)
    F.cross_entropy(module(x[:size]), y[:size], reduction=reduction).backward()
    assert largest_error(model, expected.sums) < 1e-12
    assert torch.allclose(last_norms(module), expected.norms)


def test_gradients_add_up_over_steps_as_autograd_does() -> None:
    model, x, y = small()
    expected = expect(model, nn.CrossEntropyLoss(), (x, y), max_grad_norm=NORM)
    module = dpcompile(model, max_grad_norm=NORM).as_module()
    for part in (slice(0, 2), slice(2, 7)):
        F.cross_entropy(module(x[part]), y[part]).backward()
    assert largest_error(model, expected.sums) < 1e-12


def test_clip_norm_of_the_private_module_may_change() -> None:
    model, x, y = small()
    private = dpcompile(model, max_grad_norm=100.0)
    module = private.as_module()
    private.max_grad_norm = NORM
    F.cross_entropy(module(x), y).backward()
    assert largest_error(model, expect(model, nn.CrossEntropyLoss(), (x, y), max_grad_norm=NORM).sums) < 1e-12


@dataclass
class Heads:
    """Two outputs and a number."""

    scores: Tensor
    extra: dict[str, Any]
    number: int = 3


class TwoHeads(nn.Module):
    """Nested outputs: a dataclass with a tuple in a dict, and indices among them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 5)

    def forward(self, x: Tensor, *, scale: Tensor) -> Heads:
        scores = self.a(x) * scale[:, None]
        return Heads(scores, {"pair": (self.b(x), scores.argmax(1), None)})


def two_losses(out: Heads) -> Tensor:
    """f[B] from both heads."""
    return out.scores.square().sum(1) + out.extra["pair"][0].sin().sum(1)


def test_nested_outputs_and_keyword_arguments() -> None:
    model, x, scale = TwoHeads().double(), torch.randn(7, 3).double(), torch.rand(7).double()
    expected = expect(model, lambda m, x, **kwargs: two_losses(m(x, **kwargs)), (x,), {"scale": scale}, 0, NORM)
    out = dpcompile(model, max_grad_norm=NORM).as_module("sum")(x, scale=scale)
    assert isinstance(out, Heads) and out.number == 3 and out.extra["pair"][1].dtype == torch.int64
    two_losses(out).sum().backward()
    assert largest_error(model, expected.sums) < 1e-12


def test_output_that_the_loss_does_not_use_counts_nothing() -> None:
    model: Any = TwoHeads().double()
    x, scale = torch.randn(7, 3).double(), torch.rand(7).double()
    dpcompile(model, max_grad_norm=NORM).as_module("sum")(x, scale=scale).scores.square().sum().backward()
    assert model.a.weight.grad.any() and not model.b.weight.grad.any()


def test_outputs_of_a_transformers_model_are_its_own_class() -> None:
    model = vit("sdpa").double()
    module = dpcompile(model, max_grad_norm=NORM).as_module()
    x, y = torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 1])
    out = module(x)
    assert type(out) is type(model(x)) and module.config is model.config
    F.cross_entropy(out.logits, y).backward()
    loss = lambda m, x, y: F.cross_entropy(m(x).logits, y, reduction="none")  # noqa: E731
    assert largest_error(model, expect(model, loss, (x, y), max_grad_norm=NORM).sums) < 1e-9


def test_sequence_first_outputs() -> None:
    model, x = nn.Linear(3, 2).double(), torch.randn(5, 7, 3, dtype=torch.float64)
    loss = lambda m, x: m(x).transpose(0, 1).square().flatten(1).sum(1)  # noqa: E731
    expected = expect(model, loss, (x,), batch_dim=1, max_grad_norm=NORM)
    module = dpcompile(model, max_grad_norm=NORM, batch_dim=1).as_module("sum", output_dim=1)
    module(x).square().sum().backward()
    assert largest_error(model, expected.sums) < 1e-12


# -- random numbers and buffers ------------------------------------------------------------------------------


def dropped(name: str) -> tuple[Any, Tensor]:
    """Models that draw random numbers, and a batch of one example."""
    x = torch.randn(1, 5, 6, dtype=torch.float64)
    layers = {
        "dropout": nn.Sequential(nn.Linear(6, 31), nn.Dropout(0.5), nn.Linear(31, 2)),
        "recurrent": Using(lambda m, x: m.a(x)[0], a=nn.LSTM(6, 7, 2, dropout=0.5, batch_first=True)),
        "attention": Using(lambda m, x: m.a(x, x, x)[0], a=nn.MultiheadAttention(6, 2, 0.5, batch_first=True)),
        "noise": Using(lambda m, x: m.a(x + torch.randn_like(x)), a=nn.Linear(6, 2)),
    }
    return layers[name].double(), x


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("dropout", "eager"),
        ("recurrent", "eager"),
        ("attention", "eager"),
        ("noise", "eager"),
        ("dropout", "inductor"),
    ],
)
def test_random_numbers_of_backward_are_those_of_forward(name: str, backend: str) -> None:
    model, x = dropped(name)
    module = dpcompile(model, max_grad_norm=1e6, backend=backend).as_module("sum")
    for _ in range(2):
        model.zero_grad()
        state = torch.get_rng_state()
        module(x).square().sum().backward()
        drawn = torch.get_rng_state()
        torch.set_rng_state(state)
        grads = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
        assert torch.equal(drawn, torch.get_rng_state())
        assert all(torch.allclose(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))


def test_backward_that_drew_other_numbers_is_found() -> None:
    outputs, cotangents = [torch.randn(5, 3)], [torch.randn(5, 3)]
    losses = (outputs[0] * cotangents[0]).sum(1)
    check_same_draws(losses, outputs, cotangents, (0,))
    with pytest.raises(DPCompileError, match="random numbers"):
        check_same_draws(losses + torch.tensor([0, 0, 1.0, 0, 0]), outputs, cotangents, (0,))


def test_dropout_in_chunks_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5))
    module = dpcompile(model, schedule="microbatch", microbatch=2).as_module()
    with pytest.raises(DPCompileError, match="microbatch"):
        module(torch.randn(5, 3))


def test_dropout_one_example_at_a_time_is_refused_with_a_way_out_that_there_is() -> None:
    model, x = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5)), torch.randn(5, 3)
    with pytest.raises(DPCompileError, match=r'method for single examples take another \(strategy="auto"\)'):
        dpcompile(model, strategy="naive").as_module()(x)
    dpcompile(model, strategy="auto").as_module()(x).sum().backward()


def test_a_memory_budget_holds_for_the_drop_in_too() -> None:
    model, x = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 8)).double(), torch.randn(512, 8, dtype=torch.float64)
    whole = dpcompile(model).as_module("sum")
    whole(x).square().sum().backward()
    expected = [p.grad for p in model.parameters()]
    model.zero_grad()
    budget = 0.6 * whole.report().forecast.peak_bytes
    module = dpcompile(model, memory_budget=budget).as_module("sum")
    module(x).square().sum().backward()
    assert module.report().plan.is_chunked and module.report().forecast.peak_bytes <= budget
    assert_close([p.grad for p in model.parameters()], expected)


def test_buffers_are_updated_by_forward_alone() -> None:
    model = spectral(training=True).double()
    ordinary, x = copy.deepcopy(model), torch.randn(5, 5, dtype=torch.float64)
    expected = expect(model, squares, (x,), max_grad_norm=NORM)
    module = dpcompile(model, max_grad_norm=NORM).as_module("sum")
    (module(x).square().sum() / 2).backward()
    ordinary(x)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), ordinary.buffers(), strict=True))
    assert largest_error(model, expected.sums) < 1e-9


# -- one forward per backward --------------------------------------------------------------------------------


def test_second_backward_is_refused() -> None:
    model, x, y = small()
    loss = F.cross_entropy(dpcompile(model).as_module()(x), y)
    loss.backward(retain_graph=True)
    before = model[0].weight.grad.clone()
    with pytest.raises(DPCompileError, match=r"second backward"):
        loss.backward()
    assert torch.equal(model[0].weight.grad, before)


def test_second_forward_before_backward_is_refused_with_a_way_out() -> None:
    model, x, y = small()
    module = dpcompile(model).as_module()
    out = module(x)
    with pytest.raises(DPCompileError, match=r"no_grad"):
        module(x)
    with torch.no_grad():
        module(x)
    F.cross_entropy(out, y).backward()
    out = module(x)
    del out
    module(x)


def test_second_forward_in_another_drop_in_of_the_same_module_is_refused() -> None:
    model, x, y = small()
    private = dpcompile(model)
    one, other = private.as_module(), private.as_module()
    loss = F.cross_entropy(one(x), y)
    with pytest.raises(DPCompileError, match=r"a second forward"):
        other(x)
    copy.deepcopy(other)(x)
    loss.backward()
    other(x)


def assigned(module: Any, x: Tensor) -> Tensor:
    """A scale that every forward puts anew."""
    module.scale = module.scale + 1
    scaled: Tensor = module.a(x) * module.scale
    return scaled


def test_backward_finds_the_buffer_that_forward_replaced() -> None:
    model: Any = Using(assigned, a=nn.Linear(3, 2))
    model.register_buffer("scale", torch.ones(()))
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = expect(model.double(), squares, (x,), max_grad_norm=NORM)
    module = dpcompile(model, max_grad_norm=NORM).as_module("sum")
    (module(x).square().sum() / 2).backward()
    assert largest_error(model, expected.sums) < 1e-12 and float(model.scale) == 2


CHANGES = [
    lambda m: m[0].weight.add_(1), lambda m: m.eval(), lambda m: m.scale.fill_(3), lambda m: setattr(m, "scale", torch.ones(())),
    lambda m: setattr(m[0], "weight", nn.Parameter(torch.zeros(5, 3).double())),
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=["weight", "mode", "buffer", "new buffer", "new weight"])
def test_change_between_forward_and_backward_is_refused(change: Any) -> None:
    model, x, y = small()
    model.register_buffer("scale", torch.ones(()))
    loss = F.cross_entropy(dpcompile(model).as_module()(x), y)
    with torch.no_grad():
        change(model)
    with pytest.raises(DPCompileError, match="between forward and backward"):
        loss.backward()


def test_input_that_requires_grad_is_refused() -> None:
    model, x, _ = small()
    with pytest.raises(DPCompileError, match="detach"):
        dpcompile(model).as_module()(x.requires_grad_())


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda m, x: m.a(x).mean(), "example axis"),
        (lambda m, x: m.a(x).mean(0), "example axis"),
        (lambda m, x: m.a(x).argmax(1), "floating-point"),
        (lambda m, x: {"out": m.a(x), "cache": object()}, "object"),
        (lambda m, x: m.a(x) - m.a(x).mean(0), "mean"),
        (lambda m, x: (m.a(x), torch.view_as_complex(m.a(x).unsqueeze(1))), "complex"),
    ],
    ids=["scalar", "no axis", "integers", "opaque", "mixed", "complex"],
)
def test_forward_refuses_outputs_without_examples(call: Any, word: str) -> None:
    module = dpcompile(Using(call, a=nn.Linear(3, 2))).as_module()
    with pytest.raises(DPCompileError, match=word):
        module(torch.randn(5, 3))


# -- a module like the model ---------------------------------------------------------------------------------


def test_names_and_state_are_the_models_own() -> None:
    model, x, _ = small()
    module = dpcompile(model).as_module()
    assert dict(module.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert module.state_dict().keys() == model.state_dict().keys()
    assert not module.eval().model.training
    assert torch.equal(module(x).detach(), model(x))


def test_parameters_may_be_frozen_and_replaced_between_steps() -> None:
    model, x, y = small()
    module = dpcompile(model, max_grad_norm=NORM).as_module()
    F.cross_entropy(module(x), y).backward()
    model.zero_grad()
    model[2].weight = nn.Parameter(torch.randn(2, 5, dtype=torch.float64))
    model[0].requires_grad_(False)
    F.cross_entropy(module(x), y).backward()
    expected = expect(model, nn.CrossEntropyLoss(), (x, y), max_grad_norm=NORM).sums
    assert model[0].weight.grad is None
    assert max(relative_error(p.grad, expected[n], NORM) for n, p in model.named_parameters() if n in expected) < 1e-12


def test_empty_batch_leaves_zero_gradients() -> None:
    model, x, _ = small()
    module = dpcompile(model).as_module("sum")
    module(x[:0]).sum().backward()
    assert all(not p.grad.any() for p in model.parameters()) and last_norms(module).shape == (0,)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["copy", "pickle"])
def test_copies_work_on_their_own(copied: Any) -> None:
    model, x, y = small()
    module = dpcompile(model, max_grad_norm=NORM).as_module()
    F.cross_entropy(module(x), y).backward()
    twin = copied(module)
    twin.zero_grad()
    F.cross_entropy(twin(x), y).backward()
    assert twin.model[0].weight is not model[0].weight
    assert torch.equal(twin.model[0].weight.grad, model[0].weight.grad)


def test_optimizer_trains_through_it() -> None:
    model, x, y = small()
    module = dpcompile(model, max_grad_norm=1.0).as_module()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_in_place_use_of_the_output_is_allowed() -> None:
    model, x, y = small()
    expected = expect(model, lambda m, x, y: F.cross_entropy(m(x).relu(), y, reduction="none"), (x, y), max_grad_norm=NORM)
    out = dpcompile(model, max_grad_norm=NORM).as_module()(x)
    F.cross_entropy(F.relu(out, inplace=True), y).backward()
    assert largest_error(model, expected.sums) < 1e-12


def test_report_says_that_the_loss_is_not_verified() -> None:
    model, x, _ = small()
    module = dpcompile(model).as_module()
    module(x)
    assert "not verified" in str(module.report())


def test_reduction_that_does_not_exist_is_refused() -> None:
    with pytest.raises(DPCompileError, match="average"):
        dpcompile(nn.Linear(3, 2)).as_module("average")
