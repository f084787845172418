"""What a forward pass started from, so that a later backward starts from the same state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from dpcompile.ir.errors import InvalidInput
from dpcompile.runtime import restored_rng, rng_state


class Recall:
    """State of generators and buffers before a forward, and what must not change until its backward."""

    def __init__(self, model: nn.Module, tensors: Sequence[Tensor]) -> None:
        self.model, self.device = model, tensors[0].device
        self.state = rng_state(self.device)
        self.before = {name: (buffer, version_of(buffer), buffer.clone()) for name, buffer in named_buffers(model)}
        self.given = [(tensor, version_of(tensor)) for tensor in (*model.parameters(), *tensors)]
        self.modes = [module.training for module in model.modules()]
        self.trained = [parameter.requires_grad for parameter in model.parameters()]
        self.parameters = list(model.parameters())

    def keep_changed_buffers(self) -> None:
        """After forward: only buffers that it wrote to, or put others in the place of, need their old values."""
        self.old: list[tuple[Tensor, Tensor]] = []
        for name, now in named_buffers(self.model):
            buffer, version, value = self.before.get(name, (now, version_of(now), now))
            if (now is not buffer or version_of(now) != version) and now.shape == value.shape:
                self.old.append((now, value))
        self.before.clear()

    def keep_left_buffers(self) -> None:
        """When everything that belongs to forward is over: from here on buffers must stay what they are."""
        self.left = [(buffer, version_of(buffer)) for _, buffer in named_buffers(self.model)]

    def check_unchanged(self) -> None:
        """Refuse a backward whose forward ran on other values or in another mode."""
        if any(version_of(tensor) != version for tensor, version in self.given) or not are_same(
            self.parameters, self.model.parameters()
        ):
            raise InvalidInput(
                "a parameter or an input was written to between forward and backward; call backward before "
                "optimizer.step(), and run forward again otherwise"
            )
        is_written = any(version_of(buffer) != version for buffer, version in self.left)
        if is_written or not are_same([b for b, _ in self.left], (b for _, b in named_buffers(self.model))):
            raise InvalidInput("a buffer was changed between forward and backward; call backward first")
        if [module.training for module in self.model.modules()] != self.modes:
            raise InvalidInput("train() or eval() was called between forward and backward; call backward first")
        if [parameter.requires_grad for parameter in self.model.parameters()] != self.trained:
            raise InvalidInput("requires_grad was changed between forward and backward; call backward first")

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Generators and buffers as forward found them; on the way out they are as they are now."""
        devices = [self.device.index or 0] if self.device.type == "cuda" else []
        present = [buffer.clone() for buffer, _ in self.old]
        with torch.random.fork_rng(devices=devices), restored_rng(self.state, self.device), torch.no_grad():
            for buffer, old in self.old:
                buffer.copy_(old)
            try:
                yield
            finally:
                for (buffer, _), value in zip(self.old, present, strict=True):
                    buffer.copy_(value)


def named_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every place where a buffer stands, with its name."""
    return model.named_buffers(remove_duplicate=False)


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to; not counted under inference mode."""
    return 0 if tensor.is_inference() else tensor._version


def are_same(tensors: Sequence[Tensor], others: Iterable[Tensor]) -> bool:
    """Whether these are the same objects in the same order."""
    return list(map(id, tensors)) == list(map(id, others))
