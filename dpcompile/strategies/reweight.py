"""Clipped sums by running backward a second time from a cut on (Lee and Kifer 2021, reweighted loss).

    reweight  scale the gradient at the cut by the factors; the ordinary gradients behind it are then the clipped sums

What is kept until the factors are known is the one value at the cut, not every layer's output gradient; the price is one
more backward through the layers behind it. A plan decides it for all parameters behind a cut together.
"""

from __future__ import annotations

from typing import Final

from torch import fx

from dpcompile.ir.cost import Cost
from dpcompile.ir.graph import callee
from dpcompile.ir.site import Contraction, Convolution, Cut, Dense, Rows
from dpcompile.kernels import layout
from dpcompile.strategies.emitter import Emitter
from dpcompile.strategies.materialize import DENSE, REDUCED
from dpcompile.strategies.strategy import NormStrategy, SumStrategy
from dpcompile.strategies.sums import PRODUCT, SCATTER, WEIGHT_GRADIENT


class SecondBackward:
    """Copies of what depends on the cut, made as they are asked for."""

    def __init__(self, cut: Cut, factors: fx.Node, emitter: Emitter) -> None:
        frontier = cut.frontier
        self.emitter, self.frontier = emitter, frontier.node
        self.depends: dict[fx.Node, bool] = {}
        emitter.place = place_of(frontier.node)
        scaled = emitter.call(layout.scaled_examples, frontier.node, factors, frontier.dim, frontier.outer, frontier.inner)
        self.copies: dict[fx.Node, fx.Node] = {frontier.node: scaled}
        for node in emitter.joint.graph.nodes:
            inside = any(self.depends.get(source, False) for source in node.all_input_nodes)
            self.depends[node] = node is frontier.node or inside

    def copy(self, node: fx.Node) -> fx.Node:
        """The node's value for losses that are multiplied by the clip factors."""
        if not self.depends.get(node, False):
            return node
        for one in self.missing(node):
            args, kwargs = fx.node.map_arg((one.args, dict(one.kwargs)), lambda n: self.copies.get(n, n))
            self.emitter.place = place_of(one)
            self.copies[one] = self.emitter.call_with(callee(one), args, kwargs)
        return self.copies[node]

    def missing(self, node: fx.Node) -> list[fx.Node]:
        """What has to be copied for a node, operands first."""
        found: dict[fx.Node, None] = {}
        stack = [(node, False)]
        while stack:
            one, are_operands_done = stack.pop()
            if are_operands_done:
                found[one] = None
            elif one not in self.copies and one not in found:
                stack.append((one, True))
                stack += [(source, False) for source in one.all_input_nodes if self.depends.get(source, False)]
        return list(found)


def place_of(node: fx.Node) -> tuple[str, str]:
    """Module path and source line."""
    return node.meta.get("module_path", ""), node.meta.get("source_line", "")


def declines(contraction: Contraction, norm: NormStrategy) -> str | None:
    """Never for one parameter by itself."""
    return "it takes a cut of the whole graph"


def cost(contraction: Contraction, norm: NormStrategy) -> Cost:
    """The ordinary contraction; what leads to it is the cut's price, not the parameter's."""
    if isinstance(contraction, Dense):
        return Cost((PRODUCT if contraction.groups == 1 else DENSE,))
    if isinstance(contraction, Convolution):
        return Cost((WEIGHT_GRADIENT,))
    return Cost((SCATTER if isinstance(contraction, Rows) else REDUCED,))


def emit(contraction: Contraction, norm: NormStrategy, factors: fx.Node, emitter: Emitter) -> fx.Node:
    """Not for one contraction by itself."""
    raise AssertionError("a second backward is emitted for a cut, see SecondBackward")


PLACE: Final = (
    "examples apart, no random draw, and behind it no half type and no product whose operands torch's settings may round "
    '(torch.set_float32_matmul_precision("highest") and torch.backends.cudnn.allow_tf32 = False forbid that)'
)
"""What a value that gradients flow through must have for a second backward to start there."""

REWEIGHT = SumStrategy("reweight", "Lee and Kifer 2021", declines, cost, emit)
