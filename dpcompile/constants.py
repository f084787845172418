"""Tensors that a program reaches without being given them: constants of the graph, named in report and certificate."""

from __future__ import annotations

from torch import Tensor, nn

from dpcompile.batch import Batch
from dpcompile.ir.errors import CaptureError, refusal
from dpcompile.ir.graph import JointGraph
from dpcompile.losses import Program, public_name


def check_constants(joint: JointGraph, program: Program, batch: Batch) -> None:
    """Tensors that the program reached without being given them: constants, which must not be the model's own."""
    own = {id(tensor): name for name, tensor in (*program.named_parameters(), *program.named_buffers())}
    private = {tensor.untyped_storage().data_ptr() for tensor in batch.tensors if tensor.numel()}
    for node in joint.graph.find_nodes(op="get_attr"):
        tensor = getattr(joint.module, node.target)
        if id(tensor) in own or isinstance(tensor, nn.Parameter):
            name = public_name(own.get(id(tensor), "a parameter outside the model"))
            raise CaptureError(
                refusal(
                    f"{name} is used without being looked up in the model",
                    node.meta.get("source_line", ""),
                    "a reference to the tensor is kept elsewhere (a list, a closure), so its gradient would be lost",
                    "read the parameter from its module in forward, or detach it if it is meant to be constant",
                )
            )
        if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() in private:
            raise CaptureError(
                refusal(
                    "a tensor of the batch is used that was not given as an argument",
                    node.meta.get("source_line", ""),
                    "what a model or loss holds is the same for all examples, but this memory holds the examples of the batch",
                    "give the tensor to the module as an argument",
                )
            )
        if isinstance(tensor, Tensor) and tensor.numel() > 1:
            joint.constants.append(f"a constant of shape {list(tensor.shape)} at {node.meta.get('source_line', 'the model')}")
