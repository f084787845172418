"""Which rows of the rules were asked while programs were compiled."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any
from unittest import mock

import torch
from families import FAMILIES
from lookalikes import LOOKALIKES
from mixing_order import ORDER
from mixing_programs import PROGRAMS
from mixing_statistics import STATISTICS
from operations import around, norms
from operations_functions import FUNCTIONS
from operations_layers import MODULES
from operations_seldom import SELDOM
from torch import nn

from dpcompile import DPCompileError, dpcompile
from dpcompile.analysis import example_axis
from dpcompile.rules import OPS, PYTHON
from dpcompile.rules.rule import Result, Use

Models = Iterable[tuple[nn.Module, Any, tuple[Any, ...], Any]]
"""Model, loss, batch and where the examples lie, one model at a time."""
MIXING = ORDER + STATISTICS + PROGRAMS
OTHER_DEVICE = "kernels of other devices, which tracing for a CPU does not choose"
DECOMPOSED = "torch writes it in other operations while tracing"
OTHER_FORM = "bags and tables are traced in another form (dpcompile/kernels)"
NO_META = "torch has no shape rule for it, so that it cannot be traced"
UNREACHABLE: dict[str, str] = {
    f"aten.{name}": reason
    for reason, names in {
        OTHER_DEVICE: """_scaled_dot_product_cudnn_attention.default _scaled_dot_product_cudnn_attention_backward.default
            _scaled_dot_product_efficient_attention.default _scaled_dot_product_efficient_attention_backward.default
            _scaled_dot_product_flash_attention.default _scaled_dot_product_flash_attention_backward.default
            _scaled_dot_product_fused_attention_overrideable.default cudnn_batch_norm.default native_dropout.default
            _scaled_dot_product_fused_attention_overrideable_backward.default native_dropout_backward.default
            _fused_rms_norm.default _fused_rms_norm_backward.default""",
        DECOMPOSED: """_upsample_bilinear2d_aa.vec _upsample_nearest_exact1d.default _upsample_nearest_exact1d.vec
            _upsample_nearest_exact1d_backward.default _upsample_nearest_exact2d.default _upsample_nearest_exact2d.vec
            _upsample_nearest_exact2d_backward.default _upsample_nearest_exact3d.default _upsample_nearest_exact3d.vec
            _upsample_nearest_exact3d_backward.default argsort.default avg_pool1d.default contiguous.default imag.default
            linalg_pinv.atol_rtol_float native_batch_norm.default numpy_T.default real.default resolve_conj.default
            upsample_bicubic2d.default upsample_bicubic2d.vec upsample_bicubic2d_backward.default upsample_bilinear2d.default
            upsample_bilinear2d.vec upsample_bilinear2d_backward.default upsample_linear1d.default upsample_linear1d.vec
            upsample_linear1d_backward.default upsample_nearest1d.default upsample_nearest1d.vec
            upsample_nearest1d_backward.default upsample_nearest2d.default upsample_nearest2d.vec
            upsample_nearest2d_backward.default upsample_nearest3d.default upsample_nearest3d.vec
            upsample_nearest3d_backward.default upsample_trilinear3d.default upsample_trilinear3d.vec
            upsample_trilinear3d_backward.default var.default hardshrink_backward.default softshrink_backward.default
            multi_margin_loss.default multi_margin_loss_backward.default _linalg_eigvals.default empty_strided.default
            _reshape_alias.default""",
        OTHER_FORM: "_embedding_bag.default _embedding_bag_forward_only.default",
        NO_META: "binomial.default _sample_dirichlet.default _dirichlet_grad.default _standard_gamma_grad.default",
    }.items()
    for name in names.split()
}
"""Rows that no model on a CPU reaches, and why; their samples are checked by meaning all the same."""


@contextlib.contextmanager
def rules_asked() -> Iterator[Counter[str]]:
    """Counts the operations whose rule is asked, until the context ends."""
    asked: Counter[str] = Counter()
    real = example_axis.state_of

    def counting(use: Use) -> Result:
        if any(not example_axis.is_shared(use.states[n]) for n in use.node.all_input_nodes) or not use.node.all_input_nodes:
            asked[str(use.node.target)] += 1
        return real(use)

    with mock.patch.object(example_axis, "state_of", counting):
        yield asked


def rows() -> set[str]:
    """The operations that have a row of their own."""
    return {str(op) for op in set(OPS) - set(PYTHON)}


def models_of_tables() -> Iterator[tuple[str, Models]]:
    """The tables of models that the tests hold to a verdict each."""
    yield "families", ((f.make(), f.loss, f.batch(3, torch.float32), 0) for f in FAMILIES if not f.missing())
    made = (around(row, 3) for row in FUNCTIONS + MODULES + SELDOM)
    yield "operations", ((model, norms, batch, 0) for model, batch in made)
    yield "look-alikes", ((*c.build(torch.float32), c.batch(3, torch.float32), c.batch_dim) for c in LOOKALIKES)
    yield "mixing functions", ((c.make(), c.loss, c.batch(3, torch.float32), c.batch_dim) for c in MIXING)


def reached_by_tables() -> dict[str, set[str]]:
    """The rows that each table reaches; takes minutes."""
    found = {}
    for table, models in models_of_tables():
        with rules_asked() as asked, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for model, loss, batch, dim in models:
                with contextlib.suppress(DPCompileError):
                    dpcompile(model, loss=loss, batch_dim=dim, check_examples=False).per_example_gradients(*batch)
        found[table] = rows() & set(asked)
    return found


def print_uncovered(reached: set[str]) -> None:
    """The rows that no random model reached: those of each table of models, those that none can reach, and the rest."""
    missing = rows() - reached
    for table, found in reached_by_tables().items():
        print(f"not reached, but by the table of {table} ({len(missing & found)}): {', '.join(sorted(missing & found))}")
        missing -= found
    unreachable = {name: reason for name, reason in UNREACHABLE.items() if name in missing}
    print(f"out of reach ({len(unreachable)}):")
    for name, reason in sorted(unreachable.items(), key=lambda pair: pair[::-1]):
        print(f"  {name}: {reason}")
    rest = missing - set(unreachable)
    print(f"not reached ({len(rest)}): {', '.join(sorted(rest))}")
