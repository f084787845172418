"""The rewrites, in the order in which they run; the folder is imported as `dpcompile.passes`.

norms               one squared norm per site
clip_factors        norms, clip factors, flags; the clip norm and the mask become inputs; with groups by group_factors
clipped_sums        every gradient becomes the clipped sum
narrow_backward     ordinary parameter gradients are no longer asked for
norm_alone          one norm of all gradients where examples come one at a time
gather_small        one norm and one sum for all small parameters
share_group_norm    a group normalisation's backward returns the per-example gradients that it forms anyway
fuse_cross_entropy  the loss over many classes keeps two numbers per row instead of matrices
reuse_memory        eager only, last: results over operands that nothing reads any more

Before all of them, for strategy="multi", `copies` runs the captured step once with a copy of the parameters for every example.
In place of the first three, `per_example_gradients` returns what they would clip and sum.

After each of them the pipeline runs `order_nodes`: a stable topological order without dead code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from dpcompile.clip.rule import Rule
from dpcompile.ir.graph import JointGraph
from dpcompile.passes.clip_factors import emit_clip_factors
from dpcompile.passes.clipped_sums import emit_clipped_sums
from dpcompile.passes.fuse_cross_entropy import fuse_cross_entropy
from dpcompile.passes.gather_small import gather_small
from dpcompile.passes.narrow_backward import narrow_backward
from dpcompile.passes.norm_alone import norm_alone
from dpcompile.passes.norms import emit_norms
from dpcompile.passes.share_group_norm import share_group_norm
from dpcompile.plan.plan import Plan

Pass = Callable[[JointGraph, Plan], None]
PIPELINE: tuple[Pass, ...] = (
    emit_norms, emit_clip_factors, emit_clipped_sums, narrow_backward, norm_alone, gather_small, share_group_norm,
    fuse_cross_entropy,
)  # fmt: skip


def with_rule(passes: Sequence[Pass], rule: Rule) -> tuple[Pass, ...]:
    """The rewrites for a kind of clipping, which `clip_factors` alone looks at."""
    factors = functools.update_wrapper(functools.partial(emit_clip_factors, rule=rule), emit_clip_factors)
    return tuple(factors if rewrite is emit_clip_factors else rewrite for rewrite in passes)
