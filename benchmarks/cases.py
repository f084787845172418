"""The workloads: a model, a batch, a loss per example, and the bar that dpcompile set itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import models

MAX_GRAD_NORM = 1.0
OURS = " (ours)"  # a method of the literature in this compiler: neither its own choice nor a peer
AGAIN = " (A/A)"  # the same step under a second name: what noise alone does to a ratio


@dataclass(frozen=True)
class Case:
    """One workload.

    example_loss(outputs, targets) -> f[B]. bar: step time that dpcompile aims at, in units of the ordinary
    step. memory_bar: the same for peak memory, where one was set. tolerance: how far a method may be off, in units of what one
    example contributes: float32 on operands of norm 1. precision: of float32 products, in the words of
    torch.set_float32_matmul_precision. as_published: time what Rochette et al. timed, see `benchmarks.protocol`.
    """

    title: str
    make: Callable[[], nn.Module]
    draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    example_loss: Callable[[Tensor, Tensor], Tensor]
    batch_size: int
    bar: float
    memory_bar: float | None = None
    tolerance: float = 1e-3
    precision: str = "highest"
    as_published: bool = False

    def model(self, device: str) -> nn.Module:
        """A new model, the same weights every time."""
        torch.manual_seed(0)
        return self.make().to(device)

    def batch(self, device: str) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one step, the same every time."""
        inputs, targets = self.draw(self.batch_size, torch.Generator().manual_seed(1))
        return inputs.to(device), targets.to(device)

    def losses(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Losses f[B] of a batch."""
        return self.example_loss(model(inputs), targets)


def per_class(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy f[B] of logits f[B, classes]."""
    return F.cross_entropy(outputs, targets, reduction="none")


def per_token(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy f[B], averaged over each example's own tokens, of logits f[B, T, vocabulary]."""
    values = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
    return values.view_as(targets).mean(1)


def floats(*shape: int) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    """Normal inputs f32[B, *shape] and ten classes."""

    def draw(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(size, *shape, generator=generator)
        return inputs, torch.randint(0, 10, (size,), generator=generator)

    return draw


def tokens(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """128 tokens and the tokens that follow, i64[B, 128] each."""
    ids = torch.randint(0, 8192, (size, 129), generator=generator)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


CASES = {
    "mlp": Case("MLP 784-1024-1024-10, B=256", models.mlp, floats(784), per_class, 256, 1.10, 1.3),
    "vit": Case(
        "ViT, width 192, depth 6, 64 tokens, B=32",
        models.VisionTransformer, floats(3, 32, 32), per_class, 32, 1.20, 1.3,
    ),
    "resnet18": Case(
        "ResNet-18 with GroupNorm, 3x64x64, B=16",
        models.resnet18, floats(3, 64, 64), per_class, 16, 1.40,
    ),
    "gpt-tied": Case(
        "GPT, 4 layers, width 256, T=128, vocabulary 8192, tied, B=16",
        lambda: models.GPT(tied=True), tokens, per_token, 16, 1.15, 1.3,
    ),
    "gpt-untied": Case(
        "GPT, 4 layers, width 256, T=128, vocabulary 8192, untied, B=16",
        lambda: models.GPT(tied=False), tokens, per_token, 16, 1.15, 1.3,
    ),
    "cnn": Case(
        "GroupNorm CNN 32-64-128, 3x32x32, B=64",
        models.group_norm_cnn, floats(3, 32, 32), per_class, 64, 1.30,
    ),
    "lstm": Case(
        "LSTM, input 64, hidden 128, T=64, B=32",
        models.LSTMClassifier, floats(64, 64), per_class, 32, 1.50,
    ),
}  # fmt: skip
