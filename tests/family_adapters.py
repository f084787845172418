"""Families with adapters: low-rank updates of frozen weights, and other parts of a model that alone are trained."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from family_case import Family, own, pretrained
from family_decoders import GPT, IDS, LLAMA
from family_losses import next_token, next_token_behind
from torch import Tensor, nn


class LowRank(nn.Module):
    """A frozen linear layer plus a trained product of two thin matrices (LoRA, Hu et al. 2022)."""

    def __init__(self, base: nn.Linear, rank: int = 2, scale: float = 2.0) -> None:
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), scale
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """f[B, T, inputs] to f[B, T, outputs]."""
        return self.base(x) + self.scale * F.linear(F.linear(x, self.down), self.up)


def with_low_rank(make: Callable[[], nn.Module], *names: str) -> Callable[[], nn.Module]:
    """The model frozen, with LowRank in the place of every linear layer of one of these names."""

    def build() -> nn.Module:
        model = make().requires_grad_(False)
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if name in names and isinstance(child, nn.Linear):
                    setattr(module, name, LowRank(child))
        return model

    return build


def with_peft(make: Callable[[], nn.Module], adapter: str, **options: object) -> Callable[[], nn.Module]:
    """The model with an adapter of the peft library."""

    def build() -> nn.Module:
        library = importlib.import_module("peft")
        return library.get_peft_model(make(), getattr(library, adapter)(**options))

    return build


def biases_only(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The model with nothing but its biases trained (BitFit, Ben Zaken et al. 2022)."""

    def build() -> nn.Module:
        model = make()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
        return model

    return build


LLAMA_NAMES = ("LlamaForCausalLM", "LlamaConfig")
LLAMA_MODEL = pretrained("LlamaForCausalLM", "LlamaConfig", LLAMA)
GPT_MODEL = pretrained("GPT2LMHeadModel", "GPT2Config", GPT)

ADAPTERS: tuple[Family, ...] = (
    own("Llama with LoRA, written here", "adapter", with_low_rank(LLAMA_MODEL, "q_proj", "v_proj"), next_token, IDS,
        needs=LLAMA_NAMES),
    own("Llama with LoRA of peft", "adapter", with_peft(LLAMA_MODEL, "LoraConfig", r=2, target_modules=["q_proj", "v_proj"]),
        next_token, IDS, needs=LLAMA_NAMES, package="peft"),
    own("Llama with DoRA of peft", "adapter",
        with_peft(LLAMA_MODEL, "LoraConfig", r=2, target_modules=["q_proj", "down_proj"], use_dora=True), next_token, IDS,
        needs=LLAMA_NAMES, package="peft"),
    own("Llama with IA3 of peft", "adapter",
        with_peft(LLAMA_MODEL, "IA3Config", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        next_token, IDS, needs=LLAMA_NAMES, package="peft"),
    own("Llama with prompt tuning of peft", "adapter",
        with_peft(LLAMA_MODEL, "PromptTuningConfig", task_type="CAUSAL_LM", num_virtual_tokens=3), next_token_behind, IDS,
        needs=LLAMA_NAMES, package="peft"),
    own("GPT-2, biases only", "adapter", biases_only(GPT_MODEL), next_token, IDS, needs=("GPT2LMHeadModel", "GPT2Config")),
)  # fmt: skip
