"""What a forward pass started from, so that a later backward starts from the same state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from dpcompile.ir.errors import InvalidInput
from dpcompile.runtime import restored_rng, rng_state


class Recall:
    """State of generators and buffers before a forward, and what must not change until its backward."""

    def __init__(self, model: nn.Module, tensors: Sequence[Tensor]) -> None:
        self.device = tensors[0].device
        self.state = rng_state(self.device)
        self.buffers = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers()]
        watched = [tensor for tensor in (*model.parameters(), *tensors) if not tensor.is_inference()]
        self.watched = [(tensor, tensor._version) for tensor in watched]
        self.modes = [module.training for module in model.modules()]
        self.trained = [parameter.requires_grad for parameter in model.parameters()]

    def keep_changed_buffers(self) -> None:
        """After forward: only buffers that it wrote to need their old values."""
        self.buffers = [entry for entry in self.buffers if entry[0]._version != entry[1]]

    def check_unchanged(self, model: nn.Module) -> None:
        """Refuse a backward whose forward ran on other values or in another mode."""
        if any(tensor._version != version for tensor, version in self.watched):
            raise InvalidInput(
                "a parameter or an input was written to between forward and backward; call backward before "
                "optimizer.step(), and run forward again otherwise"
            )
        if [module.training for module in model.modules()] != self.modes:
            raise InvalidInput("train() or eval() was called between forward and backward; call backward first")
        if [parameter.requires_grad for parameter in model.parameters()] != self.trained:
            raise InvalidInput("requires_grad was changed between forward and backward; call backward first")

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Generators and buffers as forward found them; on the way out they are as they are now."""
        devices = [self.device.index or 0] if self.device.type == "cuda" else []
        present = [buffer.clone() for buffer, _, _ in self.buffers]
        with torch.random.fork_rng(devices=devices), restored_rng(self.state, self.device), torch.no_grad():
            for buffer, _, old in self.buffers:
                buffer.copy_(old)
            try:
                yield
            finally:
                for (buffer, _, _), value in zip(self.buffers, present, strict=True):
                    buffer.copy_(value)
