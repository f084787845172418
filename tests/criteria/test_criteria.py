"""What is kept: by each criterion, granularity and scope, against formulas written down a second time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from zoo_case import squares
from zoo_networks import mlp

from dpcompile import Blocks, GradientDropping, InvalidInput, PrePruning, Ramp, dpcompile
from dpcompile.criteria.choices import kept_of


def network() -> nn.Module:
    """A convolution and two linear layers in float64."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, 5)
    ).double()  # fmt: skip


def public() -> tuple[Tensor]:
    """A public batch."""
    return (torch.randn(3, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(9)),)


def left(model: nn.Module, choice: Any) -> dict[str, Tensor]:
    """The masks that a choice makes."""
    selection = dpcompile(model, loss=squares, passes=[choice]).program.selection
    assert selection is not None
    masks = {name: selection.mask(name) for name in selection.layouts}
    return {name: mask.clone() for name, mask in masks.items() if mask is not None}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of the public batch's summed losses."""
    return dict(
        zip(
            dict(model.named_parameters()),
            torch.autograd.grad(squares(model, *public()).sum(), list(model.parameters())),
            strict=True,
        )
    )


def flows(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """|w dR/dw| of the network of absolute weights for ones."""
    positive = {name: w.abs().requires_grad_() for name, w in weights.items()}
    total = functional_call(network(), positive, torch.ones_like(public()[0])).sum()
    found = torch.autograd.grad(total, list(positive.values()))
    return {name: (g * positive[name]).abs().detach() for name, g in zip(positive, found, strict=True)}


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("criterion", ["magnitude", "snip", "public gradient"])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9])
def test_the_weights_with_the_largest_scores_are_left(criterion: str, rate: float, scope: str) -> None:
    model = network()
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.dim() > 1}
    found = gradients(model)
    scores = {
        "magnitude": {name: w.abs() for name, w in weights.items()},
        "snip": {name: (w * found[name]).abs() for name, w in weights.items()},
        "public gradient": {name: found[name].abs() for name in weights},
    }[criterion]
    masks = left(model, PrePruning(rate, criterion, scope=scope, public_batch=public()))
    groups = [list(weights)] if scope == "global" else [[name] for name in weights]
    for group in groups:
        inside = torch.cat([scores[name][masks[name]] for name in group])
        outside = torch.cat([scores[name][~masks[name]] for name in group])
        assert len(inside) == kept_of(rate, len(inside) + len(outside))
        assert not len(outside) or float(inside.min()) >= float(outside.max())
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(name).detach(), torch.where(mask, weights[name], torch.zeros(())))


def test_synflow_goes_step_by_step_and_never_empties_a_layer() -> None:
    model, iterations, rate = network(), 20, 0.9
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items() if w.dim() > 1}
    total = sum(mask.numel() for mask in masks.values())
    for iteration in range(1, iterations + 1):
        scores = flows({name: w * masks[name] if name in masks else w for name, w in weights.items()})
        together = torch.cat([torch.where(masks[n], scores[n], -torch.inf).flatten() for n in masks])
        order = together.argsort(descending=True, stable=True)[: kept_of(1 - (1 - rate) ** (iteration / iterations), total)]
        flags = torch.zeros(total, dtype=torch.bool)
        flags[order] = True
        masks = {
            n: part.view(masks[n].shape) & masks[n]
            for n, part in zip(masks, flags.split([m.numel() for m in masks.values()]), strict=True)
        }
    before = {name: (p.dtype, p.data_ptr()) for name, p in model.named_parameters()}
    found = left(model, PrePruning(rate, "synflow", scope="global", example=public(), iterations=iterations))
    assert all(torch.equal(found[name], masks[name]) and found[name].any() for name in masks)
    assert before == {name: (p.dtype, p.data_ptr()) for name, p in model.named_parameters()} and model.training


def test_random_masks_have_their_number_and_change() -> None:
    first = left(network(), PrePruning(0.5, "random", seed=0))
    again, other = left(network(), PrePruning(0.5, "random", seed=0)), left(network(), PrePruning(0.5, "random", seed=1))
    for name, mask in first.items():
        assert int(mask.sum()) == kept_of(0.5, mask.numel())
        assert torch.equal(mask, again[name]) and not torch.equal(mask, other[name])


