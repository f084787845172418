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
from dpcompile.parts import StandIn
from dpcompile.step import Step
from dpcompile.training.session import Session


class InTraining(StandIn):
    """A stand-in within one training. Copies and pickles are the model alone: the training's sums and norms are not private, and
    a copy has no part in its draws."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return model_alone, (self.model,)


def model_alone(model: nn.Module) -> nn.Module:
    """What a copy or a pickle becomes."""
    return model


class PrivateDropIn(InTraining, DropIn):
    """The user's model in the user's loop: `criterion(module(x), y).backward()`, then `optimizer.step()`.

    `p.grad` is empty until the optimizer puts the noisy mean there.
    """

    session: Session

    def __init__(self, private: PrivateModule, session: Session, loss_reduction: str, output_dim: Any) -> None:
        super().__init__(private, private.of_cotangents(), loss_reduction, output_dim)
        self.__dict__["session"] = session

    def counted(self, size: int, device: torch.device) -> Tensor:
        """The rows that were drawn, as the loader says."""
        return self.session.ready(size, list(self.inner.trainable())).mask(device)

    def delivered(self, step: Step) -> tuple[Tensor | None, ...]:
        """The session keeps the sums; autograd adds nothing to p.grad by itself."""
        self.session.add(step)
        return tuple(None for _ in self.inner.trainable())


class PrivateLoss(InTraining):
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
        drawn = session.ready(flat.size, list(private.trainable())).mask(flat.tensors[0].device)
        step = private.run(private.compiled(flat), flat, drawn)
        session.add(step)
        self.last_step = replace(step, grads={})
        return self.last_step

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of model and loss, by the names of the step's gradients."""
        return self.__dict__["private"].named_parameters(*args, **kwargs)
