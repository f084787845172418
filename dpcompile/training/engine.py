"""`make_private`: the user's module, optimizer and data loader in, private ones out, with Opacus' names of arguments.

from dpcompile.training import PrivacyEngine             # instead of: from opacus import PrivacyEngine
engine = PrivacyEngine()
module, optimizer, loader = engine.make_private(module=model, optimizer=optimizer, data_loader=loader,
                                                noise_multiplier=1.0, max_grad_norm=1.0)
...                                                      # the training loop as it was
engine.get_epsilon(delta=1e-5)
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from dpcompile.ir.errors import InvalidInput
from dpcompile.module import PrivateModule, dpcompile
from dpcompile.training.accountant import Accountant
from dpcompile.training.adaptive import AdaptiveQuantile
from dpcompile.training.arguments import (
    check_mode,
    check_names,
    checked_other,
    device_of,
    divisor,
    physical_rows,
    sampling_for,
)
from dpcompile.training.calibrate import noise_multiplier_for
from dpcompile.training.checkpoint import load, save
from dpcompile.training.loader import PrivateLoader, check_loader
from dpcompile.training.module import PrivateDropIn, PrivateLoss
from dpcompile.training.noise import GeneratorNoise, Noise, SecureNoise
from dpcompile.training.optimizer import PrivateOptimizer
from dpcompile.training.release import Pass
from dpcompile.training.resume import Target
from dpcompile.training.sampling import Draws
from dpcompile.training.session import Session

Triple = tuple[Any, PrivateOptimizer, PrivateLoader]


class PrivacyEngine:
    """Makes one training run private and accounts for it.

    accountant: "pld" (tight), "rdp", or an accountant with Opacus' interface. secure_mode: noise from the operating system's
    cryptographic generator (`dpcompile.training.noise.SecureNoise`). seed: repeatable draws and noise, for tests only: whoever
    knows it can subtract the noise.
    """

    def __init__(self, *, accountant: Any = "pld", secure_mode: bool = False, seed: int | None = None) -> None:
        if secure_mode and seed is not None:
            raise InvalidInput(
                "secure_mode=True and seed= exclude each other: seeded noise can be repeated by whoever knows the seed"
            )
        self.accountant = Accountant(accountant) if isinstance(accountant, str) else Accountant("pld", checked_other(accountant))
        self.secure_mode, self.seed = secure_mode, seed
        self.made: Triple | None = None
        self.target: Target | None = None

    def make_private(
        self,
        *,
        module: nn.Module,
        optimizer: Optimizer,
        data_loader: DataLoader[Any],
        noise_multiplier: float,
        max_grad_norm: float | None = None,
        expected_batch_size: int | None = None,
        sample_rate: float | None = None,
        physical_batch_size: int | None = None,
        pad_batches: bool | None = None,
        truncated_batch_size: int | None = None,
        poisson_sampling: bool = True,
        clipping: Any = "flat",
        loss_reduction: str = "mean",
        output_dim: Any = 0,
        noise_generator: torch.Generator | None = None,
        criterion: Any = None,
        batch_first: bool = True,
        grad_sample_mode: str = "auto",
        **compile_options: Any,
    ) -> Triple:
        """The private (module, optimizer, data_loader).

        module: an ordinary model, for a loop that calls `criterion(module(x), y).backward()`; or what `dpcompile(model, loss)`
        returned, for `step = module(x, y)` with a loss that is verified. noise_multiplier: standard deviation of the noise in
        units of the sensitivity. max_grad_norm: clip norm (1.0). expected_batch_size: the public divisor of the sum; the loader's
        batch_size by default. sample_rate: the probability with which an example is drawn; expected_batch_size / number of
        examples by default, which reveals that number. physical_batch_size: the most examples at a time; larger draws come in
        several batches with one release. pad_batches: whether each is filled up to that size with rows that count nothing (by
        default on a GPU). truncated_batch_size: the most examples of a step; of a larger draw a random part, accounted as that.
        poisson_sampling=False: passes over all examples, accounted without amplification. clipping: as for dpcompile, or
        AdaptiveQuantile(). loss_reduction: of the criterion outside, "mean" or "sum"; output_dim: its inputs' example axis.
        criterion, batch_first, grad_sample_mode: Opacus has them. The rest goes to dpcompile. Raises InvalidInput.
        """
        check_mode(grad_sample_mode, batch_first)
        check_names(compile_options, (PrivacyEngine.make_private, dpcompile))
        check_loader(data_loader, poisson_sampling)
        private = as_private(module, max_grad_norm, clipping, compile_options, data_loader.dataset)
        session, expected = Session(), divisor(expected_batch_size, data_loader)
        sampling = sampling_for(data_loader, expected, sample_rate, truncated_batch_size, poisson_sampling)
        draws = Draws(len(data_loader.dataset), self.accountant.countable(sampling), expected, self.seed)  # type: ignore[arg-type]
        loader = PrivateLoader(data_loader, session, draws, *physical_rows(physical_batch_size, pad_batches, expected, private))
        noise = self.noise_for(private, noise_generator)
        wrapped = PrivateOptimizer(optimizer, private, session, draws, noise, self.accountant, noise_multiplier, expected)
        wrapped.set_adaptive(clipping)
        outside = None if module is private else (loss_reduction, output_dim)
        self.made, self.target = (training_module(private, session, outside), wrapped, loader), None
        return self.made

    def make_private_with_epsilon(
        self, *, target_epsilon: float, target_delta: float, epochs: int, data_loader: DataLoader[Any], **options: Any
    ) -> Triple:
        """The same with the least noise that keeps `epochs` epochs within (target_epsilon, target_delta)."""
        if "noise_multiplier" in options:
            raise InvalidInput("noise_multiplier follows from target_epsilon; give one of them")
        if self.accountant.other is not None:
            raise InvalidInput(
                'the noise for a target epsilon is found with accountant="pld" or "rdp"; or give make_private a noise_multiplier'
            )
        check_loader(data_loader, options.get("poisson_sampling", True))
        expected = divisor(options.get("expected_batch_size"), data_loader)
        sampling = sampling_for(data_loader, expected, options.get("sample_rate"), options.get("truncated_batch_size"),
                                options.get("poisson_sampling", True))  # fmt: skip
        steps = epochs if isinstance(sampling, Pass) else epochs * len(Draws(1, sampling, expected, 0))
        noise_multiplier = noise_multiplier_for(target_epsilon, target_delta, sampling, steps, self.accountant.kind)
        made = self.make_private(data_loader=data_loader, noise_multiplier=noise_multiplier, **options)
        self.target = Target(target_epsilon, target_delta, epochs * len(made[2]))
        return made

    def get_epsilon(self, delta: float) -> float:
        """Epsilon of all steps so far."""
        return self.accountant.get_epsilon(delta)

    def statement(self, delta: float) -> str:
        """What may be said of the trained model."""
        return self.accountant.statement(delta)

    def save_checkpoint(
        self, *, path: str | os.PathLike[str], module: Any = None, optimizer: Any = None, checkpoint_dict: Any = None
    ) -> None:
        """Write the run to one safetensors file (no pickle); checkpoint_dict: plain data and tensors of the loop besides.

        module and optimizer are Opacus' arguments; they must be those that make_private returned.
        """
        save(path, *self.triple(module, optimizer), extra=checkpoint_dict)

    def load_checkpoint(self, *, path: str | os.PathLike[str], module: Any = None, optimizer: Any = None) -> Any:
        """Continue from such a file, in the middle of an epoch too, with its noise and clip norm; returns its checkpoint_dict.

        Refused, with nothing changed: other models and runs, and a target_epsilon that its steps and the rest would exceed.
        """
        return load(path, *self.triple(module, optimizer), self.target)

    def triple(self, module: Any = None, optimizer: Any = None) -> Triple:
        """What make_private returned last."""
        if self.made is None:
            raise InvalidInput("make_private comes first")
        if module not in (None, self.made[0]) or optimizer not in (None, self.made[1]):
            raise InvalidInput("give the module and the optimizer that make_private returned last, or leave them out")
        return self.made

    def noise_for(self, private: PrivateModule, generator: torch.Generator | None) -> Noise:
        """The source of noise that was asked for."""
        if self.secure_mode:
            if generator is not None:
                raise InvalidInput("secure_mode=True draws from the operating system; leave noise_generator out")
            return SecureNoise()
        if generator is not None and not isinstance(generator, torch.Generator):
            raise InvalidInput(f"noise_generator must be a torch.Generator, got {type(generator).__name__}; for an int use seed=")
        return GeneratorNoise(None if self.seed is None else self.seed + 1, generator, device_of(private))


def as_private(module: Any, max_grad_norm: float | None, clipping: Any, options: dict[str, Any], dataset: Any) -> PrivateModule:
    """The compiled module: the given one, or one for the given model; refuses public batches of examples of the dataset."""
    if not isinstance(module, nn.Module):
        raise InvalidInput(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if isinstance(module, (PrivateDropIn, PrivateLoss)):
        raise InvalidInput("module is private already; give the model that you made yourself")
    if isinstance(clipping, AdaptiveQuantile):
        clipping = "flat"
    if not isinstance(module, PrivateModule):
        module = dpcompile(module, max_grad_norm=max_grad_norm, clipping=clipping, **options)
    elif options or clipping != "flat":
        raise InvalidInput(f"{', '.join(options) or 'clipping'} belongs into the dpcompile(...) that made the module")
    elif max_grad_norm is not None:
        module.max_grad_norm = max_grad_norm
    if module.chooser is not None:
        module.chooser.check_dataset(dataset)
    return module


def training_module(private: PrivateModule, session: Session, outside: tuple[str, Any] | None) -> PrivateDropIn | PrivateLoss:
    """What the loop calls: with the loss outside (its reduction, the outputs' example axis), or inside."""
    return PrivateLoss(private, session) if outside is None else PrivateDropIn(private, session, *outside)


def make_private(*, accountant: Any = "pld", secure_mode: bool = False, seed: int | None = None, **options: Any) -> Triple:
    """`PrivacyEngine(...).make_private(...)`; `optimizer.get_epsilon(delta)` says what was spent."""
    return PrivacyEngine(accountant=accountant, secure_mode=secure_mode, seed=seed).make_private(**options)


def make_private_with_epsilon(
    *, accountant: Any = "pld", secure_mode: bool = False, seed: int | None = None, **options: Any
) -> Triple:
    """`PrivacyEngine(...).make_private_with_epsilon(...)`."""
    return PrivacyEngine(accountant=accountant, secure_mode=secure_mode, seed=seed).make_private_with_epsilon(**options)
