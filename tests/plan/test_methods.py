"""The table of methods: what each one asks for at every kind of parameter, and what it refuses, with the way out."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import pytest
import torch
from captured import Captured, captured, captured_case
from torch import nn
from typer.testing import CliRunner
from zoo_case import squares
from zoo_layers import Using

from dpcompile import InvalidInput, StrategyError, dpcompile
from dpcompile.__main__ import app
from dpcompile.analysis.cuts import find_cuts
from dpcompile.arguments import SCHEDULES
from dpcompile.passes import copies
from dpcompile.plan.methods import KINDS, METHODS, Method, is_gram_smaller, kind_of, resolve
from dpcompile.plan.saved import load_plan
from dpcompile.strategies import NORMS, SUMS

TWO_PASS = [name for name, method in METHODS.items() if method.schedule == "two-pass"]
ONE_PASS = [name for name, method in METHODS.items() if method.schedule == "one-pass"]
BIG = {
    "naive": "ordinary", "multi": "materialize", "crb": "grouped-extra", "crb-nd": "grouped", "crb-unfold": "materialize",
    "reweight": "materialize", "ghost": "gram", "mixed-ghost": "materialize", "bookkeep": "gram",
}  # fmt: skip
"""The norm of a convolution with many positions."""


def resolved(name: str, model: Captured) -> dict[str, tuple[str, str]]:
    """What a method asks for."""
    return resolve(METHODS[name], model.sites, find_cuts(model.joint, model.states, model.sites))


@pytest.fixture(scope="module")
def images() -> Captured:
    """A convolution with many positions and few channels, a GroupNorm, a linear layer on one position."""
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.GroupNorm(3, 3), nn.Flatten(), nn.Linear(75, 5))
    return captured(net, squares, torch.randn(3, 2, 7, 7))


@pytest.fixture(scope="module")
def tokens() -> Captured:
    """A lookup, a linear layer on few positions and wide, one on many and narrow."""
    net = Using(lambda m, ids: m.b(m.a(m.e(ids))), e=nn.Embedding(11, 5), a=nn.Linear(5, 131), b=nn.Linear(131, 2))
    return captured(net, squares, torch.randint(0, 11, (3, 13)))


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_a_row_names_what_exists_and_says_what_it_is(method: Method) -> None:
    assert set(method.norms) == set(KINDS) and all(norm in NORMS for norms in method.norms.values() for norm in norms)
    assert method.sums and set(method.sums) <= set(SUMS) and method.schedule in SCHEDULES
    assert method.instead in ("auto", *METHODS) and method.instead != method.name
    assert len(method.text.split()) > 6 and method.source in str(method) and method.name in str(method)


@pytest.mark.parametrize("name", METHODS)
def test_convolutions_get_what_the_paper_does(images: Captured, name: str) -> None:
    found = resolved(name, images)
    assert set(found) == {site.parameter for site in images.sites}
    assert found["0.weight"][0] == BIG[name]
    is_ghost = name in ("reweight", "ghost", "mixed-ghost", "bookkeep")
    assert found["3.weight"][0] == ("outer" if is_ghost else "ordinary" if name == "naive" else "materialize")
    assert found["1.weight"][0] == found["0.bias"][0] == ("ordinary" if name == "naive" else "materialize")


@pytest.mark.parametrize("name", METHODS)
def test_sums_are_those_of_the_schedule(images: Captured, name: str) -> None:
    sums = {total for _, total in resolved(name, images).values()}
    if name in TWO_PASS:
        assert sums == {"reweight"}
    else:
        assert sums == ({"bookkeep", "reuse"} if name == "bookkeep" else {"scale"} if name == "naive" else {"reuse"})


@pytest.mark.parametrize("name", ["ghost", "bookkeep", "mixed-ghost", "reweight"])
def test_lookups_and_products_of_sequences(tokens: Captured, name: str) -> None:
    found = {parameter: norm for parameter, (norm, _) in resolved(name, tokens).items()}
    assert found["e.weight"] == "rows"
    assert found["a.weight"] == ("materialize" if name == "reweight" else "gram")  # 2 * 13^2 <= 5 * 131
    assert found["b.weight"] == ("gram" if name in ("ghost", "bookkeep") else "materialize")  # 2 * 13^2 > 131 * 2


@pytest.mark.parametrize(("positions", "width"), [(3, 18), (3, 17), (1, 2), (1, 1), (7, 98), (7, 97)])
def test_the_rule_of_mixed_ghost_clipping(positions: int, width: int) -> None:
    site = captured(nn.Linear(width, 1, bias=False), squares, torch.randn(2, positions, width)).sites[0]
    assert is_gram_smaller(site) == (2 * positions**2 <= width)


@pytest.mark.parametrize(
    ("case", "parameter", "kind"),
    [
        ("linear on sequences", "0.weight", "product"),
        ("conv2d grouped", "0.weight", "convolution"),
        ("convolution called twice", "c.weight", "convolution"),
        ("called twice", "a.weight", "reused"),
        ("called twice", "a.bias", "other"),
        ("layer norm", "0.bias", "other"),
        ("token loss", "e.weight", "lookup"),
    ],
)
def test_kinds_of_parameters(case: str, parameter: str, kind: str) -> None:
    sites = {site.parameter: kind_of(site) for site in captured_case(case).sites}
    assert sites[parameter] == kind, sites


@pytest.mark.parametrize(
    ("name", "case", "message"),
    [
        ("crb", "conv3d", r"crb.*0\.weight by grouped-extra.*3 dimensions.*4.*crb-nd"),
        ("ghost", "convolution called twice", r"ghost.*c\.weight by gram.*2 times.*mixed-ghost"),
        ("bookkeep", "folded batch", r"bookkeep.*c\.weight by gram.*several images"),
    ],
)
def test_a_parameter_without_a_way_is_named_with_the_reason_and_the_way_out(name: str, case: str, message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        resolved(name, captured_case(case))


@pytest.mark.parametrize("name", TWO_PASS)
def test_a_second_backward_that_does_not_reach_a_parameter_is_refused(images: Captured, name: str) -> None:
    with pytest.raises(StrategyError, match=rf"{name}.*0\.weight.*bookkeep"):
        resolve(METHODS[name], images.sites, ())
    with pytest.raises(StrategyError, match=r"half type.*bookkeep"):
        dpcompile(nn.Linear(3, 2).bfloat16(), loss=squares, strategy=name)(torch.randn(2, 3).bfloat16())


@pytest.mark.parametrize("name", TWO_PASS)
@pytest.mark.parametrize("clipping", ["per-layer"])
def test_groups_exclude_a_second_backward(name: str, clipping: str) -> None:
    with pytest.raises(StrategyError, match=f"{name}.*{clipping}.*bookkeep"):
        dpcompile(nn.Linear(3, 2), loss=squares, strategy=name, clipping=clipping)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("naive", {"schedule": "one-pass"}, r'schedule="microbatch".*leave schedule="one-pass" out'),
        ("naive", {"schedule": "two-pass"}, "leave schedule"),
        ("naive", {"microbatch": 2}, "one example at a time.*leave microbatch=2 out"),
        *((name, {"schedule": "two-pass"}, r'schedule="one-pass"') for name in ONE_PASS),
        *((name, {"schedule": "one-pass"}, r'schedule="two-pass"') for name in TWO_PASS),
    ],
)
def test_a_schedule_that_is_not_the_methods_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        dpcompile(nn.Linear(3, 2), loss=squares, strategy=name, **options)


def test_a_schedule_that_does_not_exist_is_refused_as_ever() -> None:
    with pytest.raises(StrategyError, match="does not exist"):
        dpcompile(nn.Linear(3, 2), loss=squares, strategy="ghost", schedule="three-pass")


@pytest.mark.parametrize("strategy", [{"*": "ghost"}, {"weight": "multi"}, {"weight": ("gram", "naive")}], ids=str)
def test_methods_are_for_the_whole_model(strategy: dict[str, Any]) -> None:
    with pytest.raises(StrategyError, match="is for the whole model"):
        dpcompile(nn.Linear(3, 2), loss=squares, strategy=strategy)(torch.randn(2, 3))


def test_multi_refuses_random_draws() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5), nn.Linear(5, 2))
    with pytest.raises(StrategyError, match=r"multi.*(dropout|bernoulli).*random numbers.*crb-unfold"):
        dpcompile(net, loss=squares, strategy="multi")(torch.randn(2, 3))


def test_multi_names_the_operation_and_the_line_that_vmap_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "make_runnable", lambda node: None)  # torch.vmap has no rule for sizes as nodes
    net = Using(lambda m, x: m.a(x).reshape(x.shape[0] * 7, 3).view(x.shape[0], 21), a=nn.Linear(5, 3))
    with pytest.raises(StrategyError, match=r"multi.*sym_size.*torch\.vmap cannot run it: .*sym_size.*crb-unfold"):
        dpcompile(net, loss=squares, strategy="multi")(torch.randn(2, 7, 5))
    monkeypatch.undo()
    assert dpcompile(net, loss=squares, strategy="multi")(torch.randn(2, 7, 5)).norms.shape == (2,)


def test_multi_says_what_runs_one_example_at_a_time(capfd: pytest.CaptureFixture[str]) -> None:
    """torch writes advice about that past Python's warnings, at every call."""
    net = Using(lambda m, x: m.b(m.a(x)[0]), a=nn.LSTM(3, 5, batch_first=True), b=nn.Linear(5, 2))
    looped, batched = (dpcompile(model, loss=squares, strategy="multi") for model in (net, nn.Linear(3, 2)))
    for size in (2, 3):
        looped(torch.randn(size, 7, 3))
        batched(torch.randn(size, 7, 3))
    note = "multi: torch.vmap has no batched form of dpcompile.lstm.default, dpcompile.lstm_backward.default"
    assert note in str(looped.report()) and "no batched form" not in str(batched.report())
    written = capfd.readouterr()
    assert "performance drop" not in written.err + written.out


