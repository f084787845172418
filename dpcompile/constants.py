"""Tensors that a program reaches without being given them: constants of the graph, named in report and certificate."""

from __future__ import annotations

from torch import Tensor, nn

from dpcompile.batch import Batch
from dpcompile.ir.errors import CaptureError, refusal
from dpcompile.ir.graph import JointGraph
from dpcompile.losses import Program, public_name


def check_constants(joint: JointGraph, program: Program, batch: Batch) -> None:
    """Tensors that the program reached without being given them: constants, which must not be the model's own."""
    check_buffers(joint, program)
    own = {id(tensor): name for name, tensor in (*program.named_parameters(), *program.named_buffers())}
    private = {tensor.untyped_storage().data_ptr() for tensor in batch.tensors if tensor.numel()}
    for node in joint.graph.find_nodes(op="get_attr"):
        tensor = getattr(joint.module, node.target)
        if not isinstance(tensor, Tensor):
            continue
        line = node.meta.get("source_line", "")
        if id(tensor) in own or isinstance(tensor, nn.Parameter):
            raise not_looked_up(public_name(own.get(id(tensor), "a parameter outside the model")), line)
        if is_derived(tensor):
            raise derived(f"a kept tensor of shape {list(tensor.shape)}", line)
        if tensor.untyped_storage().data_ptr() in private:
            raise CaptureError(
                refusal(
                    "a tensor of the batch is used that was not given as an argument",
                    line,
                    "what a model or loss holds is the same for all examples, but this memory holds the examples of the batch",
                    "give the tensor to the module as an argument",
                )
            )
        if tensor.numel() > 1:
            joint.constants.append(f"a constant of shape {list(tensor.shape)} at {line or 'the model'}")


def check_buffers(joint: JointGraph, program: Program) -> None:
    """Refuse buffers in use that were computed from what requires grad."""
    buffers = {public_name(name): tensor for name, tensor in program.named_buffers()}
    for item, node in zip(joint.inputs, joint.graph.find_nodes(op="placeholder"), strict=True):
        if item.kind == "state" and item.name in buffers and node.users and is_derived(buffers[item.name]):
            raise derived(f"buffer {item.name}", next(iter(node.users)).meta.get("source_line", ""))


def is_derived(tensor: Tensor) -> bool:
    """Whether autograd would train something else through this tensor: a view of a parameter, or computed from one."""
    return tensor.requires_grad and tensor.grad_fn is not None


def derived(what: str, line: str) -> CaptureError:
    """The refusal of a tensor that was computed from parameters before the step."""
    return CaptureError(
        refusal(
            f"{what} was computed from a tensor that requires grad, outside of this step",
            line,
            "ordinary training goes through it to the parameter behind it, but the graph finds a constant there, so that this "
            "part of the gradient, and of its norm, would be lost",
            "compute it from the parameter in forward (self.weight.t()), or keep weight.detach() if it is meant to be constant",
        )
    )


def not_looked_up(name: str, line: str) -> CaptureError:
    """The refusal of a parameter that is held elsewhere than in the model."""
    return CaptureError(
        refusal(
            f"{name} is used without being looked up in the model",
            line,
            "a reference to the tensor is kept elsewhere (a list, a closure), so its gradient would be lost",
            "read the parameter from its module in forward, or detach it if it is meant to be constant",
        )
    )