def test_rows_take_their_bias_with_them_and_blocks_are_heads() -> None:
    model = network()
    masks = left(model, PrePruning(0.5, granularity="rows"))
    for layer in ("0", "3", "5"):
        rows = masks[f"{layer}.weight"].flatten(1)
        assert torch.equal(rows.any(1), rows.all(1)) and torch.equal(rows.any(1), masks[f"{layer}.bias"])
        assert int(rows.any(1).sum()) == kept_of(0.5, len(rows))
    heads = left(network(), PrePruning(0.5, granularity={"3.*": Blocks(0, 2), "5.*": Blocks(1, 3), "*": "weights"}))
    rows, columns = heads["3.weight"].any(1), heads["5.weight"].any(0)
    assert torch.equal(rows.view(3, 2).any(1), rows.view(3, 2).all(1)) and int(rows.sum()) == 4
    assert torch.equal(columns.view(2, 3).any(1), columns.view(2, 3).all(1)) and int(columns.sum()) == 3


def test_whole_layers_compete_among_themselves() -> None:
    masks = left(network(), PrePruning(0.5, granularity="layers"))
    assert [bool(mask.any()) for mask in masks.values()] == [bool(mask.all()) for mask in masks.values()]
    assert sum(bool(mask.any()) for mask in masks.values()) == 2


def test_dropping_stays_within_what_pruning_left() -> None:
    model = network()
    passes = [PrePruning(0.5, granularity="weights"), GradientDropping(0.5, granularity="weights", seed=0)]
    private = dpcompile(model, loss=squares, passes=passes)
    chooser, selection = private.chooser, private.program.selection
    assert chooser is not None and selection is not None
    for _ in range(5):
        for name, pruned in chooser.left.items():
            mask = selection.mask(name)
            assert mask is not None and not (mask & ~pruned).any() and int(mask.sum()) == kept_of(0.5, int(pruned.sum()))
        private.reselect()


def test_a_rate_may_fall_or_rise_without_a_new_trace() -> None:
    private = dpcompile(
        mlp(5, 40, 3).double(),
        loss=squares,
        passes=[GradientDropping(Ramp(0.0, 0.9, 10), granularity="rows", parameters=["0.*"], seed=0)],
    )
    selection, counts, x = private.program.selection, [], torch.randn(3, 5, dtype=torch.float64)
    for step in range(12):
        mask = None if selection is None else selection.mask("0.bias")
        assert mask is not None
        counts.append(int(mask.sum()))
        assert counts[-1] == kept_of(Ramp(0.0, 0.9, 10)(step), 40)
        gradient = private(x).grads["0.bias"]
        assert not gradient[~mask].any() and gradient[mask].all()
        private.reselect()
    assert counts[0] == 40 and counts[-1] == 4 and len(private.steps.by_key) == 1


@pytest.mark.parametrize("name", ["gradient", "per-example gradient", "norms", "loss", "Fisher"])
def test_criteria_that_read_private_gradients_are_refused(name: str) -> None:
    for kind in (PrePruning, GradientDropping):
        with pytest.raises(InvalidInput, match="without noise, which is not private"):
            kind(0.5, name)


def test_wrong_choices_are_refused() -> None:
    wrong: list[tuple[Any, str]] = [
        (lambda: PrePruning(1.0), "no share"), (lambda: PrePruning(-0.1), "no share"), (lambda: PrePruning(True), "no share"),
        (lambda: PrePruning(Ramp(0, 0.5, 3)), "once, before training"), (lambda: PrePruning(0.5, "snip"), "needs public_batch="),
        (lambda: PrePruning(0.5, "synflow"), "needs example="), (lambda: PrePruning(0.5, "released gradient"), "nothing to read"),
        (lambda: GradientDropping(0.5, "synflow", example=public()), "before training"),
        (lambda: GradientDropping(0.5, every=0), "at least 1"), (lambda: GradientDropping(0.5, scope="all"), "layer, global"),
        (lambda: GradientDropping(0.5, "most"), "does not exist"), (lambda: PrePruning(0.5, parameters="0.*"), "must be a tuple"),
        (lambda: PrePruning(0.5, iterations=0), "at least 1"),
    ]  # fmt: skip
    for make, words in wrong:
        with pytest.raises(InvalidInput, match=words):
            make()


def test_the_selection_moves_with_its_parameters() -> None:
    model = network()
    passes = [PrePruning(0.5, "random", seed=0), GradientDropping(0.5, granularity="rows", seed=0, scope="global")]
    chooser = dpcompile(model, loss=squares, passes=passes).chooser
    assert chooser is not None
    kinds = {key.split()[0] for key, told in chooser.selection.named_buffers() if told.device.type == "cpu"}
    assert kinds == {"index", "valid", "mask"}
    model.to("meta")
    chooser.follow()
    told = [*chooser.selection.buffers(), *chooser.left.values()]
    assert {tensor.device.type for tensor in told} == {"meta"}
