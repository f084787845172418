"""An optimizer that publishes before it updates: (clipped sum + noise) / divisor, once per logical step, then the user's own
step.

    p.grad = (sum of clipped gradients + noise_multiplier * sensitivity * N(0, 1)) / expected_batch_size

The divisor is a public constant and never the number of examples drawn (Abadi et al., Deep Learning with Differential Privacy,
2016, algorithm 1, for Poisson samples).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from dpcompile.clip.kinds import Flat
from dpcompile.ir.errors import InvalidInput
from dpcompile.module import PrivateModule
from dpcompile.training.accountant import Accountant
from dpcompile.training.adaptive import AdaptiveQuantile
from dpcompile.training.noise import Noise
from dpcompile.training.release import Release, checked_noise
from dpcompile.training.sampling import Draws
from dpcompile.training.selected import compact, others_unchanged, spread, trained_masks
from dpcompile.training.session import Parameters, Session

FROM_MODULE = "Build the optimizer from module.parameters(), after the last change of the module"
PIECE, LARGE_PIECE = 1 << 18, 1 << 24
"""Normals that are drawn at a time: a megabyte of float32, which a processor's caches hold; on other devices 64 MB, since every
piece is three launches there."""


class PrivateOptimizer(Optimizer):
    """The user's optimizer behind the Gaussian mechanism; groups, state and state_dict are the user's optimizer's own.

    `step()` does nothing until the last physical batch of a logical step was used; it then accounts for the release, adds noise
    and steps. `noise_multiplier` and `max_grad_norm` may be changed between steps (schedulers do): what is used is accounted.
    """

    original_optimizer: Optimizer

    def __init__(self, optimizer: Optimizer, private: PrivateModule, session: Session, draws: Draws, noise: Noise,
                 accountant: Accountant, noise_multiplier: float, expected_batch_size: int) -> None:  # fmt: skip
        # Not Optimizer's own constructor: groups, state and hooks are those of the user's optimizer, by __getattr__.
        self.__dict__["original_optimizer"] = optimizer
        check_optimizer(optimizer, private)
        self.private, self.session, self.draws, self.noise, self.accountant = private, session, draws, noise, accountant
        self.noise_multiplier, self.expected_batch_size = checked_noise(noise_multiplier), expected_batch_size
        self.made_with = self.noise_multiplier  # what was asked for, whatever schedulers and checkpoints make of it
        self.adaptive: AdaptiveQuantile | None = None
        self.observers: list[Callable[[Session], None]] = []
        if private.chooser is not None:
            private.chooser.check_updated({name for name, _ in self.released()})
            private.chooser.is_driven = True
        session.publish(self.released())  # what is in p.grad now is of no step of this training

    def __getattr__(self, name: str) -> Any:
        if name == "original_optimizer":
            raise AttributeError(name)
        return getattr(self.original_optimizer, name)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The user's optimizer's groups."""
        return self.original_optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.original_optimizer.param_groups = groups

    @property
    def max_grad_norm(self) -> float:
        """The clip norm of the steps to come."""
        return float(self.private.max_grad_norm)

    @max_grad_norm.setter
    def max_grad_norm(self, value: float) -> None:
        self.private.max_grad_norm = value

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """What torch's GradScaler asks before it steps: the place to refuse one that is enabled."""
        raise InvalidInput(
            "GradScaler skips steps and changes its scale when a single example overflows, which is not private, and what it "
            "scaled was clipped at another norm than max_grad_norm. Use torch.autocast(dtype=torch.bfloat16), which needs no "
            "scaling, or GradScaler(enabled=False)"
        )

    def set_adaptive(self, clipping: object) -> None:
        """Let the clip norm follow a quantile, if clipping says so; refuse what the count's noise or the kind does not allow."""
        self.adaptive = clipping if isinstance(clipping, AdaptiveQuantile) else None
        if self.adaptive is not None:
            self.adaptive.gradient_noise(self.noise_multiplier, self.expected_batch_size)
            if type(self.private.options.clipping) is not Flat:
                raise InvalidInput(
                    'AdaptiveQuantile is flat clipping with a moving norm; compile the module with clipping="flat"'
                )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Release and update if the logical step is complete; returns what the closure returned, which is called once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.session.check_ready()
        if not self.session.is_complete:
            return loss
        try:
            released = self.release()
            with others_unchanged(self.original_optimizer, released, trained_masks(self.private, released)):
                self.original_optimizer.step()
            self.session.publish(released)
            if self.private.chooser is not None:
                self.private.chooser.advance()
            for observe in self.observers:
                observe(self.session)
        finally:
            self.session.clear()
        return loss

    @torch.no_grad()
    def release(self) -> Parameters:
        """Account for the step, then put the noisy mean into p.grad of the parameters that are returned."""
        parameters, chooser = self.released(), self.private.chooser
        if chooser is not None:
            chooser.follow()
        self.session.check_untouched(parameters)
        assert self.session.current is not None
        release = Release(self.draws.sampling_of(self.session.current.number), checked_noise(self.noise_multiplier))
        used = (
            release
            if self.adaptive is None
            else replace(
                release, noise_multiplier=self.adaptive.gradient_noise(release.noise_multiplier, self.expected_batch_size)
            )
        )
        self.accountant.add(release)
        self.session.count()
        deviation = used.deviation(self.session.sensitivity)
        masks = trained_masks(self.private, parameters)
        sums = compact(self.session.sums, masks)
        add_noise(parameters, sums, self.noise, deviation, self.expected_batch_size)
        for name, parameter in parameters:
            own = sums[name].to(parameter.dtype)
            parameter.grad = spread(own, masks[name]) if name in masks else own
        if chooser is not None:  # now, and not behind the user's step, whose hooks may change p.grad
            chooser.observe({name: p.grad for name, p in parameters if p.grad is not None})
        if self.adaptive is not None:
            self.max_grad_norm = self.adaptive.next_norm(self.session, self.max_grad_norm, self.noise, self.expected_batch_size)
        return parameters

    def released(self) -> Parameters:
        """The trainable parameters that this optimizer updates, in the model's order."""
        own = {id(parameter) for group in self.param_groups for parameter in group["params"]}
        return [(name, parameter) for name, parameter in self.private.trainable() if id(parameter) in own]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the last step's gradients; the sums of the present one are with the session."""
        self.original_optimizer.zero_grad(set_to_none)

    def get_epsilon(self, delta: float) -> float:
        """Epsilon of all steps so far."""
        return self.accountant.get_epsilon(delta)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As the user's optimizer does; the parameters must be the compiled model's."""
        given = param_group["params"]
        check_known([given] if isinstance(given, Tensor) else list(given), self.private)
        self.original_optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The user's optimizer's own."""
        return self.original_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load into the user's optimizer."""
        self.original_optimizer.load_state_dict(state_dict)

    def __repr__(self) -> str:
        return f"PrivateOptimizer({self.original_optimizer!r})"


