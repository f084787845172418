"""Every way to a norm and to a clipped sum gives the oracle's, at every site of the zoo's layers.

All ways are emitted into one graph of a case and run once; the losses serve as factors of the weighted sums, since any
number per example does.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captured import Captured, captured_case, oracle_gradients, tensors
from oracle import errors, expect, relative_error
from torch import Tensor, fx
from zoo import LAYERS
from zoo_calling import CRITERIA
from zoo_case import squares
from zoo_layers import Using, parameter

from dpcompile import dpcompile
from dpcompile.ir.site import Site
from dpcompile.ir.verifier import check
from dpcompile.passes.order import order_nodes
from dpcompile.strategies import NORMS, SUMS
from dpcompile.strategies.emitter import Emitter
from dpcompile.strategies.sums import emit_site

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
# Their contractions and tails are those of another case; tests/test_compile.py forces strategies on them end to end.
ALIKE = {
    "execution order",
    "linear without bias",
    "submodule with keyword",
    "through a frozen layer",
    "in-place activations",
    "in-place arithmetic",
    "dropout, evaluating",
    "root parameter",
    "checkpoint",
    "reentrant checkpoint",
    "spectral norm, evaluating",
    "order within examples",
    "normalised within examples",
    "resampling",
    "gather by length",
    "attribute switch",
    "conv2d reflect padding",
    "conv2d circular padding",
    "conv2d replicate padding",
    "conv2d zeros padding",
    "conv2d without bias",
    "conv2d made channels_last",
    "LSTM, sequence first",
    "LSTM, one step",
    "LSTM cell",
    "GRU",
    "GRU, two layers without bias",
    "RNN",
    "RNN, ReLU, two layers both ways",
    "LSTM on sequence-first input",
    "self-attention, batch first, weights",
    "self-attention, batch first",
    "self-attention, sequence first, weights",
    "cross-attention, batch first",
    "token loss",
    "nested inputs",
    "model returns losses",
    "sequence-first transformer",
    "shared input",
    "two inputs",
    "unused parameter",
}
CASES = [case.name for case in LAYERS if case not in CRITERIA and case.name not in ALIKE]
TOLERANCE = 1e-9
Ways = dict[tuple[str, str], fx.Node | None]


def norms_of(site: Site) -> list[str]:
    """The norm strategies that apply to a site."""
    return [name for name, norm in NORMS.items() if norm.declines(site) is None]


def sums_of(site: Site, norm: str) -> list[str]:
    """The sums that fit a norm at a site."""
    return [name for name, total in SUMS.items() if all(total.declines(t.contraction, NORMS[norm]) is None for t in site.terms)]


def emit_all(captured: Captured) -> Captured:
    """A copy of the graph that returns the squared norm and the weighted sum by every strategy at every site."""
    copy = captured.copied()
    losses, emitter = copy.joint.output("losses"), Emitter(copy.joint)
    assert losses is not None
    outputs: Ways = {("losses", ""): losses}
    for site in copy.sites:
        for norm in norms_of(site):
            emitter.at(site.terms[-1].contraction.node)
            outputs["square", f"{site.parameter} {norm}"] = NORMS[norm].emit(site, emitter).squared
            for total in sums_of(site, norm):
                emitter.anchor = copy.joint.graph.output_node()
                way = f"{site.parameter} {norm} {total}"
                outputs["sum", way] = emit_site(site, NORMS[norm], SUMS[total], losses, emitter, {})
    copy.joint.replace_outputs(outputs)
    order_nodes(copy.joint)
    check(copy.joint, "the emission of all strategies")
    copy.joint.module.recompile()
    return copy


@pytest.mark.parametrize("name", CASES)
def test_every_strategy_gives_the_norms_and_sums_of_the_loop(name: str) -> None:
    gradients, emitted = oracle_gradients(name), emit_all(captured_case(name))
    with torch.no_grad():
        outputs: dict[Any, Tensor] = dict(zip(emitted.joint.outputs, emitted.joint.module(*tensors(emitted)), strict=True))
    scale = max(float(g.flatten(1).norm(dim=1).max()) if g.dim() > 1 else float(g.abs().max()) for g in gradients.values())
    losses = outputs.pop(("losses", ""))
    assert len(outputs) >= 2 * len(emitted.sites)
    for (kind, way), found in outputs.items():
        gradient = gradients[way.split()[0]]
        right = gradient.reshape(3, -1).square().sum(1) if kind == "square" else torch.tensordot(losses, gradient, dims=1)
        size = scale**2 if kind == "square" else scale * float(losses.abs().sum())
        assert relative_error(found, right, size) < TOLERANCE, way


def test_the_cases_that_are_left_out_exist() -> None:
    assert {case.name for case in LAYERS} >= ALIKE


def all_sites() -> list[Site]:
    """Every site of the zoo's layers."""
    return [site for name in CASES for site in captured_case(name).sites]


# "ordinary" is a matter of the whole plan, "masked" of passes (tests/strategies/test_masked.py).
@pytest.mark.parametrize("norm", [norm for norm in NORMS if norm not in ("ordinary", "masked")])
def test_every_norm_applies_somewhere_and_declines_elsewhere_with_a_reason(norm: str) -> None:
    answers = [NORMS[norm].declines(site) for site in all_sites()]
    assert None in answers
    if norm != "materialize":  # which is always right
        assert any(answer and len(answer.split()) > 2 for answer in answers)


@pytest.mark.parametrize("total", [total for total in SUMS if total not in ("reweight", "scale")])  # matters of the whole plan
def test_every_sum_applies_somewhere_and_declines_elsewhere_with_a_reason(total: str) -> None:
    pairs = [(term.contraction, norm) for site in all_sites() for term in site.terms for norm in NORMS.values()]
    answers = {SUMS[total].declines(contraction, norm) for contraction, norm in pairs}
    assert None in answers and any(answer and len(answer.split()) > 2 for answer in answers)


def test_every_site_can_be_served() -> None:
    assert all(sums_of(site, norm) for site in all_sites() for norm in norms_of(site)[:1])


@pytest.mark.parametrize("norm", ["rows", "materialize"])
def test_negative_rows_of_a_table_count_from_its_end(norm: str) -> None:
    model = Using(lambda m, ids: m.table[ids - 5], table=parameter(11, 3)).double()
    ids = torch.randint(0, 11, (3, 7))
    right = expect(model, squares, (ids,), max_grad_norm=0.5)
    found = errors(dpcompile(model, loss=squares, max_grad_norm=0.5, strategy={"table": norm})(ids), right)
    assert max(found.values()) < TOLERANCE, found
