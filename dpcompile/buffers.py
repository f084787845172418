"""Writes to buffers in forward: in place or by assignment, they become outputs of the graph."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from dpcompile.ir.errors import CaptureError, refusal
from dpcompile.ir.graph import JointGraph, operand_node
from dpcompile.losses import Program, public_name

aten = torch.ops.aten


def write_assigned(given: Mapping[str, Tensor], left: Mapping[str, Tensor], trainable: set[str]) -> None:
    """Write what forward assigned to the name of a buffer into the buffer, as if it had been written in place.

    given: the tensors by name that a functional call was made with; left: those that stood there when it was over.
    """
    for name, before in given.items():
        now = left[name]
        if now is before:
            continue
        if name in trainable or now.shape != before.shape:
            raise CaptureError(
                refusal(
                    f"forward puts another tensor in the place of {public_name(name.removeprefix('program.'))}",
                    "",
                    "a trace runs Python once, so that the old tensor would be there again at the next step",
                    "write to a buffer in place (copy_), and change parameters outside of forward",
                )
            )
        with torch.no_grad():
            before.copy_(now)


def check_is_buffer(name: str, buffers: frozenset[str], written: fx.Node) -> None:
    """Refuse writes to frozen parameters; `written` is their new value."""
    if name not in buffers:
        raise CaptureError(
            refusal(
                f"forward writes to {name}, a parameter without requires_grad",
                written.meta.get("source_line", ""),
                "only buffers are state that forward may change; a parameter is changed by its optimizer, between steps",
                "register it with register_buffer (a teacher's parameters, too), or update it outside of forward",
            )
        )


def take_buffer_updates(joint: JointGraph) -> None:
    """Turn trailing writes to buffers into outputs; refuse writes to trainable parameters."""
    names = {node: item for item, node in zip(joint.inputs, joint.graph.find_nodes(op="placeholder"), strict=True)}
    outputs = {key: joint.output(*key) for key in joint.outputs}
    for node in list(joint.graph.nodes):
        if node.target is not aten.copy_.default or node.args[0] not in names:
            continue
        item = names[node.args[0]]
        if item.kind == "parameter":
            raise CaptureError(f"parameter {item.name} is written to in forward; update it outside the model")
        if item.kind == "state":
            check_is_buffer(item.name, joint.buffers, operand_node(node, 1))
            outputs["buffer", item.name] = node.args[1]
        node.replace_all_uses_with(node.args[1])
        joint.graph.erase_node(node)
    joint.replace_outputs(outputs)


def check_own_memory(joint: JointGraph, program: Program) -> None:
    """Refuse writes to a buffer that another buffer, a parameter or a constant shares its memory with."""
    named = [(public_name(name), t) for name, t in (*program.named_buffers(), *program.named_parameters())]
    constants = [getattr(joint.module, str(node.target)) for node in joint.graph.find_nodes(op="get_attr")]
    held = [*named, *(("a constant", tensor) for tensor in constants if isinstance(tensor, Tensor))]
    tensors = dict(named)
    for written, node in joint.named("buffer").items():
        for name, tensor in held:
            if tensor is not tensors[written] and node is not None and overlap(tensor, tensors[written]):
                raise CaptureError(
                    refusal(
                        f"forward writes to the buffer {written}, and {name} lies in the same memory",
                        node.meta.get("source_line", ""),
                        "the graph knows them as two tensors, so that it would not see in one what is written to the other",
                        "register one of them, and make the other from it in forward; or register a clone()",
                    )
                )


def overlap(one: Tensor, other: Tensor) -> bool:
    """Whether the memory between the first and the last number of two tensors has a part in common."""
    if one.device != other.device or not one.numel() or not other.numel():
        return False
    start, end = extent(one)
    first, last = extent(other)
    return start < last and first < end


def extent(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor's memory begins, and where it is over."""
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (steps + 1) * tensor.element_size()