class Detached(torch.autograd.Function):
    """Losses that require grad, with no gradient for anything."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x.sum(1)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[None, None]:
        return None, None


@pytest.mark.parametrize("name", METHODS)
def test_a_model_without_a_gradient_has_gradients_of_zero(name: str) -> None:
    def loss(m: Any, x: torch.Tensor) -> torch.Tensor:
        losses: torch.Tensor = Detached.apply(x, m.weight)  # type: ignore[no-untyped-call]
        return losses

    private = dpcompile(nn.Linear(3, 2), loss=loss, strategy=name)
    step = private(torch.ones(4, 3))
    assert step.losses.tolist() == [3.0] * 4 and step.norms.tolist() == [0.0] * 4 and not step.grads["weight"].any()


@pytest.mark.parametrize(
    "edit", [{"norm": "gram", "sum": "bookkeep"}, {"norm": "grouped", "sum": "reuse"}, {"norm": "auto"}], ids=str
)
def test_a_plan_with_copies_takes_what_copies_give(edit: dict[str, str], tmp_path: Path) -> None:
    path, x = tmp_path / "plan.json", torch.randn(2, 3, 7, 7)
    dpcompile(nn.Conv2d(3, 2, 3), loss=squares, strategy="multi", example_batch=(x,)).plan.save(path)
    document = json.loads(path.read_text())
    document["choices"][0] |= edit
    path.write_text(json.dumps(document))
    with pytest.raises(StrategyError, match=rf"copies.*materialize.*reuse.*weight has .*{edit['norm']}"):
        dpcompile(nn.Conv2d(3, 2, 3), loss=squares, plan=path)(x)


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_plan_is_the_same_method(name: str, tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2)), torch.randn(3, 7, 5)
    first = dpcompile(model, loss=squares, strategy=name)
    step = first(x)
    first.plan.save(tmp_path / "plan.json")
    again = dpcompile(model, loss=squares, plan=tmp_path / "plan.json")
    assert torch.equal(again(x).grads["0.weight"], step.grads["0.weight"])
    assert again.plan.strategies() == first.plan.strategies() and again.plan.microbatch == first.plan.microbatch
    assert again.plan.copies == first.plan.copies == METHODS[name].copies
    assert (again.plan.cut is None) == (first.plan.cut is None) == (name not in TWO_PASS)


def test_a_plan_for_one_example_at_a_time_is_refused_for_more(tmp_path: Path) -> None:
    model, path = nn.Linear(5, 3), tmp_path / "plan.json"
    dpcompile(model, loss=squares, strategy="naive", example_batch=(torch.randn(2, 5),)).plan.save(path)
    edited = json.loads(path.read_text()) | {"microbatch": None}
    path.write_text(json.dumps(edited))
    for chunk in (None, 2):
        with pytest.raises(StrategyError, match=r"ordinary.*one at a time.*microbatch=1"):
            dpcompile(model, loss=squares, plan=path, microbatch=chunk)(torch.randn(3, 5))
    path.write_text(json.dumps(edited | {"copies": 1}))
    with pytest.raises(StrategyError, match="copies is 1"):
        load_plan(path)


def test_auto_may_take_the_ordinary_gradient_where_examples_come_one_at_a_time() -> None:
    model, x = nn.Linear(131, 127), torch.randn(3, 7, 131)
    alone, whole = (dpcompile(model, loss=squares, microbatch=chunk, example_batch=(x,)) for chunk in (1, None))
    ways = [{(o.norm, o.sum) for o in (c.option, *c.others)} for p in (alone, whole) for c in p.plan.choices]
    assert [("ordinary", "scale") in way for way in ways] == [True, True, False, False]


@pytest.mark.parametrize("name", METHODS)
def test_reports_and_forecasts_speak_of_the_method(name: str) -> None:
    model, x = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(75, 5)), torch.randn(3, 2, 7, 7)
    private = dpcompile(model, loss=squares, strategy=name, example_batch=(x,))
    report = private.report()
    assert str(METHODS[name]) in str(report)
    assert METHODS[name].text in report.json() and escape(METHODS[name].text) in report.html()
    assert report.private_seconds > 0 and "0.weight" in str(private.certificate())
    small, large = (report.what_if(batch_size=size, hardware="h200") for size in (16, 256))
    assert 0 < small.seconds < large.seconds and small.plan.strategies() == private.plan.strategies()
    assert report.what_if(memory_budget="1 GB").peak_bytes < 1e9
    if name == "naive":
        with pytest.raises(InvalidInput, match="one example at a time"):
            report.max_batch_size("1 GB")
    else:
        assert report.max_batch_size("1 GB") > 3


@pytest.mark.parametrize("name", ["naive", "multi", "ghost"])
def test_the_command_line_explains_a_method(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "asked.py").write_text(
        "import torch\n"
        "def make(batch_size):\n"
        "    model = torch.nn.Linear(5, 3)\n"
        "    return model, lambda m, x: m(x).square().sum(1), (torch.randn(batch_size, 5),)\n"
    )
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(app, ["explain", "asked:make", "--batch-size", "4", "--strategy", name])
    assert found.exit_code == 0 and METHODS[name].text in found.output
    refused = CliRunner().invoke(app, ["explain", "asked:make", "--strategy", "phantom"])
    assert refused.exit_code == 1 and "no strategy 'phantom'" in refused.output
