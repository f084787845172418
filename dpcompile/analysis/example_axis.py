"""Where the examples lie in every value of the joint graph, by one pass over the rules; refuses at the first mixture.

An operation without a rule on a per-example value is refused by name, never guessed.
"""

from __future__ import annotations

import torch
from torch import fx

from dpcompile.ir.axis import BATCH_SIZE, SHARED, Batched, BatchSize, Constant, Mixes, Shared, State, Summed
from dpcompile.ir.errors import MixedExamplesError, UnsupportedOperation, refusal
from dpcompile.ir.graph import JointGraph, shape_text, size_expression, where
from dpcompile.rules import OPS, rule_of
from dpcompile.rules.rule import LAID, Result, Use, is_fixed

WAY_OUT = "keep every example's computation apart until the loss"


def example_axis(joint: JointGraph) -> dict[fx.Node, Result]:
    """The state of every node; raises MixedExamplesError or UnsupportedOperation with the smallest culprit."""
    states: dict[fx.Node, Result] = {}
    inputs = iter(joint.inputs)
    for node in joint.graph.nodes:
        if node.op == "placeholder":
            item = next(inputs)
            states[node] = Batched(item.dim) if item.kind == "batch" and item.dim is not None else SHARED
        elif node.op == "get_attr":
            states[node] = SHARED
        elif node.op == "call_function":
            states[node] = state_of(Use(node, states, joint.symbol))
    check_outputs(joint, states)
    return states


def state_of(use: Use) -> Result:
    """The state of one call."""
    node, fakes = use.node, use.node.meta["val"]
    if isinstance(fakes, (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)):
        return size_state(use)
    shared = all(is_shared(use.states[n]) for n in node.all_input_nodes)
    if shared and (node.all_input_nodes or node.target not in OPS):
        return SHARED if isinstance(fakes, torch.Tensor) else (SHARED,) * len(fakes)
    rule = rule_of(node.target)
    if rule is None and all(is_fixed(use, operand) for operand in node.all_input_nodes):
        return SHARED if isinstance(fakes, torch.Tensor) else (SHARED,) * len(fakes)  # of zeros and ones without examples
    if rule is None:
        raise UnsupportedOperation(
            refusal(
                f"no rule for {node.target} ({node.name})",
                where(node),
                "it is applied to values that depend on the batch, and nothing shows that it keeps examples apart",
                "express the line with other operations, or report the operation",
            )
        )
    try:
        result = rule(use)
    except Mixes as error:
        raise mixed(node, error) from None
    check_shapes(use, result)
    return result


def is_shared(state: Result) -> bool:
    """Whether nothing in a state depends on the batch."""
    return isinstance(state, Shared) or (isinstance(state, tuple) and all(isinstance(s, Shared) for s in state))


def size_state(use: Use) -> State:
    """Numbers: those computed from the batch size, and others."""
    value = use.node.meta["val"]
    if isinstance(value, torch.SymInt) and use.symbol in size_expression(value).free_symbols:
        return BATCH_SIZE
    if any(isinstance(use.states[n], BatchSize) for n in use.node.all_input_nodes if n in use.states):
        return BATCH_SIZE
    if all(is_shared(use.states[n]) for n in use.node.all_input_nodes) or use.node.target in OPS:
        return SHARED
    raise UnsupportedOperation(
        refusal(
            f"{use.node.target} reads a number out of per-example values",
            where(use.node),
            "the program then depends on data",
            "use tensor operations instead",
        )
    )


def check_shapes(use: Use, result: Result) -> None:
    """A state must agree with the shape: the batch size stands where the state says, and nowhere else."""
    results = result if isinstance(result, tuple) else (result,)
    fakes = use.node.meta["val"] if isinstance(result, tuple) else (use.node.meta["val"],)
    for state, fake in zip(results, fakes, strict=True):
        if not isinstance(fake, torch.Tensor) or isinstance(state, Constant):
            continue
        shape = [size_expression(size) for size in fake.shape]
        batch_dims = [dim for dim, size in enumerate(shape) if use.has_batch(size)]
        expected = [] if isinstance(state, (Shared, Summed)) else [getattr(state, "dim", None)]
        if batch_dims != expected:
            raise mixed(
                use.node,
                Mixes(f"the result {state} has shape {shape}, so the batch size is not where the examples are"),
            )
        if isinstance(state, LAID) and shape[state.dim] != state.outer * use.symbol * state.inner:
            raise mixed(use.node, Mixes(f"the result {state} has shape {shape}, which does not hold all examples"))


def mixed(node: fx.Node, error: Mixes) -> MixedExamplesError:
    """The refusal for a mixture at this node."""
    return MixedExamplesError(
        refusal(
            f"examples are mixed at {node.name} = {node.target}{shape_text(node.meta['val'])}",
            where(node),
            error.why,
            error.way_out or WAY_OUT,
        )
    )


def check_outputs(joint: JointGraph, states: dict[fx.Node, Result]) -> None:
    """Losses per example, gradients summed, buffers independent of the batch."""
    losses = joint.output("losses")
    assert losses is not None
    if states[losses] != Batched(0) and not isinstance(states[losses], Constant):
        raise MixedExamplesError(
            refusal(
                f"the losses are {states[losses]} instead of one per example",
                where(losses),
                "every loss must depend on its own example",
                WAY_OUT,
            )
        )
    for name, node in joint.named("gradient").items():
        if node is not None and not isinstance(states[node], (Summed, Shared, Constant)):
            raise MixedExamplesError(f"the gradient of {name} is {states[node]}, not a sum over examples")
    for name, node in joint.named("buffer").items():
        if node is not None and not is_shared(states[node]):
            raise MixedExamplesError(
                refusal(
                    f"buffer {name} is updated from the batch",
                    where(node),
                    "its new value carries examples' data out of the step without noise",
                    "put the module in eval mode, or use a layer without running statistics",
                )
            )
