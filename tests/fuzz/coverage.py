"""Which rows of the rules were asked while programs were compiled."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator
from unittest import mock

from operations import around, norms
from operations_functions import FUNCTIONS
from operations_layers import MODULES

from dpcompile import DPCompileError, dpcompile
from dpcompile.analysis import example_axis
from dpcompile.rules import OPS, PYTHON
from dpcompile.rules.rule import Result, Use

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
            upsample_trilinear3d_backward.default var.default""",
        OTHER_FORM: "_embedding_bag.default _embedding_bag_forward_only.default",
        NO_META: "binomial.default",
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


def reached_by_operations() -> set[str]:
    """The rows that the table of operations reaches; takes minutes."""
    with rules_asked() as asked, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in FUNCTIONS + MODULES:
            model, batch = around(case, 3)
            with contextlib.suppress(DPCompileError):
                dpcompile(model, loss=norms, check_examples=False).per_example_gradients(*batch)
    return rows() & set(asked)


def print_uncovered(reached: set[str]) -> None:
    """The rows that no model reached: those that the table of operations reaches, those that neither can, and the rest."""
    missing = rows() - reached
    unreachable = {name: reason for name, reason in UNREACHABLE.items() if name in missing}
    elsewhere = (missing & reached_by_operations()) - set(unreachable)
    print(f"not reached, but by the table of operations ({len(elsewhere)}): {', '.join(sorted(elsewhere))}")
    print(f"out of reach ({len(unreachable)}):")
    for name, reason in sorted(unreachable.items(), key=lambda pair: pair[::-1]):
        print(f"  {name}: {reason}")
    rest = missing - elsewhere - set(unreachable)
    print(f"not reached by either ({len(rest)}): {', '.join(sorted(rest))}")
