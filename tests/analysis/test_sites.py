"""From parameter gradients back to contractions: equations, sizes, placements, tails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captured import captured, captured_case
from torch import nn
from zoo_case import squares
from zoo_layers import Using, parameter

from dpcompile.ir.site import ChannelScale, Convolution, Dense, LayerScale, Opaque, Rows, Site, Total

FAMILIES = (
    ("linear", "weight", Dense, "bti,bto->oi"),
    ("linear", "bias", Total, "bt...->..."),
    ("matrix product", "w", Dense, "bti,bto->oi"),
    ("embedding", "weight", Rows, "bt,bte->ve"),
    ("sparse embedding", "weight", Rows, "bt,bte->ve"),
    ("conv2d", "2.weight", Convolution, "bit,bot->oi"),
    ("conv2d", "2.bias", Total, "bt...->..."),
    ("transposed conv2d", "2.weight", Convolution, "bit,bot->oi"),
    ("conv1d", "0.weight", Convolution, "bit,bot->oi"),
    ("layer norm", "0.weight", LayerScale, "btn,btn->n"),
    ("layer norm", "0.bias", Total, "bt...->..."),
    ("group norm", "1.weight", ChannelScale, "bct,bct->c"),
    ("group norm", "1.bias", Total, "bt...->..."),
    ("LSTM", "rnn.weight_ih_l0", Dense, "bti,bto->oi"),
    ("LSTM", "rnn.weight_hh_l0", Dense, "bti,bto->oi"),
    ("LSTM", "rnn.bias_ih_l0", Total, "bt...->..."),
    ("LSTM, projected", "rnn.weight_hr_l0", Dense, "bti,bto->oi"),
    ("temperature", "t", Total, "bt...->..."),
    ("loss with parameters", "loss.prototypes", Rows, "bt,bte->ve"),
    ("bilinear", "l.weight", Opaque, "?"),
)


@pytest.mark.parametrize(("name", "parameter", "family", "equation"), FAMILIES)
def test_contraction_is_recognised(name: str, parameter: str, family: type, equation: str) -> None:
    site = captured_case(name).site(parameter)
    assert [type(term.contraction) for term in site.terms] == [family] and site.equation == equation
    assert str(site) == f"{parameter}: {equation} {list(site.shape)}"


@pytest.mark.parametrize(
    ("name", "parameter", "sizes"),
    [
        ("linear", "weight", (1, 5, 3)),
        ("linear on sequences", "0.weight", (7, 5, 3)),
        ("linear on 4-D input", "weight", (14, 5, 3)),
        ("sequence-first inside", "a.weight", (7, 5, 3)),
        ("LSTM", "rnn.weight_hh_l0", (7, 5, 20)),
        ("LSTM, projected", "rnn.weight_hh_l0", (4, 2, 20)),
        ("LSTM, projected", "rnn.weight_hr_l0", (4, 5, 2)),
        ("weight on the left", "w", (7, 5, 3)),
    ],
)
def test_sizes_of_a_matrix_product(name: str, parameter: str, sizes: tuple[int, int, int]) -> None:
    contraction: Any = captured_case(name).site(parameter).terms[0].contraction
    assert contraction.positions == sizes[0] and {contraction.d, contraction.p} == set(sizes[1:])


def test_sizes_of_a_convolution() -> None:
    contraction: Any = captured_case("conv2d").site("2.weight").terms[0].contraction
    assert contraction.weight_shape == (5, 3, 3, 2) and contraction.positions == 5 * 10 and contraction.input_positions == 7 * 11
    assert contraction.geometry.kernel == (3, 2)


def test_images_folded_into_the_batch_are_counted() -> None:
    contraction: Any = captured_case("folded batch").site("c.weight").terms[0].contraction
    assert contraction.x.folded == contraction.g.folded == 5


def test_padding_has_no_gradient() -> None:
    contraction: Any = captured_case("embedding with padding").site("weight").terms[0].contraction
    assert (contraction.padding_idx, contraction.rows, contraction.width, contraction.positions) == (1, 5, 3, 7)


# -- several contractions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameter", "placements"),
    [
        ("called twice", "a.weight", {"same"}),
        ("functional reuse", "l.weight", {"same"}),
        ("called twice on different shapes", "e.weight", {"same"}),
        ("module tie", "e.weight", {"same"}),
        ("functional tie", "e.weight", {"same"}),
        ("convolution called twice", "c.weight", {"same"}),
    ],
)
def test_reused_weights_have_several_terms(name: str, parameter: str, placements: set[str]) -> None:
    site = captured_case(name).site(parameter)
    assert len(site.terms) >= 2 and site.isometric and {term.placement for term in site.terms} == placements


def test_tied_embedding_joins_a_lookup_and_a_product() -> None:
    assert {type(term.contraction) for term in captured_case("module tie").site("e.weight").terms} == {Rows, Dense}


def test_a_weight_used_with_its_transpose_is_placed_both_ways() -> None:
    model = Using(lambda m, x: (x @ m.w).tanh() @ m.w.t().clone(memory_format=torch.contiguous_format), w=parameter(5, 3))
    site = captured(model, squares, torch.randn(2, 5)).site("w")
    assert {term.placement for term in site.terms} == {"same", "transposed"} and site.isometric


def test_slices_of_one_weight_are_moved_into_their_places() -> None:
    site = captured_case("sliced weight").site("w")
    assert len(site.terms) == 2 and {term.placement for term in site.terms} == {"moved"}


# -- tails -------------------------------------------------------------------------------------------------------


def site_of(forward: Any, **parts: Any) -> Site:
    """The site of `w` in a small model."""
    return captured(Using(forward, **parts), squares, torch.randn(2, 5)).site("w")


def test_a_plain_use_has_no_tail() -> None:
    site = captured_case("linear").site("weight")
    assert site.tail == () and site.isometric and site.terms[0].scale == 1.0


def test_scaling_in_the_tail_is_a_factor_of_the_term() -> None:
    site = site_of(lambda m, x: x @ (-3.0 * m.w), w=parameter(5, 3))
    assert site.isometric and site.terms[0].scale == -3.0 and len(site.tail) == 1


def test_factors_and_transposes_multiply() -> None:
    site = site_of(lambda m, x: x @ (2.0 * (0.5 * m.w).t()), w=parameter(3, 5))
    assert site.isometric and site.terms[0].scale == pytest.approx(1.0)


@pytest.mark.parametrize(
    "forward",
    [lambda m, x: x @ (m.w * m.w.detach()), lambda m, x: x @ m.w.exp(), lambda m, x: x @ m.w.expand(5, 3)],
    ids=["product", "function", "expand"],
)
def test_a_tail_that_changes_norms_is_said_to(forward: Any) -> None:
    site = site_of(forward, w=parameter(1, 3) if "expand" in str(forward.__code__.co_names) else parameter(5, 3))
    assert not site.isometric and site.tail


def test_the_same_gradient_used_twice_is_not_isometric() -> None:
    site = site_of(lambda m, x: x @ (m.w + m.w.t()), w=parameter(5, 5))
    assert not site.isometric and len(site.terms) == 1


def test_weight_norm_has_a_tail_of_its_jacobian() -> None:
    found = captured_case("old weight norm")
    assert all(site.tail and not site.isometric for site in found.sites if site.parameter.startswith("0.weight"))


def test_two_parameters_of_one_contraction_share_it() -> None:
    found = captured_case("old weight norm")
    first, second = (found.site(name) for name in ("0.weight_g", "0.weight_v"))
    assert first.terms[0].contraction is second.terms[0].contraction


def test_tails_stand_in_the_order_of_the_graph() -> None:
    found = captured_case("weight times its transpose")
    order = {node: i for i, node in enumerate(found.joint.graph.nodes)}
    assert [order[node] for node in found.sites[0].tail] == sorted(order[node] for node in found.sites[0].tail)


# -- parameters without gradient ---------------------------------------------------------------------------------


def test_unused_and_frozen_parameters_have_no_site() -> None:
    found = captured_case("unused parameter")
    assert found.unused == ["unused.weight", "unused.bias"] and [site.parameter for site in found.sites] == ["a.weight", "a.bias"]
    assert not [s for s in captured_case("through a frozen layer").sites if s.parameter.startswith("1.0")]


def test_sites_stand_in_the_order_of_the_parameters() -> None:
    found = captured(nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2)), squares, torch.randn(2, 5))
    assert [site.parameter for site in found.sites] == ["0.weight", "0.bias", "1.weight", "1.bias"]
