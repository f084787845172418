"""verify() compares the compiled step with the plain loop, finds planted errors, and leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO
from zoo_calling import RANDOM
from zoo_case import Case, squares
from zoo_layers import spectral
from zoo_networks import mlp

from dpcompile import InvalidInput, VerificationError, dpcompile

FEW_NAMES = (
    "linear on sequences", "conv2d grouped", "module tie", "layer norm", "LSTM", "MLP", "nested inputs",
    "CNN", "GPT-2, sdpa", "token loss", "reentrant checkpoint",
)  # fmt: skip
FEW = [case for case in ZOO if case.name in FEW_NAMES]
WAYS = pytest.mark.parametrize("schedule", ["one-pass", "microbatch"])


def private_mlp(**options: Any) -> tuple[Any, Tensor]:
    """A small private module and its inputs."""
    torch.manual_seed(0)
    return dpcompile(mlp(3, 5, 2), loss=squares, max_grad_norm=0.5, **options), torch.randn(7, 3)


def tampered(private: Any, x: Tensor, change: Callable[[dict[Any, Tensor], int], None]) -> Any:
    """The same module, with a change to the outputs (by kind and name) of its compiled graph."""
    private(x)
    runner = private.ready().runner
    function, joint = runner.function, runner.joint

    def wrong(*args: Any) -> tuple[Any, ...]:
        outputs = dict(zip(joint.outputs, function(*args), strict=True))
        change(outputs, len(outputs["losses", ""]))
        return tuple(outputs.values())

    runner.function = wrong
    return private


@WAYS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", FEW, ids=str)
def test_step_agrees_with_the_loop(case: Case, dtype: torch.dtype, schedule: str) -> None:
    model, loss = case.build(dtype)
    private = dpcompile(model, loss=loss, batch_dim=case.batch_dim, max_grad_norm=0.1, schedule=schedule)
    found = private.verify(*case.batch(3, dtype), **case.kwargs(3, dtype))
    assert found.ok and found.independence is None and found.examples == 3, str(found)
    assert set(found.gradients) == {name for name, _ in private.trainable()}
    assert max(found.losses, found.norms, *found.gradients.values()) <= found.tolerance <= 1e-4


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_backend_of_the_user_is_what_is_verified(backend: str) -> None:
    private, x = private_mlp(backend=backend)
    assert private.verify(x).ok


@pytest.mark.parametrize("case", RANDOM, ids=str)
def test_random_models_are_verified_example_by_example_with_the_same_draws(case: Case) -> None:
    model, loss = case.build(torch.float32)
    private = dpcompile(model, loss=loss, batch_dim=case.batch_dim)
    found = private.verify(*case.batch(3, torch.float32), **case.kwargs(3, torch.float32))
    assert found.ok and any("random" in note for note in found.notes), str(found)


WRONG: dict[str, Callable[[dict[Any, Tensor], int], None]] = {
    "gradient": lambda out, size: out.update({("gradient", "2.weight"): out["gradient", "2.weight"] * 1.01}),
    "norms": lambda out, size: out.update({("norms", ""): out["norms", ""] * 0.999}),
    "losses": lambda out, size: out.update({("losses", ""): out["losses", ""] + 0.01}),
    "all": lambda out, size: out.update({k: v * 1.01 for k, v in out.items() if k[0] == "gradient"}),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_step_is_found(name: str) -> None:
    private, x = private_mlp()
    found = tampered(private, x, WRONG[name]).verify(x)
    assert not found.ok and "DISAGREES" in str(found)


def test_strict_names_the_worst_parameter() -> None:
    private, x = private_mlp()
    with pytest.raises(VerificationError, match=r"worst parameter is 2\.weight"):
        tampered(private, x, WRONG["gradient"]).verify(x, strict=True)


def by_size(outputs: dict[Any, Tensor], size: int) -> None:
    """Norms that depend on the number of examples, unless there are four, as for the loop."""
    outputs["norms", ""] = outputs["norms", ""] * (4 / size if size != 4 else 1.0)


def by_neighbour(outputs: dict[Any, Tensor], size: int) -> None:
    """Losses that depend on the neighbour, unless there are four of them."""
    if size != 4:
        outputs["losses", ""] = outputs["losses", ""] + outputs["losses", ""].roll(1)


def by_average(outputs: dict[Any, Tensor], size: int) -> None:
    """Averages instead of sums, unless there are four of them."""
    if size != 4:
        outputs["gradient", "0.weight"] = outputs["gradient", "0.weight"] / size


@pytest.mark.parametrize("change", [by_size, by_neighbour, by_average], ids=lambda change: change.__name__)
def test_step_that_depends_on_the_company_is_found(change: Any) -> None:
    private, x = private_mlp()
    found = tampered(private, x, change).verify(x, examples=4)
    assert not found.ok and found.independence is not None
    assert found.independence in str(found)


def test_wrong_random_step_is_found() -> None:
    torch.manual_seed(0)
    private = dpcompile(nn.Sequential(nn.Linear(3, 31), nn.Dropout(0.5), nn.Linear(31, 2)), loss=squares)
    x = torch.randn(5, 3)
    assert not tampered(private, x, WRONG["gradient"]).verify(x).ok


@WAYS
def test_gradients_buffers_mode_and_random_state_stay_as_they_were(schedule: str) -> None:
    model = nn.Sequential(spectral(training=True), nn.Dropout(0.5))
    model[0].requires_grad_(True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    private, x = dpcompile(model, loss=squares, schedule=schedule), torch.randn(5, 5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    assert private.verify(x).ok
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is not None and bool((p.grad == 1).all()) for p in model.parameters())


@pytest.mark.parametrize(("size", "examples", "compared"), [(0, 4, 0), (1, 4, 1), (7, 2, 2), (7, 100, 7)])
def test_no_more_examples_are_compared_than_there_are(size: int, examples: int, compared: int) -> None:
    private, x = private_mlp()
    found = private.verify(x[:size], examples=examples)
    assert found.ok and found.examples == compared and str(found)


def test_no_examples_are_refused() -> None:
    private, x = private_mlp()
    with pytest.raises(InvalidInput, match="at least 1"):
        private.verify(x, examples=0)


def test_non_finite_examples_must_be_so_in_both() -> None:
    private, x = private_mlp()
    x[2] = torch.nan
    assert private.verify(x).ok


def test_float32_is_compared_with_a_float64_copy_where_there_can_be_one() -> None:
    class Fixed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float())

    x = torch.randn(5, 3)
    assert "float64" in dpcompile(nn.Linear(3, 2), loss=squares).verify(x).reference
    assert "own" in dpcompile(Fixed(3, 2), loss=squares).verify(x).reference
    assert "own" in dpcompile(nn.Linear(3, 2).double(), loss=squares).verify(x.double()).reference


def test_half_types_are_verified_with_their_own_tolerance() -> None:
    found = dpcompile(mlp(3, 5, 2).bfloat16(), loss=squares).verify(torch.randn(5, 3, dtype=torch.bfloat16))
    assert found.ok and found.tolerance > 1e-2, str(found)
