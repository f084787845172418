"""What loader, module and optimizer of one training share: which physical batch is at hand, and the sums of the step so far.

A logical step is one draw and one release. Its examples may come in several physical batches: each is used by exactly one
backward, their clipped sums are added in float32 or wider, and the optimizer takes the total behind the last one.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from dpcompile.ir.errors import InvalidInput
from dpcompile.step import Step, add_up

Parameters = list[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class Physical:
    """One physical batch: the number of its logical step, how many rows were drawn, how many only fill it up.

    A batch with `counted` = 0 is what an empty draw yields: one row that contributes nothing.
    """

    number: int
    counted: int
    filling: int
    is_first: bool
    is_last: bool

    @property
    def size(self) -> int:
        """Rows of the batch."""
        return self.counted + self.filling

    def mask(self, device: torch.device) -> Tensor:
        """bool[size]: which rows were drawn."""
        return torch.arange(self.size, device=device) < self.counted


@dataclass
class Session:
    """The state of the present step. completed: number of the first logical step that was not taken yet.

    is_loss_known: whether the steps' losses are the user's; a drop-in never sees them.
    """

    completed: int = 0
    is_loss_known: bool = False
    is_skipped: bool = False
    current: Physical | None = None
    is_used: bool = False
    steps: list[Step] = field(default_factory=list)
    sums: dict[str, Tensor] = field(default_factory=dict)
    published: dict[str, tuple[weakref.ref[Tensor], int]] = field(default_factory=dict)

    def begin(self, physical: Physical) -> None:
        """The loader hands out a batch; what an unfinished step has summed is dropped with its first one."""
        if self.current is not None and self.current.is_last and self.is_used:
            raise InvalidInput(
                "the loader was asked for the next batch before optimizer.step(): two draws would be released as one, and an"
                " example in both would count twice. Call optimizer.step() after every backward (it waits for the last "
                "physical batch of a step by itself); for larger batches raise expected_batch_size"
            )
        self.is_skipped |= self.current is not None and not self.is_used
        if physical.is_first:
            self.clear()
        self.current, self.is_used = physical, False

    def ready(self, size: int, parameters: Parameters) -> Physical:
        """The batch at hand, before its backward; the last step's gradients are put away. p.grad stays empty until the optimizer
        has added noise, so that whoever looks at it, or steps with it, finds nothing that is not private."""
        physical = self.check_unused(size)
        self.check_left(parameters)
        for _, parameter in parameters:
            parameter.grad = None
        return physical

    def check_unused(self, size: int) -> Physical:
        """The batch at hand; refuse any other one, and a second use."""
        if self.current is None:
            raise InvalidInput(
                "training on a batch that does not come from the private loader: how it was drawn is not accounted. Iterate "
                "over the data_loader that make_private returned; evaluate under torch.no_grad()"
            )
        if self.is_skipped:
            raise InvalidInput(
                "a batch of the private loader was skipped, or fetched before the one ahead of it was used, so that it is "
                "not known which draw this batch is. Use every batch before the next one is fetched; begin the loop over the "
                "loader anew"
            )
        if self.is_used:
            raise InvalidInput(
                "a second backward on the same batch: every example would contribute twice the clip norm. Add the losses and"
                " call backward once"
            )
        if size != self.current.size:
            raise InvalidInput(
                f"the module got {size} examples, but the private loader's present batch has {self.current.size}; give the "
                "module the whole batch, and only that"
            )
        return self.current

    def add(self, step: Step) -> None:
        """Add what one physical batch contributes."""
        add_up(self.sums, step.grads)
        self.steps.append(replace(step, grads={}))
        self.is_used = True

    @property
    def sensitivity(self) -> float:
        """How far one example moves the sums: the largest clip norm that any of the physical batches was clipped to."""
        return max(step.max_grad_norm for step in self.steps)

    def publish(self, parameters: Parameters) -> None:
        """Remember the noisy gradients, which the next backward may put away."""
        self.published = {name: (weakref.ref(p.grad), p.grad._version) for name, p in parameters if p.grad is not None}

    def check_left(self, parameters: Parameters) -> None:
        """Refuse to put away a gradient that is not the last step's own: it is of another backward, and would be lost."""
        for name, parameter in parameters:
            left, (known, version) = parameter.grad, self.published.get(name, (None, 0))
            is_ours = known is not None and known() is left and left is not None and left._version == version
            if left is not None and not is_ours and bool(left.any()):
                raise InvalidInput(
                    f"{name}.grad was set by something else than the last private step, and would be lost: only the clipped sum "
                    "is released. Put other losses into the loss of each example; if that gradient is not needed, call "
                    "optimizer.zero_grad() first"
                )

    def check_untouched(self, parameters: Parameters) -> None:
        """Refuse gradients that are not the session's own: what is released is the clipped sum and nothing else."""
        for name, parameter in parameters:
            if name not in self.sums:
                raise InvalidInput(
                    f"{name} began to require grad behind the backward of this step, so that no sum is known for it. Freeze and "
                    "unfreeze parameters between optimizer.step() and the next batch"
                )
            if parameter.grad is not None:
                raise InvalidInput(
                    f"{name}.grad was set between the private backward and optimizer.step(), but only the clipped sum is "
                    "released. Leave out other losses that are differentiated beside the private one (put them into the loss "
                    "of each example); to change the noisy gradient, use optimizer.register_step_pre_hook"
                )

    @property
    def is_complete(self) -> bool:
        """Whether all physical batches of the step were used."""
        return self.current is not None and self.current.is_last and self.is_used

    def check_ready(self) -> None:
        """Refuse an optimizer step without a backward before it."""
        if self.current is None or not self.is_used:
            raise InvalidInput(
                "optimizer.step() without a backward on a batch of the private loader: nothing was drawn, so there is "
                "nothing to release"
            )

    def count(self) -> None:
        """The step is accounted for: its draw is never used again, whatever happens from here on."""
        assert self.current is not None, "check_ready comes first"
        self.completed = self.current.number + 1

    def clear(self) -> None:
        """Forget the present step."""
        self.current, self.is_used = None, False
        self.sums, self.steps = {}, []