def add_noise(parameters: Parameters, sums: dict[str, Tensor], noise: Noise, deviation: float, divisor: int) -> None:
    """(sum + noise) / divisor in the memory of the sums, in their type (float32 or wider).

    Normals are drawn piece by piece and added while they are in the cache, so that they cost no memory and each sum is read and
    written once; small parameters share a piece.
    """
    for members in pieces(parameters, sums):
        targets = [entries(sums[name]) for name, _ in members]
        size = piece_size(targets[0])
        for start in range(0, max(len(target) for target in targets), size):
            parts = [target[start : start + size] for target in targets]
            drawn = torch.empty(sum(map(len, parts)), dtype=parts[0].dtype, device=parts[0].device)
            noise.fill(drawn, deviation / divisor) if deviation else drawn.zero_()
            for part, normals in zip(parts, drawn.split([len(part) for part in parts]), strict=True):
                torch.add(normals, part, alpha=1 / divisor, out=part)


def piece_size(total: Tensor) -> int:
    """How many normals are drawn at a time where this sum is."""
    return PIECE if total.device.type == "cpu" else LARGE_PIECE


def entries(total: Tensor) -> Tensor:
    """A sum as a vector of real numbers: each part of a complex one gets noise of its own."""
    return (torch.view_as_real(total) if total.is_complex() else total).view(-1)


def pieces(parameters: Parameters, sums: dict[str, Tensor]) -> Iterator[Parameters]:
    """The parameters in groups of one type and device and of at most a piece's entries; a larger one is alone."""
    group: Parameters = []
    for name, parameter in parameters:
        if not sums[name].is_contiguous():
            sums[name] = sums[name].contiguous()
        first = sums[group[0][0]] if group else sums[name]
        size = sum(sums[n].numel() for n, _ in group) + sums[name].numel()
        if group and (size > piece_size(first) or (first.dtype, first.device) != (sums[name].dtype, sums[name].device)):
            yield group
            group = []
        group.append((name, parameter))
    if group:
        yield group


def check_optimizer(optimizer: Any, private: PrivateModule, way_out: str = FROM_MODULE) -> None:
    """Refuse an optimizer that would update what the compiled step does not clip, or look at the data more than once a step."""
    if not isinstance(optimizer, Optimizer):
        raise InvalidInput(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if isinstance(optimizer, PrivateOptimizer):
        raise InvalidInput("optimizer is private already; give the optimizer that you made yourself")
    if isinstance(optimizer, LBFGS):
        raise InvalidInput(
            "LBFGS evaluates the loss several times per step, and every evaluation would have to be released; use another"
        )
    check_known([parameter for group in optimizer.param_groups for parameter in group["params"]], private, way_out)


def check_known(parameters: list[Tensor], private: PrivateModule, way_out: str = FROM_MODULE) -> None:
    """Refuse parameters that the compiled step does not clip."""
    known = {id(parameter) for _, parameter in private.named_parameters()}
    if any(id(parameter) not in known for parameter in parameters):
        raise InvalidInput(
            f"optimizer has a parameter that the module does not have: it would be updated without clipping and noise. {way_out}"
        )
