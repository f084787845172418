"""The certificate says what was shown, by which checks, and what was assumed."""

from __future__ import annotations

import json
import platform
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo_case import squares
from zoo_layers import Using
from zoo_networks import mlp

from dpcompile import GradientDropping, InvalidInput, PrePruning, dpcompile
from dpcompile.analysis import independence

FIELDS = {
    "schema", "version", "made_with", "verdict", "graph", "operations", "on_shared_values", "parameters", "without_gradient",
    "frozen", "checks", "assumptions", "clipping", "selection", "sensitivity",
}  # fmt: skip


def compiled(**options: Any) -> Any:
    """A classifier that has seen a batch."""
    private = dpcompile(mlp(3, 5, 2), loss=nn.CrossEntropyLoss(), max_grad_norm=0.25, **options)
    private(torch.randn(4, 3), torch.randint(0, 2, (4,)))
    return private


def document(private: Any) -> dict[str, Any]:
    """The certificate as its JSON holds it."""
    found: dict[str, Any] = json.loads(private.certificate().json())
    return found


def test_json_has_every_field_of_its_schema() -> None:
    found = document(compiled())
    assert set(found) == FIELDS and (found["schema"], found["version"]) == ("dpcompile-certificate", 1)
    assert found["made_with"]["torch"] == torch.__version__ and found["made_with"]["python"] == platform.python_version()
    assert found["sensitivity"]["l2"] == 0.25 and "add or remove" in found["sensitivity"]["neighbours"]


def test_text_says_what_the_json_says() -> None:
    private = compiled()
    text, found = str(private.certificate()), document(private)
    assert found["verdict"] in text and all(line in text for line in found["assumptions"])
    assert all(name in text for name in found["operations"]) and "0.25 in L2" in text


def test_what_is_trained_in_part_is_told_with_what_it_takes_for_granted() -> None:
    assert document(compiled())["selection"] is None
    public = torch.randn(2, 3), torch.randint(0, 2, (2,))
    pruning = PrePruning(0.5, "snip", "rows", public_batch=public, parameters=["0.weight"])
    private = compiled(passes=[pruning, GradientDropping(0.5, "random", parameters=["2.weight"])])
    found = document(private)
    selection, assumed = found["selection"], [text for text in found["assumptions"] if "PrePruning" in text or "Gradient" in text]
    assert set(selection["parts"]) == {"0.weight", "0.bias", "2.weight"} and (selection["parts"]["0.weight"]["dim"]) == 0
    capacity = int(private.program.selection.mask("0.weight").any(1).sum())
    assert selection["parts"]["0.weight"]["capacity"] == capacity and selection["parts"]["2.weight"]["entries"]
    assert len(assumed) == 2 and "public_batch" in assumed[0] and "weights" in assumed[1], "of snip; random numbers need nothing"
    assert all(text in str(private.certificate()) for text in (*selection["passes"], *assumed))


def test_operations_are_those_of_the_captured_graph() -> None:
    private = compiled()
    found = document(private)
    nodes = [n for n in private.ready().outlook.source.joint.graph.nodes if n.op == "call_function"]
    assert sum(found["operations"].values()) + found["on_shared_values"] == len(nodes)
    assert found["operations"]["aten.addmm.default"] == 2


def test_parameters_have_their_sites_and_ways() -> None:
    model = mlp(3, 5, 2)
    model.get_parameter("0.weight").requires_grad_(False)
    private = dpcompile(Using(lambda m, x: m.net(x), net=model, spare=nn.Linear(2, 2)), loss=squares)
    private(torch.randn(4, 3))
    found = document(private)
    assert [p["name"] for p in found["parameters"]] == ["net.0.bias", "net.2.weight", "net.2.bias"]
    assert all(p["equation"] and p["norm"] and p["sum"] for p in found["parameters"])
    assert found["frozen"] == ["net.0.weight"] and found["without_gradient"] == ["spare.weight", "spare.bias"]


def test_every_check_is_listed_and_passed() -> None:
    checks = {check["name"]: check for check in document(compiled())["checks"]}
    assert set(checks) == {"rules", "batch sizes", "numbers", "passes"} and all(check["passed"] for check in checks.values())
    assert "emit_norms" in checks["passes"]["detail"]


