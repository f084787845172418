"""Every rule says what is true: the real operation runs on real examples, and what moves decides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from meaning import (
    REFUSED,
    N,
    Sample,
    Size,
    batched,
    booleans,
    call,
    claim,
    has_truth,
    holds,
    position,
    positive,
    shared,
    summed,
    verdict,
)
from samples import SAMPLES
from samples_generic import POINTWISE_CALLS

from dpcompile.ir.axis import SHARED, SUMMED, Batched, Constant, Position, Uniform
from dpcompile.rules import OPS, PYTHON, rule_of
from dpcompile.rules.pointwise import is_pointwise

aten = torch.ops.aten
# Copies, permutations and maps of pairs; a state is true of whatever they are given.
NEVER_MIX = {
    "_to_copy",
    "clone",
    "contiguous",
    "copy",
    "real",
    "imag",
    "numpy_T",
    "permute",
    "t",
    "transpose",
    "unsqueeze",
    "unbind",
    "native_dropout",
    "pixel_shuffle",
    "pixel_unshuffle",
    "zero",
    "col2im",
    "lu_unpack",
    "dpcompile::place_kept",
}
ALWAYS_REFUSED = {"_embedding_bag", "_embedding_bag_forward_only", "_weight_norm_interface"}


@pytest.mark.parametrize("op", SAMPLES, ids=str)
def test_what_a_rule_says_is_true_and_it_refuses_only_with_need(op: Any) -> None:
    wrong = [why for sample in SAMPLES[op] if (why := verdict(sample, claim(sample)))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("op", POINTWISE_CALLS, ids=str)
def test_what_torch_tags_as_pointwise_is_pointwise(op: Any) -> None:
    wrong = [why for sample in POINTWISE_CALLS[op] if (why := verdict(sample, claim(sample)))]
    assert not wrong, "\n".join(wrong)


def test_every_operation_with_a_rule_has_samples_and_no_other() -> None:
    assert set(SAMPLES) == set(OPS) - set(PYTHON)


def test_most_pointwise_operations_can_be_called_generically() -> None:
    tagged = {op for name in dir(aten) for op in overloads(name) if is_pointwise(op) and op not in OPS}
    assert len(POINTWISE_CALLS) > 0.8 * len(tagged)


def overloads(name: str) -> list[Any]:
    """All overloads of an ATen operation."""
    packet = getattr(aten, name)
    return [getattr(packet, overload) for overload in packet.overloads()] if hasattr(packet, "overloads") else []


@pytest.mark.parametrize("op", SAMPLES, ids=str)
def test_every_rule_accepts_something(op: Any) -> None:
    if op._schema.name.removeprefix("aten::") not in ALWAYS_REFUSED:
        assert any(claim(sample) != REFUSED for sample in SAMPLES[op])


@pytest.mark.parametrize("op", SAMPLES, ids=str)
def test_every_rule_is_shown_a_use_that_mixes_examples_if_there_is_one(op: Any) -> None:
    name = op._schema.name.removeprefix("aten::")
    creates = (
        not any(str(a.type) == "Tensor" for a in op._schema.arguments)
        or name.startswith(("new_", "bernoulli"))
        or name.endswith("_like")
        or torch.Tag.nondeterministic_seeded in op.tags
    )
    adjoint = name.endswith("_backward") and any(
        kind in name for kind in ("avg_pool", "upsample", "pad")
    )  # whose image has a fixed size
    if not (creates or adjoint or name in NEVER_MIX):
        assert any(not has_truth(sample) for sample in SAMPLES[op])


def test_operations_that_write_to_their_arguments_have_no_rule() -> None:
    assert not [op for op in OPS if hasattr(op, "_schema") and op._schema.is_mutable]
    assert rule_of(aten.add_.Tensor) is None and rule_of(aten.relu.out) is None


# -- the checker itself -------------------------------------------------------------------------------------------


def truths(sample: Sample) -> list[str]:
    """All states from a list that are true of the first result."""
    states = (
        SHARED,
        SUMMED,
        Constant(float("nan")),
        Position(0),
        *(
            kind(dim, outer, inner)
            for kind in (Batched, Uniform)
            for dim in (0, 1)
            for outer, inner in ((1, 1), (2, 1), (1, 2), (5, 1), (1, 5))
        ),
    )
    return [str(state) for state in states if holds(sample, state, 0)]


def test_the_checker_knows_a_matrix_product_on_folded_positions() -> None:
    assert truths(call(aten.mm.default, batched(N, 3, inner=5), shared(3, 2))) == ["Batched(0, outer=1, inner=5)"]


def test_the_checker_knows_a_matrix_product_over_the_batch() -> None:
    assert truths(call(aten.mm.default, batched(3, N), batched(N, 2))) == ["Summed"]


def test_the_checker_tells_softmax_within_examples_from_softmax_over_them() -> None:
    assert truths(call(aten._softmax.default, batched(N, 3), 1, False)) == ["Batched(0)"]
    assert truths(call(aten._softmax.default, batched(N, 3), 0, False)) == []


def test_the_checker_knows_that_a_maximum_over_the_batch_is_no_sum() -> None:
    assert truths(call(aten.amax.default, batched(N, 3), [0])) == []


def test_the_checker_sees_training_batch_norm_mix() -> None:
    x, statistics = batched(N, 3, 5), (None, None, None, None)
    assert truths(call(aten.native_batch_norm.default, x, *statistics, True, 0.1, 1e-5)) == []


def test_the_checker_sees_the_batch_size_and_the_position() -> None:
    assert truths(call(aten.mul.Tensor, batched(N, 3), Size())) == []
    assert truths(call(aten.add.Tensor, batched(N, 1), position(N, 1))) == []
    assert truths(call(aten.clone.default, position(N))) == ["Position(0)"]


def test_the_checker_knows_a_linear_and_a_nonlinear_function_of_a_sum() -> None:
    assert truths(call(aten.mul.Tensor, summed(5), shared(5))) == ["Summed"]
    assert truths(call(aten.relu.default, summed(5))) == []


def test_a_claim_that_is_too_strong_is_found() -> None:
    sample = call(aten.logical_and.default, batched(N, 3, draw=booleans), batched(N, 3, draw=booleans))
    assert verdict(sample, SHARED) and verdict(sample, SUMMED) and verdict(sample, Uniform(0)) and not verdict(sample, Batched(0))


def test_a_needless_refusal_is_found() -> None:
    assert "without need" in verdict(call(aten.sqrt.default, batched(N, 3, draw=positive)), REFUSED)
