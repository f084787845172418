"""Modules whose backward leaves a step's clipped sum with the training session, for a loss outside or inside of the module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dpcompile.batch import flatten_batch
from dpcompile.drop_in import DropIn
from dpcompile.module import PrivateModule
from dpcompile.step import Step
from dpcompile.training.session import Session


class PrivateDropIn(DropIn):
    """The user's model in the user's loop: `criterion(module(x), y).backward()`, then `optimizer.step()`.

    `p.grad` is empty until the optimizer puts the noisy mean there.
    """

    session: Session

    def __init__(self, private: PrivateModule, session: Session, loss_reduction: str, output_dim: Any) -> None:
        made = private.as_module(loss_reduction, output_dim)
        super().__init__(made.private, made.inner, loss_reduction, output_dim)
        self.__dict__["session"] = session

    def counted(self, size: int, device: torch.device) -> Tensor:
        """The rows that were drawn, as the loader says."""
        return self.session.check_unused(size).mask(device)

    def delivered(self, step: Step) -> tuple[Tensor | None, ...]:
        """The session keeps the sums; autograd adds nothing to p.grad by itself."""
        deliver(self.session, step, self.inner.trainable())
        return tuple(None for _ in self.inner.trainable())


class PrivateLoss(nn.Module):
    """A compiled step in the user's loop: `step = module(x, y)` does forward, backward and clipping; then `optimizer.step()`.

    Without autograd (`torch.no_grad()`) it is the model.
    """

    def __init__(self, private: PrivateModule, session: Session) -> None:
        super().__init__()
        self.model = private.model
        self.__dict__.update(private=private, session=session)
        session.is_loss_known = True
        self.last_step: Step | None = None

    def forward(self, *batch: Any, **kwargs: Any) -> Any:
        """The step of one physical batch, without `grads`: the sums are with the session, until noise is added."""
        if not torch.is_grad_enabled():
            return self.model(*batch, **kwargs)
        private: PrivateModule = self.__dict__["private"]
        session: Session = self.__dict__["session"]
        flat = flatten_batch(batch, kwargs, private.batch_dim)
        mask = session.check_unused(flat.size).mask(flat.tensors[0].device)
        step = private(*batch, mask=mask, **kwargs)
        deliver(session, step, private.trainable())
        self.last_step = replace(step, grads={})
        return self.last_step

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of model and loss, by the names of the step's gradients."""
        return self.__dict__["private"].named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        """The model's own, without a prefix."""
        return self.model.named_buffers(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own state_dict, without a prefix."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load into the model."""
        return self.model.load_state_dict(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the model are the module's too (`module.config`)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "model" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.model, name)


def deliver(session: Session, step: Step, trainable: Iterator[tuple[str, nn.Parameter]]) -> None:
    """Hand a physical batch's sums to the session. p.grad stays empty until the optimizer has added noise, so that whoever else
    looks at it, or steps with it, finds nothing that is not private."""
    session.add(step)
    for _, parameter in trainable:
        parameter.grad = None