def test_a_batch_size_that_decided_between_kernels_is_listed() -> None:
    private = dpcompile(nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Conv2d(4, 2, 3)), loss=squares)
    private(torch.randn(4, 2, 7, 7))
    (check,) = [check for check in document(private)["checks"] if check["name"] == "batch sizes"]
    sizes = private.ready().outlook.source.joint.sizes
    assert f"traced with {', '.join(map(str, sizes))} examples" in check["detail"]


def test_constants_shared_tensors_and_numbers_are_assumptions() -> None:
    offset = torch.randn(2)

    def loss(model: nn.Module, x: Tensor, table: Tensor, *, scale: float) -> Tensor:
        return ((model(x) - offset) * table * scale).square().sum(1)

    private = dpcompile(nn.Linear(3, 2), loss=loss, batch_dim=(0, None))
    private(torch.randn(4, 3), torch.ones(2), scale=0.5)
    found = "\n".join(document(private)["assumptions"])
    assert "a constant of shape [2]" in found and "args[1]" in found and "scale'] = 0.5" in found


def test_a_loss_outside_of_the_module_is_an_assumption() -> None:
    module = dpcompile(mlp(3, 5, 2)).as_module()
    F.cross_entropy(module(torch.randn(4, 3)), torch.randint(0, 2, (4,))).backward()
    found = json.loads(module.certificate().json())
    assert (
        any("not verified" in text for text in found["assumptions"])
        and "if what is assumed of the loss holds" in found["verdict"]
    )


def test_the_graph_is_identified() -> None:
    first, again = document(compiled()), document(compiled())
    assert first["graph"]["captured"] == again["graph"]["captured"] and first["graph"]["final"] == again["graph"]["final"]
    other = document(compiled(strategy="materialize"))
    assert other["graph"]["captured"] == first["graph"]["captured"] and other["graph"]["final"] != first["graph"]["final"]


def test_nothing_is_certified_before_a_batch_was_seen() -> None:
    with pytest.raises(InvalidInput, match="nothing is compiled yet"):
        dpcompile(mlp(3, 5, 2), loss=squares).certificate()


# The check on numbers can be switched off.


def test_check_on_numbers_runs_by_default_and_is_switched_off_by_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = list[int]()
    once = independence.Check.once

    def counted(check: independence.Check, attempt: int) -> Any:
        runs.append(attempt)
        return once(check, attempt)

    monkeypatch.setattr(independence.Check, "once", counted)
    compiled()
    assert runs == [0]
    private = compiled(check_examples=False)
    assert runs == [0]
    (check,) = [check for check in document(private)["checks"] if check["name"] == "numbers"]
    assert check["passed"] is None and "switched off" in str(private.certificate())
    private.per_example_gradients(torch.randn(4, 3), torch.randint(0, 2, (4,)))
    assert runs == [0]
    compiled().per_example_gradients(torch.randn(4, 3), torch.randint(0, 2, (4,)))
    assert runs == [0, 0, 0]


def test_steps_are_the_same_with_and_without_the_check() -> None:
    model, x = mlp(3, 5, 2), torch.randn(4, 3)
    step, other = (dpcompile(model, loss=squares, check_examples=check)(x) for check in (True, False))
    assert torch.equal(step.norms, other.norms) and all(torch.equal(g, other.grads[n]) for n, g in step.grads.items())


def test_rules_refuse_without_the_check() -> None:
    model = Using(lambda m, x: m.a(x) - m.a(x).mean(0), a=nn.Linear(3, 2))
    with pytest.raises(Exception, match="mean over the batch"):
        dpcompile(model, loss=squares, check_examples=False)(torch.randn(4, 3))


def test_what_only_numbers_show_is_not_found_without_the_check() -> None:
    model = Using(lambda m, x: m.a(x).tanh() if x.shape[0] == 1 else m.a(x), a=nn.Linear(3, 2))
    with pytest.raises(Exception, match="batch size is 1"):
        dpcompile(model, loss=squares)(torch.randn(4, 3))
    assert dpcompile(model, loss=squares, check_examples=False)(torch.randn(4, 3)).norms.shape == (4,)


def test_the_drop_in_follows_the_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(independence.Check, "once", lambda check, attempt: pytest.fail("the check ran"))
    module = dpcompile(mlp(3, 5, 2), check_examples=False).as_module()
    F.cross_entropy(module(torch.randn(4, 3)), torch.randint(0, 2, (4,))).backward()
